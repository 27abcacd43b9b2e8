"""Predict1: a diffusion model for clips from text, and one for clips from an image or a video.

The same numbers as diffusers' `CosmosTextToWorldPipeline` and `CosmosVideoToWorldPipeline`: EDM's parametrization and
preconditioning (arXiv 2206.00364). Conditioning frames enter with fresh noise of a thousandth at every evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from cosmorama.world.base import Inputs, ReadText
from cosmorama.world.cosmos.sampling import CosmosSampling, CosmosWorld
from cosmorama.world.levels import edm_levels

_AUGMENT_SIGMA = 0.001
_PREVIEWED = 2


class Predict1Sampling(CosmosSampling):
    """One request on a Predict1 model."""

    def __init__(self, world: CosmosWorld, inputs: Inputs, read: ReadText) -> None:
        self._sigma_data: float = world.scheduler["sigma_data"]
        super().__init__(world, inputs, read)
        self.schedule = edm_levels(world.scheduler, self.request.steps)
        self._mask = None if self.known is None else self.mask(self.given)
        self._drawn: dict[int, Tensor] = {}  # the last two
        self._draws = 0

    def encode(self, pixels: Tensor) -> Tensor:
        """Latents with the deviation that the model was trained for."""
        return super().encode(pixels) * self._sigma_data

    def unscaled(self, latents: Tensor) -> Tensor:
        """Latents with the deviation that the tokenizer has."""
        return latents / self._sigma_data

    def preview(self, latents: Tensor) -> Iterator[Tensor]:
        """Of two latent frames: this tokenizer decodes all that it is given at once, and no frame needs later ones."""
        return self.decode(latents[:, :, :_PREVIEWED])

    @torch.inference_mode()
    def denoise(self, latents: Tensor, index: int, *, negative: bool = False) -> Tensor:
        """Estimate the clean latents; conditioning frames come back as given."""
        sigma, data = self.schedule.sigmas[index], self._sigma_data
        timesteps = torch.full((1, 1), 0.25 * math.log(sigma), device=latents.device).to(self.world.dtype)
        x = latents * self._input_scale(sigma)
        if self.known is not None:
            augmented = self.known + self._fresh_noise(index, negative=negative) * _AUGMENT_SIGMA
            if sigma > _AUGMENT_SIGMA:
                x = torch.cat([augmented * self._input_scale(_AUGMENT_SIGMA), x[:, :, self.given :]], dim=2)
        output = self.evaluate(x, timesteps, negative=negative, mask=self._mask, fps=self.request.fps)
        variance = sigma**2 + data**2
        denoised = latents * (data**2 / variance) + output * (sigma * data / math.sqrt(variance))
        if self.known is None or sigma <= _AUGMENT_SIGMA:
            return denoised
        return torch.cat([self.known, denoised[:, :, self.given :]], dim=2)

    def _fresh_noise(self, index: int, *, negative: bool) -> Tensor:
        """Noise for the given frames, of its own for every evaluation, and the same one when that is repeated.

        The whole clip's is drawn, although the first frames' is all that is used, in diffusers' order: prompt, negative
        prompt, step by step. So one seed means one clip, also where another process evaluates the negative prompt.
        """
        place = 2 * index + negative if self.guidance_weight != 1 else index
        while self._draws <= place:
            drawn = torch.randn(self.shape, generator=self.generator)[:, :, : self.given]
            self._drawn[self._draws % 2] = drawn.to(self.world.device)
            self._draws += 1
        return self._drawn[place % 2]

    def _input_scale(self, sigma: float) -> float:
        return 1 / math.sqrt(sigma**2 + self._sigma_data**2)
