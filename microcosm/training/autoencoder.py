"""Fits the autoencoder's linear transform: `python -m microcosm.training.autoencoder`.

The first components are the principal ones of all blocks, most of which stand still. What those leave of the blocks in
which something moves has components of its own: they are few, so a common fit would hardly see them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cosmorama.world.microcosm.autoencoder import CELL, FRAMES_PER_LATENT, VideoAutoencoder, to_blocks
from microcosm.scenes.dataset import DATA, read_shards

RUNS = Path("microcosm-runs")
MOVES = 0.15  # of a range of 2, by which some pixel of a block changes


def to_float(frames: np.ndarray) -> Tensor:
    """uint8 [N, T, h, w, 3] to float [N, 3, T, h, w] in [-1, 1]."""
    return torch.from_numpy(frames).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def to_uint8(frames: Tensor) -> NDArray[np.uint8]:
    """Float [B, 3, T, h, w] in [-1, 1] to uint8 [B, T, h, w, 3]."""
    pixels: NDArray[np.uint8] = (frames * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1).numpy()
    return pixels


def sample_blocks(folder: Path, seed: int = 0, stills: int = 200) -> Tensor:
    """Blocks [n, 1536] of stills (eight equal frames) and of clips at random offsets in place and time, half each."""
    rng = np.random.default_rng(seed)
    blocks = []
    for arrays, _ in read_shards("images", folder):
        for name in arrays.files:
            frames = to_float(arrays[name][:stills])
            blocks.append(_crops(frames.expand(-1, -1, FRAMES_PER_LATENT, -1, -1), rng, 4))
        if sum(map(len, blocks)) > 150_000:
            break
    for arrays, _ in read_shards("clips", folder):
        for name in arrays.files:
            for clip in arrays[name]:
                # Most of the motion is in the first two seconds.
                starts = rng.integers(1, 60, 3)
                windows = np.stack([clip[start : start + FRAMES_PER_LATENT] for start in starts])
                blocks.append(_crops(to_float(windows), rng, 4))
        if sum(map(len, blocks)) > 350_000:
            break
    return torch.cat(blocks)


def _crops(frames: Tensor, rng: np.random.Generator, spare: int) -> Tensor:
    """Blocks on a randomly shifted grid, so that the basis does not learn where the grid lies."""
    top, left = rng.integers(0, spare + 1, 2)
    height, width = ((side - spare) // CELL * CELL for side in frames.shape[-2:])
    blocks = to_blocks(frames[..., top : top + height, left : left + width]).flatten(0, 3)
    keep = blocks.std(1) > 0.02  # a flat block teaches nothing beyond its mean color
    flat = blocks[~keep][:: max(1, int((~keep).sum()) // max(1, int(keep.sum()) // 4))]
    return torch.cat([blocks[keep], flat])


def moving_blocks(folder: Path, seed: int = 1, windows: int = 12) -> Tensor:
    """Blocks [n, 1536] of clips, from windows at random times of the first three seconds, in which something moves."""
    rng = np.random.default_rng(seed)
    found = []
    for kind, count in (("clips", windows), ("shorts", windows // 3)):
        for arrays, _ in read_shards(kind, folder):
            for clip in (clip for name in arrays.files for clip in arrays[name]):
                for start in rng.integers(1, min(72, len(clip) - FRAMES_PER_LATENT), count):
                    found.append(_moving(_crops(to_float(clip[start : start + FRAMES_PER_LATENT][None]), rng, 4)))
    return torch.cat(found)


def _moving(blocks: Tensor) -> Tensor:
    frames = blocks.unflatten(1, (3, FRAMES_PER_LATENT, -1))
    return blocks[(frames.amax(2) - frames.amin(2)).amax((1, 2)) > MOVES]


def principal(blocks: Tensor, count: int) -> Tensor:
    """The `count` leading principal components [count, D] of centred blocks [n, D], the main one first."""
    covariance = torch.zeros(blocks.shape[1], blocks.shape[1])
    for part in blocks.split(20_000):
        covariance += part.T @ part
    _, vectors = torch.linalg.eigh(covariance.double() / len(blocks))
    return cast(Tensor, vectors[:, -count:].flip(1).T.float())


def main(
    data: Annotated[Path, typer.Option()] = DATA,
    runs: Annotated[Path, typer.Option()] = RUNS,
    channels: int = 64,
    moving_channels: Annotated[int, typer.Option(help="More components, for what moves.")] = 96,
) -> None:
    """Fit the linear transform and its scale."""
    model = VideoAutoencoder(channels=channels + moving_channels)
    with torch.no_grad():
        blocks = sample_blocks(data)
        model.mean.copy_(blocks.mean(0))
        model.basis[:channels] = principal(blocks - model.mean, channels)
        model.scaling_factor.copy_(1 / ((blocks[::50] - model.mean) @ model.basis[:channels].T).std())
        main, moving = model.basis[:channels], moving_blocks(data) - model.mean
        model.basis[channels:] = principal(moving - (moving @ main.T) @ main, moving_channels)
        for count in (channels, channels + moving_channels):
            part = model.basis[:count]
            print(f"moving blocks with {count} components: {psnr(moving @ part.T @ part, moving):.1f} dB")
    model.save_pretrained(runs / "vae")


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of signals in [-1, 1]."""
    return float(-10 * torch.log10(F.mse_loss(a, b) / 4))


if __name__ == "__main__":
    typer.run(main)
