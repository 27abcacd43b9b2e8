"""The Cosmos video tokenizer of Predict1 (arXiv 2501.03575)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl_cosmos import AutoencoderKLCosmos
from torch import Tensor

from cosmorama.world.load.checkpoint import load_module
from cosmorama.world.load.options import ON_CPU, LoadOptions
from cosmorama.world.vae.pixels import to_frames
from cosmorama.world.vae.tiles import TilingAutoencoder, fill_in_tiles

_FRAMES_AT_ONCE = 8


class CosmosAutoencoder(TilingAutoencoder):
    """A causal tokenizer: the first latent frame is the first frame alone, each further one is eight frames.

    Latents are float32 and normalized by the checkpoint's own mean and deviation, one per channel and latent frame. Its
    decoder attends to all earlier frames and keeps no memory of them, so a clip is decoded whole.
    """

    def __init__(self, vae: AutoencoderKLCosmos) -> None:
        config: Any = vae.config
        spatial, temporal = config.spatial_compression_ratio, config.temporal_compression_ratio
        super().__init__(vae, config.latent_channels, spatial, temporal)
        mean, deviation = config.latents_mean, config.latents_std
        if mean is None:
            mean, deviation = [0.0] * self.channels, [1.0] * self.channels
        self._mean = torch.tensor(mean, device=vae.device).view(1, self.channels, -1, 1, 1)
        self._deviation = torch.tensor(deviation, device=vae.device).view(1, self.channels, -1, 1, 1)
        self.latent_frames = self._mean.shape[2] if self._mean.shape[2] > 1 else None

    @classmethod
    def load(cls, folder: Path, options: LoadOptions = ON_CPU) -> CosmosAutoencoder:
        """From a checkpoint's `vae` folder. On a CPU always in float32: its pooling has no kernel for less there.

        Raises:
            ModelNotFoundError: the weights do not fit the config.
        """
        if torch.device(options.device).type == "cpu":
            options = replace(options, dtype=torch.float32)
        return cls(load_module(AutoencoderKLCosmos, folder, options))

    def encode(self, frames: Tensor) -> Tensor:
        """Frames `[1, 3, T, H, W]` in -1..1, 8k + 1 of them, to latents `[1, C, T', h, w]`."""
        pixels = frames.to(self.vae.device, self.vae.dtype)

        def encoded(part: Tensor) -> Any:
            return self.vae.encode(part).latent_dist.mode()

        if self._is_larger_than_a_tile(frames.shape[3] // self.spatial, frames.shape[4] // self.spatial):
            latents = torch.zeros(self.latents_shape(*frames.shape[2:]), device=pixels.device)
            fill_in_tiles(latents, pixels, lambda part: (encoded(part),), tile=self._tile)
        else:
            latents = encoded(pixels).float()
        return (latents - self._of(self._mean, latents)) / self._of(self._deviation, latents)

    def decode_pixels(self, latents: Tensor) -> Tensor:
        """Latents `[1, C, T', h, w]` to pixels `[1, 3, T, H, W]`, about -1..1."""
        z = latents * self._of(self._deviation, latents) + self._of(self._mean, latents)
        z = z.to(self.vae.dtype)
        if not self._is_larger_than_a_tile(*z.shape[3:]):
            return cast(Tensor, self.vae.decode(z).sample)
        frames, sides = 1 + (z.shape[2] - 1) * self.temporal, (side * self.spatial for side in z.shape[3:])
        pixels = torch.zeros(1, self.vae.config.out_channels, frames, *sides, dtype=torch.float16)
        fill_in_tiles(pixels, z, lambda part: (self.vae.decode(part).sample,), tile=self._tile)
        return pixels

    def decode_stream(self, latents: Tensor, height: int, width: int) -> Iterator[Tensor]:
        """Latents to uint8 frames `[t, height, width, 3]`, in order."""
        for pixels in self.decode_pixels(latents).split(_FRAMES_AT_ONCE, dim=2):
            yield to_frames(pixels[..., :height, :width])

    @staticmethod
    def _of(statistics: Tensor, latents: Tensor) -> Tensor:
        return statistics[:, :, : latents.shape[2]]
