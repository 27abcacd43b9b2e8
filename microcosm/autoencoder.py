"""Fits the autoencoder's linear transform: `python -m microcosm.autoencoder basis`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor
from torch.nn import functional as F

from cosmorama.world.microcosm.autoencoder import FRAMES_PER_LATENT, VideoAutoencoder, to_blocks
from microcosm.dataset import DATA, read_shards

RUNS = Path("microcosm-runs")
app = typer.Typer(help=__doc__)


@app.callback()
def _commands() -> None:
    """Keep sub-commands."""


def to_float(frames: np.ndarray) -> Tensor:
    """uint8 [N, T, h, w, 3] to float [N, 3, T, h, w] in [-1, 1]."""
    return torch.from_numpy(frames).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def sample_blocks(folder: Path, seed: int = 0, per_clip: int = 1500, stills: int = 4000) -> Tensor:
    """Blocks [n, 1536] of stills (eight equal frames) and of clips at random offsets in place and time, half each."""
    rng = np.random.default_rng(seed)
    blocks = []
    for arrays, _ in read_shards("images", folder):
        for name in arrays.files:
            frames = to_float(arrays[name][: stills // 20])
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
    height, width = ((side - spare) // 8 * 8 for side in frames.shape[-2:])
    blocks = to_blocks(frames[..., top : top + height, left : left + width]).flatten(0, 3)
    keep = blocks.std(1) > 0.02  # a flat block teaches nothing beyond its mean color
    flat = blocks[~keep][:: max(1, int((~keep).sum()) // max(1, int(keep.sum()) // 4))]
    return torch.cat([blocks[keep], flat])


@app.command()
def basis(
    data: Annotated[Path, typer.Option()] = DATA,
    runs: Annotated[Path, typer.Option()] = RUNS,
    channels: int = 64,
) -> None:
    """Fit the linear transform and its scale."""
    blocks = sample_blocks(data)
    mean = blocks.mean(0)
    covariance = torch.zeros(blocks.shape[1], blocks.shape[1])
    for part in blocks.split(20_000):
        covariance += (part - mean).T @ (part - mean)
    energies, vectors = torch.linalg.eigh(covariance.double() / len(blocks))
    model = VideoAutoencoder(channels=channels)
    with torch.no_grad():
        model.basis.copy_(vectors[:, -channels:].flip(1).T)
        model.mean.copy_(mean)
        model.scaling_factor.copy_(1 / model.encode_blocks(blocks[::50][None, :, None, None]).std())
    kept = float(energies[-channels:].sum() / energies.sum())
    residual = float(energies[:-channels].sum() / blocks.shape[1])
    print(f"{len(blocks)} blocks, {kept:.4%} of the energy kept, {10 * np.log10(4 / residual):.1f} dB, ", end="")
    print(f"scale {float(model.scaling_factor):.4f}")
    model.save_pretrained(runs / "vae")


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of signals in [-1, 1]."""
    return float(-10 * torch.log10(F.mse_loss(a, b) / 4))


if __name__ == "__main__":
    app()
