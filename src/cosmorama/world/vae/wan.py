"""The Wan video tokenizers, 2.1 (Predict2 to Transfer2.5) and 2.2 (Cosmos3).

Their decoder's largest part, that of full size, works on one frame at a time instead of four. It is what diffusers'
`WanDecoder3d.forward` does, to the bit: a causal convolution remembers the frames before a chunk, however long the
chunk is. What a frame takes on its way out is a quarter then of what four take.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan, unpatchify
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from cosmorama.errors import ModelNotFoundError
from cosmorama.world.kernels.causal_conv import continued, lighten
from cosmorama.world.load.checkpoint import load_module
from cosmorama.world.load.config import check_fit
from cosmorama.world.load.options import ON_CPU, LoadOptions
from cosmorama.world.vae.pixels import to_frames
from cosmorama.world.vae.tiles import TilingAutoencoder, fill_in_tiles

_PREVIEWED = 2
"""Latent frames at the beginning of a clip that whoever wants a preview looks at."""


class WanAutoencoder(TilingAutoencoder):
    """A causal tokenizer: the first latent frame is the first frame alone, each further one is four frames.

    Latents are float32 and normalized by the checkpoint's own mean and deviation. The decoder's memory of earlier
    frames belongs to each call of `decode_stream`, so any number of clips can be decoded in turns.
    """

    def __init__(self, vae: AutoencoderKLWan) -> None:
        config: Any = vae.config
        super().__init__(vae, config.z_dim, config.scale_factor_spatial, config.scale_factor_temporal)
        self._mean = torch.tensor(config.latents_mean, device=vae.device).view(1, -1, 1, 1, 1)
        self._deviation = torch.tensor(config.latents_std, device=vae.device).view(1, -1, 1, 1, 1)

    @classmethod
    def load(cls, folder: Path, options: LoadOptions = ON_CPU) -> WanAutoencoder:
        """From a checkpoint's `vae` folder.

        Raises:
            ModelNotFoundError: the weights do not fit the config.
        """
        vae = load_module(AutoencoderKLWan, folder, options)
        config, patch = vae.config, vae.config.patch_size or 1
        check_fit(
            folder,
            config,
            "that is what its layers make",
            scale_factor_spatial=patch * 2 ** (len(config.dim_mult) - 1),
            scale_factor_temporal=2 ** sum(config.temperal_downsample),
            in_channels=3 * patch**2,
            out_channels=3 * patch**2,
        )
        if not config.latents_mean or not config.latents_std:
            raise ModelNotFoundError(
                f"{folder / 'config.json'} has no latents_mean and latents_std, which its latents are scaled by"
            )
        if vae.device.type == "cpu":
            lighten(vae)
        return cls(vae)

    def encode(self, frames: Tensor, noise: Tensor | None = None) -> Tensor:
        """Frames `[1, 3, T, H, W]` in -1..1 to latents `[1, C, T', h, w]`.

        Args:
            frames: 4k + 1 of them.
            noise: Standard normal `[1, C, T', h, w]` draws from what the encoder is unsure of; None takes the mean.
        """
        distribution = self._encoded(frames.to(self.vae.device, self.vae.dtype))
        latents = distribution.mean
        if noise is not None:
            latents = latents + distribution.std * noise.to(latents.device, latents.dtype)
        return cast(Tensor, (latents.float() - self._mean) / self._deviation)

    def decode_pixels(self, latents: Tensor) -> Iterator[Tensor]:
        """Latents `[1, C, T, h, w]` to pixels `[1, 3, t, H, W]` in -1..1: the first frame, then four at a time."""
        z = self.vae.post_quant_conv((latents * self._deviation + self._mean).to(self.vae.dtype))
        for pixels in self._decoded_in_tiles(z) if self._is_larger_than_a_tile(*z.shape[3:]) else self._decoded(z):
            if self.vae.config.patch_size is not None:
                pixels = unpatchify(pixels, patch_size=self.vae.config.patch_size)
            yield pixels.clamp(-1, 1)

    def decode_stream(self, latents: Tensor, height: int, width: int) -> Iterator[Tensor]:
        """Latents to uint8 frames `[t, height, width, 3]`, in order."""
        for pixels in self.decode_pixels(latents):
            yield to_frames(pixels[..., :height, :width])

    def _decoded(self, z: Tensor) -> Iterator[Tensor]:
        memory: list[Any] = [None] * self.vae._cached_conv_counts["decoder"]
        for index in range(z.shape[2]):
            yield _frame_by_frame(self.vae.decoder, z[:, :, index : index + 1], memory, first=index == 0)

    def _decoded_in_tiles(self, z: Tensor) -> Iterator[Tensor]:
        zoom = self.spatial // (self.vae.config.patch_size or 1)
        seen = 0
        # The beginning on its own first, or a preview would cost as much as the clip. It is the same twice.
        for part in (z[:, :, :_PREVIEWED], z) if z.shape[2] > _PREVIEWED else (z,):
            frames = 1 + (part.shape[2] - 1) * self.temporal
            shape = 1, self.vae.config.out_channels, frames, z.shape[3] * zoom, z.shape[4] * zoom
            pixels = torch.zeros(shape, dtype=torch.float16)  # to a sixteenth of a level of what is shown
            fill_in_tiles(pixels, part, self._decoded, tile=self._tile)
            chunks = (pixels[:, :, :1], *pixels[:, :, 1:].split(self.temporal, dim=2))
            yield from chunks[seen:]
            seen = len(chunks)

    def _encoded(self, pixels: Tensor) -> Any:
        shape = self.latents_shape(*pixels.shape[2:])
        if not self._is_larger_than_a_tile(*shape[3:]):
            return self.vae.encode(pixels).latent_dist
        moments = torch.zeros(1, 2 * shape[1], *shape[2:], device=pixels.device)
        fill_in_tiles(moments, pixels, lambda part: (self.vae._encode(part),), tile=self._tile)
        return DiagonalGaussianDistribution(moments.to(pixels.dtype))


def _frame_by_frame(decoder: Any, z: Tensor, memory: list[Any], *, first: bool) -> Tensor:
    """Decode one latent frame `[1, C, 1, h, w]` to pixels `[1, 3, t, H, W]`, one frame or four.

    Args:
        decoder: diffusers' `WanDecoder3d`.
        z: The latent frame.
        memory: What its convolutions know of the frames before, in the order of diffusers' `feat_cache`.
        first: Whether this is the clip's first latent frame.
    """
    place = [0]
    x = continued(decoder.conv_in, z, memory, place)
    x = decoder.mid_block(x, feat_cache=memory, feat_idx=place)
    *small, large = decoder.up_blocks
    enlarge = None
    for block in small:
        if block is small[-1] and _enlarges_frames_alone(block):
            enlarge = block.upsamplers[0]
            for resnet in block.resnets:
                x = resnet(x, feat_cache=memory, feat_idx=place)
        else:
            x = block(x, feat_cache=memory, feat_idx=place, first_chunk=first)
    frames = []
    for frame in x.split(1, dim=2):
        there = place.copy()
        y = frame if enlarge is None else enlarge(frame, feat_cache=memory, feat_idx=there)
        y = large(y, feat_cache=memory, feat_idx=there, first_chunk=first)
        frames.append(continued(decoder.conv_out, decoder.nonlinearity(decoder.norm_out(y)), memory, there))
    return torch.cat(frames, dim=2)


def _enlarges_frames_alone(block: Any) -> bool:
    """Whether a block ends by enlarging every frame on its own, with nothing beside that."""
    ends = getattr(block, "upsamplers", None)
    return ends is not None and ends[0].mode == "upsample2d"
