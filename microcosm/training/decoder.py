"""Trains what the linear decoder lacks: `python -m microcosm.training.decoder` (resumable; the latent space stays as it
is).

First the refiner, at one eighth of the output size, on groups of eight frames: it takes away the block transform's
seams and ghosts, and those of slightly wrong latents, by way of noise added to them. Then, on top of it, the upsampler,
on crops of close-ups. Both minimise the squared error. Batch i follows from the seed and i, so a run that is stopped
and taken up again is the same run. Writes `RUNS/vae_decoder`, which `microcosm.export` prefers to `RUNS/vae`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F

from cosmorama.world.microcosm.autoencoder import (
    CELL,
    FRAMES_PER_LATENT,
    OUTPUT_SCALE,
    Refiner,
    Upsampler,
    VideoAutoencoder,
    to_blocks,
)
from microcosm.scenes.closeups import Closeup, read_closeups
from microcosm.scenes.dataset import DATA, read_shards
from microcosm.scenes.simulate import Frames
from microcosm.training.autoencoder import RUNS, to_float
from microcosm.training.loop import save

TRAINED = "vae_decoder"
STILL_SHARE = 0.25
CLEAN_SHARE = 0.3
LARGEST_NOISE = 0.12  # standard deviation of the noise on latents, whose own is 1 over all channels
_PATCH = 2  # the denoiser writes 2 x 2 latent cells at a time
_REFINER_CROP, _REFINER_BATCH = 48, 6
_UPSAMPLER_CROP, _UPSAMPLER_BATCH = 32, 6
_MARGIN = 4  # crops are filled up at their edges, so the outermost pixels bear no loss

Draw = Callable[[np.random.Generator], tuple[Tensor, Tensor]]
"""The inputs of a batch and what is wanted."""


def encode_group(vae: VideoAutoencoder, frames: Tensor) -> Tensor:
    """Any eight consecutive frames [B, 3, 8, h, w] as one latent frame [B, C, 1, H, W], H and W even."""
    height, width = (2 * CELL * -(-side // (2 * CELL)) for side in frames.shape[-2:])
    pad = (0, width - frames.shape[-1], 0, height - frames.shape[-2], 0, 0)
    return vae.encode_blocks(to_blocks(F.pad(frames, pad, mode="replicate")))


def disturb(latents: Tensor, rng: np.random.Generator) -> Tensor:
    """Latents [B, C, 1, H, W] as a denoiser might have made them: each with noise of its own level, or with none.

    Half of the variance is common to the 2 x 2 cells that the denoiser makes at a time: its seams lie between those.
    """
    count = len(latents)
    levels = LARGEST_NOISE * rng.random(count) * (rng.random(count) > CLEAN_SHARE)
    coarse = (*latents.shape[:3], *(-(-side // _PATCH) for side in latents.shape[3:]))
    common = rng.standard_normal(coarse).repeat(_PATCH, 3).repeat(_PATCH, 4)
    noise = common[..., : latents.shape[3], : latents.shape[4]] + rng.standard_normal(latents.shape)
    return latents + torch.from_numpy(noise * levels.reshape(-1, 1, 1, 1, 1) / math.sqrt(2)).float()


def refiner_batches(vae: VideoAutoencoder, clips: Sequence[Frames]) -> Draw:
    """Batches of crops of eight frames: as the linear decoder shows them, and as they are ([B, 3, 8, s, s])."""

    def draw(rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        crops = torch.cat([_hard_crop(vae, clips[int(rng.integers(len(clips)))], rng) for _ in range(_REFINER_BATCH)])
        noisy = disturb(encode_group(vae, crops), rng)
        return vae.decode_linear(noisy, _REFINER_CROP, _REFINER_CROP), crops

    return draw


def _hard_crop(vae: VideoAutoencoder, clip: Frames, rng: np.random.Generator) -> Tensor:
    """[1, 3, 8, s, s]: of two crops of a clip [T, h, w, 3] the one that the linear decoder shows worse."""
    crops = []
    for _ in range(2):
        start = int(rng.integers(len(clip) - FRAMES_PER_LATENT + 1))
        row, column = (_corner(side, rng) for side in clip.shape[1:3])
        part = clip[start : start + FRAMES_PER_LATENT, row : row + _REFINER_CROP, column : column + _REFINER_CROP]
        if rng.random() < STILL_SHARE:
            part = part[:1].repeat(FRAMES_PER_LATENT, 0)
        crops.append(to_float(np.ascontiguousarray(part)[None]))
    both = torch.cat(crops)
    shown = vae.decode_linear(encode_group(vae, both), _REFINER_CROP, _REFINER_CROP)
    return both[(shown - both).square().mean((1, 2, 3, 4)).argmax()][None]


def _corner(side: int, rng: np.random.Generator) -> int:
    """Where a crop begins, on the grid of the denoiser's patches."""
    grid = _PATCH * CELL
    return grid * int(rng.integers((side - _REFINER_CROP) // grid + 1))


def upsampler_batches(vae: VideoAutoencoder, closeups: Sequence[Closeup]) -> Draw:
    """Batches of crops at both sizes: as decoded [B, 3, s, s], as rendered [B, 3, 8 s, 8 s]."""
    large = [one.large for one in closeups for _ in range(2)]
    with torch.no_grad():
        small = [decoded for one in closeups for decoded in (decode_one(vae, one), decode_one(vae, one, still=True))]

    def draw(rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        inputs, wanted = [], []
        for _ in range(_UPSAMPLER_BATCH):
            index = int(rng.integers(len(small)))
            row, column = (int(rng.integers(side - _UPSAMPLER_CROP + 1)) for side in small[index].shape[1:])
            size, scale = _UPSAMPLER_CROP, OUTPUT_SCALE
            inputs.append(small[index][:, row : row + size, column : column + size])
            part = large[index][scale * row : scale * (row + size), scale * column : scale * (column + size)]
            wanted.append(to_float(np.ascontiguousarray(part)[None, None])[0, :, 0])
        return torch.stack(inputs), torch.stack(wanted)

    return draw


def decode_one(vae: VideoAutoencoder, closeup: Closeup, *, still: bool = False) -> Tensor:
    """The small frame [3, h, w] of a close-up that is also there large, encoded and decoded (`still`: on its own)."""
    frames = to_float(closeup.small[None])
    if still:
        frames = frames[:, :, closeup.which : closeup.which + 1].expand(-1, -1, FRAMES_PER_LATENT, -1, -1)
    return vae.decode_small(encode_group(vae, frames), *closeup.small.shape[1:3])[0, :, closeup.which]


def refiner_loss(refiner: Refiner, inputs: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error inside the crops."""
    return _inner_error(refiner(inputs), wanted, _MARGIN)


def upsampler_loss(upsampler: Upsampler, inputs: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error inside the crops."""
    return _inner_error(upsampler.enlarge(inputs), wanted, _MARGIN * OUTPUT_SCALE)


def _inner_error(made: Tensor, wanted: Tensor, margin: int) -> Tensor:
    inner = (..., slice(margin, -margin), slice(margin, -margin))
    return F.mse_loss(made[inner], wanted[inner])


@dataclass(frozen=True, slots=True)
class Plan:
    """How one part is trained."""

    steps: int
    rate: float
    seed: int
    checkpoint: Path


def train(
    net: Any, draw: Draw, loss_of: Callable[[Any, Tensor, Tensor], Tensor], plan: Plan, stop: int | None = None
) -> None:
    """Train one part, from its checkpoint if there is one; Adam, the rate falls to 0 as a half cosine.

    `stop` ends earlier than planned, to be taken up again.
    """
    optimizer = torch.optim.Adam(net.parameters(), plan.rate, betas=(0.9, 0.99))
    step = 0
    if plan.checkpoint.exists():
        state = torch.load(plan.checkpoint, weights_only=True)
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    saved, recent = time.monotonic(), math.nan
    end = plan.steps if stop is None else stop
    for index in track(range(step, end), plan.checkpoint.stem):
        for group in optimizer.param_groups:
            group["lr"] = plan.rate * min(1.0, (index + 1) / 50, 0.5 + 0.5 * math.cos(math.pi * index / plan.steps))
        inputs, wanted = draw(np.random.default_rng((plan.seed, index)))
        loss = loss_of(net, inputs, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recent = loss.item() if math.isnan(recent) else 0.98 * recent + 0.02 * loss.item()
        if time.monotonic() > saved + 30 or index == end - 1:
            state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "step": index + 1}
            save(plan.checkpoint, state)
            saved = time.monotonic()
            print(f"{plan.checkpoint.stem} step {index + 1}: {-10 * math.log10(recent / 4):.2f} dB", flush=True)


def load_clips(folder: Path, shards: int) -> list[Frames]:
    """The clips of the first shards of 33 frames, all frame sizes: uint8 [33, h, w, 3] each."""
    found: list[Frames] = []
    for number, (arrays, _) in enumerate(read_shards("shorts", folder)):
        if number == shards:
            break
        found += [clip for name in arrays.files for clip in arrays[name]]
    return found


def main(
    data: Annotated[Path, typer.Option()] = DATA,
    runs: Annotated[Path, typer.Option()] = RUNS,
    refiner_width: Annotated[int, typer.Option(help="0 leaves the refiner out.")] = 48,
    upsampler_width: Annotated[int, typer.Option(help="0 leaves the upsampler out.")] = 48,
    refiner_steps: int = 3000,
    upsampler_steps: int = 3000,
    shards: Annotated[int, typer.Option(help="Shards of short clips to train the refiner on.")] = 6,
    seed: int = 0,
) -> None:
    """Train both parts and write the autoencoder."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    vae = VideoAutoencoder.from_pretrained(runs / "vae")
    if refiner_width:
        refiner = Refiner(refiner_width)
        plan = Plan(refiner_steps, 1.5e-3, seed, runs / f"refiner-{refiner_width}.pt")
        train(refiner, refiner_batches(vae, load_clips(data, shards)), refiner_loss, plan)
        vae.refiner = refiner.eval().requires_grad_(False)
    if upsampler_width:
        upsampler = Upsampler(upsampler_width)
        plan = Plan(upsampler_steps, 1.5e-3, seed, runs / f"upsampler-{refiner_width}-{upsampler_width}.pt")
        train(upsampler, upsampler_batches(vae, read_closeups(data)), upsampler_loss, plan)
        vae.upsampler = upsampler.eval().requires_grad_(False)
    vae.config.update(refiner_width=refiner_width, upsampler_width=upsampler_width)
    vae.save_pretrained(runs / TRAINED)
    print(runs / TRAINED)


if __name__ == "__main__":
    typer.run(main)
