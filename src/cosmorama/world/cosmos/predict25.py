"""Predict2.5: one flow model for text, image and video, reading its prompts with a vision-language model.

The same numbers as diffusers' `Cosmos2_5_PredictBasePipeline`. Conditioning frames enter clean, with a timestep close
to 0. In the sampled latents they follow their true velocity, `noise - clean`, from the noise that the request begins
with: since that is not quite all noise (sigma = 0.995), half a percent of it is still in them at the end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cosmorama.world.base import Inputs, ReadText
from cosmorama.world.cosmos.levels import unipc_levels
from cosmorama.world.cosmos.sampling import CosmosSampling, CosmosWorld


class Predict25Sampling(CosmosSampling):
    """One request on a Predict2.5 model.

    Attributes:
        conditioning_timestep: What the network reads as the timestep of the conditioning frames.
    """

    conditioning_timestep = 0.0001

    def __init__(self, world: CosmosWorld, inputs: Inputs, read: ReadText) -> None:
        super().__init__(world, inputs, read)
        request = self.request
        self.schedule = unipc_levels(world.scheduler, request.steps, flow_shift=request.flow_shift).schedule

    def initial(self) -> Tensor:
        """Noise `[1, C, T, h, w]`."""
        return self.go_on_from(self.known, self.noise())

    def go_on_from(self, known: Tensor | None, noise: Tensor) -> Tensor:
        """Let noise `[1, C, T, h, w]` lead to a clip that begins with clean latents `[1, C, K, h, w]`, if any."""
        self.known = known
        self._mask = self.mask(self.given)
        self._velocity = None if known is None else noise[:, :, : self.given] - known
        return noise

    @torch.inference_mode()
    def denoise(self, latents: Tensor, index: int, *, negative: bool = False) -> Tensor:
        """Estimate the clean latents; conditioning frames where their true velocity leads from where they are."""
        sigma, given = self.schedule.sigmas[index], self.given
        timesteps = torch.full((1, latents.shape[2]), sigma, device=latents.device)
        timesteps[:, :given] = self.conditioning_timestep
        x = latents if self.known is None else torch.cat([self.known, latents[:, :, given:]], dim=2)
        velocity = self.evaluate(x, timesteps, negative=negative, mask=self._mask)
        if self._velocity is not None:
            velocity = torch.cat([self._velocity, velocity[:, :, given:]], dim=2)
        return latents - sigma * velocity
