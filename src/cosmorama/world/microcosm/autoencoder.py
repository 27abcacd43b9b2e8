"""Microcosm's video autoencoder: a linear, causal block transform with a small learned decoder.

The model sees the world at one eighth of the output size. A latent cell covers 8 x 8 of those pixels (64 x 64 output
pixels) over 8 frames and holds the leading principal components of such blocks. Latent frame 0 is frame 0 alone, taken
as eight equal frames, so that stills and clips share one latent space; latent frame k holds frames 8k - 7 to 8k.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cosmorama.world.microcosm.stored import Stored
from cosmorama.world.vae.pixels import check_finite

CELL = 8
FRAMES_PER_LATENT = 8
OUTPUT_SCALE = 8


class VideoAutoencoder(Stored):
    """Frames to latents and back.

    Args:
        channels: Latent channels C.
        refiner_width: Width of the convolutions that clean decoded frames at one eighth of the size; 0 for none.
        upsampler_width: Width of the convolutions that add detail when enlarging; 0 for bicubic enlargement only.
    """

    def __init__(self, channels: int = 64, refiner_width: int = 0, upsampler_width: int = 0) -> None:
        super().__init__()
        block = FRAMES_PER_LATENT * CELL * CELL * 3
        # Fitted by principal component analysis, not by gradient descent.
        self.basis = nn.Parameter(torch.zeros(channels, block), requires_grad=False)
        self.mean = nn.Parameter(torch.zeros(block), requires_grad=False)
        # One factor for all channels: whitening would make the finest components as loud as the main ones.
        self.scaling_factor = nn.Parameter(torch.ones(()), requires_grad=False)
        self.refiner = Refiner(refiner_width) if refiner_width else None
        self.upsampler = Upsampler(upsampler_width) if upsampler_width else None

    def latents_shape(self, frames: int, height: int, width: int) -> tuple[int, ...]:
        """Shape `[1, C, T, h, w]` of the latents of a clip of 8k + 1 frames of `height` x `width` output pixels."""
        cells = (2 * -(-side // (2 * CELL * OUTPUT_SCALE)) for side in (height, width))
        return (1, self.basis.shape[0], 1 + (frames - 1) // FRAMES_PER_LATENT, *cells)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Encode a clip at output size, [B, 3, 1 + 8k, height, width] in [-1, 1]: averaged down, then `encode_small`.

        Sides that are no multiples of 8 are filled up with their last pixels.
        """
        return self.encode_small(averaged_down(frames.to(self.basis.dtype)))

    @torch.no_grad()
    def encode_small(self, frames: Tensor) -> Tensor:
        """Encode a clip at one eighth of the output size.

        Args:
            frames: [B, 3, 1 + 8k, h, w] in [-1, 1].

        Returns:
            Latents [B, C, 1 + k, H, W], H and W rounded up to even numbers of cells.

        Raises:
            ValueError: for other numbers of frames.
        """
        if frames.shape[2] % FRAMES_PER_LATENT != 1:
            raise ValueError(f"a clip has 8k + 1 frames, not {frames.shape[2]}")
        frames = frames.to(self.basis.dtype)
        frames = torch.cat([frames[:, :, :1].expand(-1, -1, FRAMES_PER_LATENT, -1, -1), frames[:, :, 1:]], dim=2)
        height, width = (2 * CELL * -(-side // (2 * CELL)) for side in frames.shape[-2:])
        pad = (0, width - frames.shape[-1], 0, height - frames.shape[-2], 0, 0)
        return self.encode_blocks(to_blocks(F.pad(frames, pad, mode="replicate")))

    def encode_blocks(self, blocks: Tensor) -> Tensor:
        """Blocks [B, T, H, W, D] (see `to_blocks`) to latents [B, C, T, H, W]."""
        return ((blocks - self.mean) @ self.basis.T * self.scaling_factor).permute(0, 4, 1, 2, 3)

    def hold(self, latents: Tensor) -> Tensor:
        """The last frame of latents [B, C, T, H, W] standing still: [B, C, 1, H, W]."""
        parts = self._decode_blocks(latents[:, :, -1:]).unflatten(4, (3, FRAMES_PER_LATENT, -1))
        return self.encode_blocks(parts[..., -1:, :].expand_as(parts).flatten(4))

    def decode_small(self, latents: Tensor, height: int, width: int) -> Tensor:
        """Decode latents [B, C, T, H, W] to 8 T frames [B, 3, 8 T, height, width] at one eighth of the output size.

        `height` and `width` are those of the small frames. The first eight frames are a still; `decode_stream` shows
        one.
        """
        frames = self.decode_linear(latents, height, width)
        return frames if self.refiner is None else cast(Tensor, self.refiner(frames))

    def decode_linear(self, latents: Tensor, height: int, width: int) -> Tensor:
        """`decode_small` without the refiner."""
        return from_blocks(self._decode_blocks(latents))[..., :height, :width]

    def _decode_blocks(self, latents: Tensor) -> Tensor:
        """Latents [B, C, T, H, W] to blocks [B, T, H, W, D], what `encode_blocks` leaves of them."""
        return latents.permute(0, 2, 3, 4, 1) / self.scaling_factor @ self.basis + self.mean

    @torch.no_grad()
    def decode_stream(self, latents: Tensor, height: int, width: int) -> Iterator[Tensor]:
        """Decode one clip piece by piece.

        Args:
            latents: [1, C, T, H, W].
            height: Output height in pixels.
            width: Output width in pixels.

        Yields:
            uint8 [t, height, width, 3] in order: one frame for the first latent frame, eight for each further one. A
            latent frame is decoded on its own, so the pieces are what decoding the clip in one go would give.
        """
        for frames in self.small_stream(latents, height, width):
            yield self.enlarge(frames)[:, :height, :width]

    def small_stream(self, latents: Tensor, height: int, width: int) -> Iterator[Tensor]:
        """`decode_stream` before it is enlarged: [t, 3, h, w], an eighth of the output's height and width."""
        rows, columns = (-(-side // OUTPUT_SCALE) for side in (height, width))
        for index in range(latents.shape[2]):
            latent = latents[:, :, index : index + 1].to(self.basis.dtype)
            small = self.decode_small(latent, rows, columns)[0].transpose(0, 1)
            yield small[-1:] if index == 0 else small

    def enlarge(self, frames: Tensor) -> Tensor:
        """Small frames [t, 3, h, w] in [-1, 1] to uint8 [t, 8 h, 8 w, 3]."""
        if self.upsampler is None:
            # Bytes in, bytes out: bicubic enlargement of bytes is many times faster than that of floats.
            return _enlarge_bicubic(_to_bytes(frames)).permute(0, 2, 3, 1)
        # Bytes before they are put in order: a quarter of the memory to move.
        return torch.cat([_in_order(_to_bytes(self.upsampler(frame))) for frame in frames.split(1)])


def averaged_down(frames: Tensor) -> Tensor:
    """A clip at output size, [B, 3, T, height, width], at one eighth of it; sides are filled up with their ends."""
    batch, _, count, height, width = frames.shape
    pad = (0, -width % OUTPUT_SCALE, 0, -height % OUTPUT_SCALE)
    large = F.pad(frames.transpose(1, 2).flatten(0, 1), pad, mode="replicate")
    return cast(Tensor, F.avg_pool2d(large, OUTPUT_SCALE).unflatten(0, (batch, count))).transpose(1, 2)


def _enlarge_bicubic(frames: Tensor) -> Tensor:
    return F.interpolate(frames, scale_factor=OUTPUT_SCALE, mode="bicubic", align_corners=False)


def _to_bytes(frames: Tensor) -> Tensor:
    """[-1, 1] to uint8 0 to 255, laid out pixel by pixel."""
    check_finite(frames)
    return (frames * 127.5 + 128).clamp_(0, 255).to(torch.uint8).contiguous(memory_format=torch.channels_last)


def _in_order(blocks: Tensor) -> Tensor:
    """[t, 192, h, w], the 8 x 8 pixels of each small one as channels (row, column, color), to [t, 8 h, 8 w, 3]."""
    pixels = blocks.unflatten(1, (OUTPUT_SCALE, OUTPUT_SCALE, 3)).permute(0, 4, 1, 5, 2, 3)
    return cast(Tensor, pixels.reshape(len(blocks), OUTPUT_SCALE * blocks.shape[2], OUTPUT_SCALE * blocks.shape[3], 3))


class Refiner(nn.Module):
    """Cleans the linear decoder's seams and ghosts: 2-D convolutions, the eight frames of a latent as channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        channels = 3 * FRAMES_PER_LATENT
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 5, padding=2, padding_mode="replicate"),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1, padding_mode="replicate"),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1, padding_mode="replicate"),
            nn.SiLU(),
            nn.Conv2d(width, channels, 3, padding=1, padding_mode="replicate"),
        )
        _start_silent(self.layers[-1])

    def forward(self, frames: Tensor) -> Tensor:
        """[B, 3, 8 T, h, w] to the same shape; each group of eight frames on its own."""
        batch, _, count, height, width = frames.shape
        groups = frames.unflatten(2, (-1, FRAMES_PER_LATENT)).transpose(1, 2).flatten(0, 1).flatten(1, 2)
        groups = groups + self.layers(groups)
        groups = groups.view(batch, -1, 3, FRAMES_PER_LATENT, height, width).transpose(1, 2)
        return cast(Tensor, groups.reshape(batch, 3, count, height, width))


class Upsampler(nn.Module):
    """Eightfold enlargement: a bicubic one and learned detail, by sub-pixel convolution (arXiv 1609.05158)."""

    bicubic: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("bicubic", _bicubic_kernel(), persistent=False)
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 5, padding=2, padding_mode="replicate"),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1, padding_mode="replicate"),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1, padding_mode="replicate"),
            nn.SiLU(),
            nn.Conv2d(width, 3 * OUTPUT_SCALE**2, 1),
        )
        _start_silent(self.layers[-1])

    def forward(self, frames: Tensor) -> Tensor:
        """[t, 3, h, w] to [t, 192, h, w]: of each pixel the 8 x 8 large ones, as channels (row, column, color)."""
        edge = self.bicubic.shape[-1] // 2
        plain = F.conv2d(F.pad(frames, (edge,) * 4, mode="replicate"), self.bicubic)
        return plain + cast(Tensor, self.layers(frames))

    def enlarge(self, frames: Tensor) -> Tensor:
        """[t, 3, h, w] to [t, 3, 8 h, 8 w]."""
        return _in_order(self(frames)).permute(0, 3, 1, 2)


def _bicubic_kernel() -> Tensor:
    """Bicubic enlargement as a convolution: [192, 3, 5, 5], outputs in the order (row, column, color)."""
    impulses = torch.eye(25, device="cpu").view(25, 1, 5, 5)
    # Around the middle of a larger picture, so that no impulse is repeated at an edge.
    answers = _enlarge_bicubic(F.pad(impulses, (2,) * 4))[:, 0]
    middle = slice(4 * OUTPUT_SCALE, 5 * OUTPUT_SCALE)
    kernel = answers[:, middle, middle].permute(1, 2, 0).view(OUTPUT_SCALE, OUTPUT_SCALE, 1, 1, 5, 5)
    colors = torch.eye(3, device="cpu").view(1, 1, 3, 3, 1, 1)
    return (kernel * colors).flatten(0, 2)


def _start_silent(layer: nn.Module) -> None:
    """Zero a last layer: training then starts from the plain decoder."""
    assert isinstance(layer, nn.Conv2d)
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def to_blocks(frames: Tensor) -> Tensor:
    """Frames [B, 3, 8 T, 8 H, 8 W] to blocks [B, T, H, W, 1536] (color, frame, row, column within the block)."""
    batch, _, count, height, width = frames.shape
    parts = frames.reshape(
        batch, 3, count // FRAMES_PER_LATENT, FRAMES_PER_LATENT, height // CELL, CELL, width // CELL, CELL
    )
    return parts.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)


def from_blocks(blocks: Tensor) -> Tensor:
    """The inverse of `to_blocks`."""
    parts = blocks.unflatten(4, (3, FRAMES_PER_LATENT, CELL, CELL)).permute(0, 4, 1, 5, 2, 6, 3, 7)
    return cast(Tensor, parts.flatten(6, 7).flatten(4, 5).flatten(2, 3))
