"""How a clip goes on from given frames, for 32 frames, against the real one; and whether objects stay in long clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cosmorama.text.language import Scene
from cosmorama.world.microcosm.autoencoder import VideoAutoencoder
from cosmorama.world.microcosm.loader import load_component
from microcosm.evaluation.figures import Figure
from microcosm.evaluation.heldout import HeldOut, real_clips
from microcosm.evaluation.rollouts import Job, draw_all
from microcosm.evaluation.tracking import persists, track_color
from microcosm.scenes.dataset import CLIP_FRAMES
from microcosm.scenes.simulate import Frames
from microcosm.training.autoencoder import psnr, to_float

HORIZON = 32
GIVEN = {"image2world": 1, "video2world": 9}
MOVING = 0.08  # a pixel that changes by more than this (of a range of 2) somewhere in the clip is a moving one


def moving_pixels(frames: Tensor) -> Tensor:
    """Bool [B, 1, 1, h, w]: pixels of clips [B, 3, T, h, w] that change during the clip."""
    return (frames.amax(2) - frames.amin(2)).amax(1)[:, None, None] > MOVING


def compare(frames: Tensor, other: Tensor) -> dict[str, float]:
    """PSNR in dB of two stacks of clips [B, 3, T, h, w]: over all pixels and over the moving ones of the first."""
    moving = moving_pixels(frames).expand_as(frames)
    return {"all": psnr(frames, other), "moving": psnr(frames[moving], other[moving])}


def reconstruct(vae: VideoAutoencoder, frames: Tensor) -> Tensor:
    """Clips [B, 3, 8k + 1, h, w] encoded and decoded at one eighth of the output size."""
    with torch.inference_mode():
        decoded = [vae.decode_small(vae.encode_small(one[None]), *frames.shape[3:]) for one in frames]
    return torch.cat(decoded)[:, :, 7:].clamp(-1, 1)


def measure(
    weights: Path, mode: str, held: Sequence[HeldOut[Any]], processes: int, world: str = ""
) -> tuple[list[Figure], list[tuple[Frames, Frames]]]:
    """The figures of image2world or video2world, named after their `world`, and (real, drawn) clips."""
    given = GIVEN[mode]
    real = real_clips(held, given + HORIZON, processes)
    jobs = [Job(one.prompt, given + HORIZON, one.shot.seed, clip[:given]) for one, clip in zip(held, real, strict=True)]
    drawn = draw_all(weights, jobs, mode, processes)
    frames, made = to_float(np.stack(real)), to_float(np.stack(drawn))
    rest = frames[:, :, given:]
    ceiling = compare(rest, reconstruct(load_component(VideoAutoencoder, weights / "vae"), frames)[:, :, given:])
    copied = compare(rest, frames[:, :, given - 1 : given].expand_as(rest))
    return continuation_figures(world + mode, compare(rest, made[:, :, given:]), copied, ceiling, len(held)), list(
        zip(real, drawn, strict=True)
    )


def continuation_figures(
    mode: str, model: dict[str, float], copied: dict[str, float], ceiling: dict[str, float], clips: int
) -> list[Figure]:
    """From PSNRs over all and over moving pixels to what is gained over copying the last given frame."""
    figures = []
    for pixels, must, goal in (("all", 3, 6), ("moving", 2, 4)):
        bounds = {"model": model[pixels], "copy": copied[pixels], "autoencoder": ceiling[pixels]}
        name = f"{mode}, 32 frames on: over copying, {pixels} pixels"
        gain = model[pixels] - copied[pixels]
        figures.append(Figure(name, gain, must, goal, "dB", bounds=bounds, note=f"{clips} clips"))
    ways = {pixels: 100 * (model[pixels] - copied[pixels]) / (ceiling[pixels] - copied[pixels]) for pixels in model}
    way = Figure(
        f"{mode}: way from copying to the autoencoder's ceiling",
        ways["all"],
        35,
        60,
        "%",
        bounds={"moving pixels": ways["moving"]},
        note=f"{clips} clips, all pixels",
    )
    return [*figures, way]


def measure_persistence(
    weights: Path, held: Sequence[HeldOut[Scene]], processes: int
) -> tuple[list[Figure], list[tuple[Frames, Frames]]]:
    """Whether the main object stays, in clips of full length from text alone; and (real, drawn) clips."""
    jobs = [Job(one.prompt, CLIP_FRAMES, one.shot.seed) for one in held]
    drawn = draw_all(weights, jobs, "121-frame clips", processes)
    real = real_clips(held, CLIP_FRAMES, processes)
    return [persistence_figure(drawn, real, held)], list(zip(real, drawn, strict=True))


def persistence_figure(drawn: Sequence[Frames], real: Sequence[Frames], held: Sequence[HeldOut[Scene]]) -> Figure:
    """Share of clips whose main object is there, in its color, in every frame that should show it."""
    kept, kept_real = (
        [persists(track_color(clip, one.scene.objects[0].color)) for clip, one in zip(clips, held, strict=True)]
        for clips in (drawn, real)
    )
    bounds = {
        "real clips": 100 * float(np.mean([frames.all() for frames in kept_real])),
        "share of frames": 100 * float(np.mean(np.concatenate(kept))),
        "share of real frames": 100 * float(np.mean(np.concatenate(kept_real))),
    }
    whole = 100 * float(np.mean([frames.all() for frames in kept]))
    return Figure("object persists over 121 frames", whole, 85, 97, "%", bounds=bounds, note=f"{len(held)} clips")
