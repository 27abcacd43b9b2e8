"""Spatial tiles for video tokenizers: less memory for a result that is nearly the same.

A tokenizer that streams a clip remembers, at full resolution, what its causal convolutions need of earlier frames:
about half of what decoding takes. So a tile goes through the whole clip before the next one begins, and only one tile's
memory is ever held. A network sees nothing beyond the edge of its tile: that is what the result differs by.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from cosmorama.request import VAE_TILES, Capabilities
from cosmorama.world.load.options import LoadOptions


class Autoencoder(Protocol):
    """A causal video tokenizer: the first latent frame is the first frame alone."""

    def latents_shape(self, frames: int, height: int, width: int) -> tuple[int, ...]:
        """Shape `[1, C, T, h, w]` of the latents of a clip of frames in pixels."""
        ...

    def encode(self, frames: Tensor) -> Tensor:
        """Frames `[1, 3, T, H, W]` in -1..1 to latents."""
        ...

    def decode_stream(self, latents: Tensor, height: int, width: int) -> Iterator[Tensor]:
        """Latents to uint8 frames `[t, H, W, 3]`, in order."""
        ...


class TilingAutoencoder:
    """A video tokenizer of diffusers that can work tile by tile.

    Attributes:
        vae: Its network.
        latent_frames: The most latent frames there are statistics for; None: any number.
    """

    latent_frames: int | None = None

    def __init__(self, vae: Any, channels: int, spatial: int, temporal: int) -> None:
        self.vae, self.channels, self.spatial, self.temporal = vae, channels, spatial, temporal
        self._tile = 0

    def tiled(self, tile: int) -> Self:
        """The same tokenizer working in square tiles of `tile` pixels a side, blended; 0: in one piece.

        Tiles go through the whole clip one after the other: it comes when the last is done, and waits in the CPU's
        memory until then.
        """
        tiled = copy.copy(self)
        tiled._tile = tile // self.spatial
        return tiled

    def latents_shape(self, frames: int, height: int, width: int) -> tuple[int, ...]:
        """Shape `[1, C, T, h, w]` of the latents of a clip of frames in pixels."""
        return 1, self.channels, 1 + (frames - 1) // self.temporal, height // self.spatial, width // self.spatial

    def encode(self, frames: Tensor) -> Tensor:
        """See `Autoencoder`, as below."""
        raise NotImplementedError

    def decode_stream(self, latents: Tensor, height: int, width: int) -> Iterator[Tensor]:
        raise NotImplementedError

    def _is_larger_than_a_tile(self, rows: int, columns: int) -> bool:
        return 0 < self._tile < max(rows, columns)


def with_tiles(capabilities: Capabilities, options: LoadOptions) -> Capabilities:
    """Those of a model whose tokenizer can work tile by tile; a request that does not say has it as `options` do."""
    defaults = replace(capabilities.defaults, vae_tiling=options.vae_tiling)
    return replace(capabilities, vae_tiles=VAE_TILES, defaults=defaults)


def stride_of(tile: int) -> int:
    """From one tile to the next: neighbours share a quarter, as in diffusers."""
    return tile * 3 // 4


def fill_in_tiles(result: Tensor, x: Tensor, run: Callable[[Tensor], Iterable[Tensor]], *, tile: int) -> None:
    """Run a network over tiles of its input, and blend what it gives linearly where tiles overlap.

    Args:
        result: `[1, C, T, H, W]` zeros, which are filled in; perhaps on another device.
        x: `[1, C', T', h, w]`. The larger of both has a whole number of pixels to one of the other.
        run: One tile of `x` to its part of the result, in consecutive pieces of time.
        tile: A tile's side in pixels of the smaller of both.
    """
    rows, columns = min(x.shape[-2], result.shape[-2]), min(x.shape[-1], result.shape[-1])
    zoom_in, zoom_out = x.shape[-1] // columns, result.shape[-1] // columns
    for top, bottom in _spans(rows, tile):
        down = _weights(top, bottom, rows, tile, zoom_out)[:, None]
        for left, right in _spans(columns, tile):
            weights = (down * _weights(left, right, columns, tile, zoom_out)).to(x.device)
            part = x[..., top * zoom_in : bottom * zoom_in, left * zoom_in : right * zoom_in]
            onto = result[..., top * zoom_out : bottom * zoom_out, left * zoom_out : right * zoom_out]
            start = 0
            for piece in run(part):
                frames = piece.shape[2]
                onto[:, :, start : start + frames] += (piece.float() * weights).to(result.device, result.dtype)
                start += frames


def _spans(length: int, tile: int) -> Iterator[tuple[int, int]]:
    """Where tiles begin and end; the last one, which may be shorter, has more than its neighbour has seen already."""
    overlap = tile - stride_of(tile)
    for start in range(0, max(length - overlap, 1), stride_of(tile)):
        yield start, min(start + tile, length)


def _weights(start: int, end: int, length: int, tile: int, zoom: int) -> Tensor:
    """How much a tile counts along one axis: those of neighbours add up to 1."""
    weights = torch.ones((end - start) * zoom)
    shared = (tile - stride_of(tile)) * zoom
    rising = torch.arange(shared) / shared
    if start > 0:
        weights[:shared] = rising
    if end < length:
        weights[-shared:] = 1 - rising
    return weights
