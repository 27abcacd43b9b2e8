"""Predict2: a model for stills from text, and one for clips from an image or a video.

The same numbers as diffusers' `Cosmos2TextToImagePipeline` and `Cosmos2VideoToWorldPipeline`: a flow network, sampled
in EDM's coordinates, where latents are the clean ones plus noise of up to 80 times their size. One thing is not as
diffusers has it: positions in time do not follow the frame rate unless `LoadOptions.fps_modulation` says so. NVIDIA's
configurations of the released models (cosmos-predict2) switch that off.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cosmorama.diffusion.schedule import Schedule, karras_sigmas
from cosmorama.world.base import Inputs, ReadText
from cosmorama.world.cosmos.sampling import CosmosSampling, CosmosWorld
from cosmorama.world.vae.wan import WanAutoencoder

_CONDITIONING_SIGMA = 0.0001


class Predict2Sampling(CosmosSampling):
    """One request on a Predict2 model."""

    def __init__(self, world: CosmosWorld, inputs: Inputs, read: ReadText) -> None:
        super().__init__(world, inputs, read)
        self.schedule = predict2_schedule(self.request.steps)
        self._mask = None if self.known is None else self.mask(self.given)

    def encode(self, pixels: Tensor) -> Tensor:
        """Drawn from the tokenizer's distribution, as these models were trained; before any other noise."""
        autoencoder = self.autoencoder
        assert isinstance(autoencoder, WanAutoencoder)
        # Drawn for the whole clip, so that a seed gives what it gives where the padding is encoded too.
        noise = torch.randn(self.shape, generator=self.generator, dtype=autoencoder.vae.dtype)
        length = autoencoder.latents_shape(pixels.shape[2], *pixels.shape[3:])[2]
        return autoencoder.encode(pixels, noise[:, :, :length])

    @torch.inference_mode()
    def denoise(self, latents: Tensor, index: int, *, negative: bool = False) -> Tensor:
        """Estimate the clean latents; conditioning frames come back as given."""
        sigma, given = self.schedule.sigmas[index], self.given
        time = sigma / (1 + sigma)  # where the flow network has this ratio of signal to noise
        x = latents * (1 - time)
        if self.known is None:
            timesteps = torch.full((1, 1), time, device=latents.device)
        else:
            timesteps = torch.full((1, latents.shape[2]), time, device=latents.device)
            timesteps[:, :given] = _CONDITIONING_SIGMA / (1 + _CONDITIONING_SIGMA)
            x = torch.cat([self.known, x[:, :, given:]], dim=2)
        velocity = self.evaluate(
            x,
            timesteps.to(self.world.dtype),
            negative=negative,
            mask=self._mask,
            fps=self.request.fps if self.world.fps_modulation and self.known is not None else None,
        )
        denoised = (1 - time) * latents - time * velocity
        return denoised if self.known is None else torch.cat([self.known, denoised[:, :, given:]], dim=2)


def predict2_schedule(steps: int) -> Schedule:
    """Karras's levels from 80 down to 0.002, where the clip is taken as it is.

    diffusers appends the smallest level once more: a step that evaluates the network and multiplies the result by zero.
    Without it the schedule has a step less. From a single level there is nowhere to go but to zero; diffusers returns
    the noise.
    """
    levels = karras_sigmas(steps)[:-1]
    return Schedule((*levels, 0.0) if steps == 1 else levels, "edm")
