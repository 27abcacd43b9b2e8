"""What approximate savings cost and gain: quality and speed of each against exact output, on held-out scenes.

Every clip is made exactly and with every saving in one run, in turn, so that all meet the same load of the machine.
Times are seconds of CPU time of sampling and decoding, on one thread. Prompts, pictures and clips are held-out scenes
of the simulator (`pip install -e ".[train]"`), a third each for text2world, image2world and video2world.

    python benchmarks/reuse.py            # 33 frames, a table in Markdown
    python benchmarks/reuse.py --full     # the API's default, 121 frames
    python benchmarks/reuse.py --json

PSNR and SSIM compare the frames with those of the exact output, in uint8. The motion ratio is the mean squared
difference of successive frames, summed over all clips, divided by that of the exact output: 1 means that as much moves.
`steps_200` is PSNR against the default solver at 200 steps instead of against the default request.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from cosmorama.engine.prepare import PreparedRequest
from cosmorama.engine.rollout import Rollout
from cosmorama.request import GenerationRequest
from cosmorama.resolve import resolve
from cosmorama.world.base import World
from cosmorama.world.registry import load_world
from microcosm.evaluation.heldout import held_out

Clip = NDArray[np.uint8]
Casting = Callable[[Any], AbstractContextManager[None]]
GIVEN = (0, 1, 9)
"""Conditioning frames of text2world, image2world and video2world."""
SSIM_EVERY = 8
"""SSIM looks at every so many frames: the others tell the same."""


@dataclass(frozen=True, slots=True)
class Saving:
    """A saving by its name and what it changes in the request, or in the model."""

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    model: Casting | None = None


@dataclass(frozen=True, slots=True)
class Made:
    """A clip, and what it took."""

    frames: Clip
    cpu_s: float
    evaluations: int


def savings() -> Iterator[Saving]:
    """What is measured, the exact one first."""
    yield Saving("exact")
    for threshold in (0.02, 0.04, 0.06, 0.1, 0.15):
        yield Saving(f"reuse {threshold:g}", {"reuse": threshold})
    for interval in ((0.0, 0.7), (0.0, 0.5)):
        yield Saving(f"guidance_interval {interval[0]:g}-{interval[1]:g}", {"guidance_interval": interval})
    for solver in ("euler", "unipc", "dpmpp_2m"):
        for steps in (20, 15, 10):
            yield Saving(f"{solver}, {steps} steps", {"solver": solver, "steps": steps})
    yield Saving("bfloat16", model=bfloat16)
    if find_spec("torchao"):
        yield Saving("int8", model=int8)


@contextmanager
def bfloat16(world: Any) -> Iterator[None]:
    """The denoiser's matrix products in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16):
        yield


@contextmanager
def int8(world: Any) -> Iterator[None]:
    """The denoiser's linear layers with int8 weights and activations quantized as they come (torchao)."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    exact = world.transformer
    world.transformer = copy.deepcopy(exact)
    quantize_(world.transformer, Int8DynamicActivationInt8WeightConfig())
    try:
        yield
    finally:
        world.transformer = exact


def cases(world: World, clips: int, frames: int) -> list[PreparedRequest]:
    """Held-out requests, the three modes in turn."""
    found = []
    for number, shot in enumerate(held_out(clips)):
        given = GIVEN[number % len(GIVEN)]
        request = GenerationRequest(prompt=shot.prompt, prompt_upsampling=False, frames=frames, seed=number, reuse=0)
        start = shot.frames(given) if given else None
        found.append(PreparedRequest(resolve(request, world.capabilities), shot.prompt, start))
    return found


def make(world: World, prepared: PreparedRequest, saving: Saving) -> Made:
    """One clip."""
    request = replace(prepared.request, **saving.changes)
    with saving.model(world) if saving.model else nullcontext():
        start = time.process_time()
        rollout = Rollout(world, replace(prepared, request=request))
        while not rollout.done:
            rollout.advance()
        frames = np.concatenate(list(rollout.decode()))
        return Made(frames, time.process_time() - start, rollout.evaluations)


def psnr(clip: Clip, other: Clip) -> float:
    """In dB; 100 for equal clips."""
    error = statistics.fmean(float(((a.astype(np.float32) - b) ** 2).mean()) for a, b in zip(clip, other, strict=True))
    return min(100.0, 10 * math.log10(255**2 / max(error, 1e-12)))


def ssim(clip: Clip, other: Clip) -> float:
    """Structural similarity of luma in windows of 7 x 7 pixels (Wang et al. 2004; uniform windows)."""
    found = []
    for a, b in zip(clip[::SSIM_EVERY], other[::SSIM_EVERY], strict=True):
        x, y = (frame.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32) for frame in (a, b))
        mean_x, mean_y = uniform_filter(x, 7), uniform_filter(y, 7)
        var_x, var_y = uniform_filter(x * x, 7) - mean_x**2, uniform_filter(y * y, 7) - mean_y**2
        covariance = uniform_filter(x * y, 7) - mean_x * mean_y
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        score = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
        found.append(float((score / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean()))
    return statistics.fmean(found)


def motion(clip: Clip) -> float:
    """Mean squared difference of successive frames."""
    return statistics.fmean(float(((b.astype(np.float32) - a) ** 2).mean()) for a, b in pairwise(clip))


def measure(
    world: World, requests: Sequence[PreparedRequest], tried: Sequence[Saving], reference: bool
) -> list[dict[str, Any]]:
    """A row per saving."""
    taken: dict[str, list[dict[str, float]]] = {saving.name: [] for saving in tried}
    for prepared in requests:
        fine = make(world, prepared, Saving("200", {"steps": 200})).frames if reference else None
        exact: Made | None = None
        for saving in tried:
            made = make(world, prepared, saving)
            exact = exact or made
            row = {
                "cpu_s": made.cpu_s,
                "share": made.cpu_s / exact.cpu_s,
                "evaluations": made.evaluations,
                "psnr": psnr(exact.frames, made.frames),
                "ssim": ssim(exact.frames, made.frames),
                "motion": motion(made.frames),
            }
            if fine is not None:
                row["steps_200"] = psnr(fine, made.frames)
            taken[saving.name].append(row)
    return [summary(name, rows, taken["exact"]) for name, rows in taken.items()]


def summary(name: str, rows: Sequence[Mapping[str, float]], exact: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Medians over the clips, and the worst."""

    def median(column: str) -> float:
        return statistics.median(row[column] for row in rows)

    found: dict[str, Any] = {
        "saving": name,
        "speedup": round(1 / median("share"), 2),
        "evaluations": round(median("evaluations")),
        "cpu_s": round(median("cpu_s"), 2),
        "psnr": round(median("psnr"), 1),
        "psnr_worst": round(min(row["psnr"] for row in rows), 1),
        "ssim": round(median("ssim"), 4),
        "motion": round(sum(row["motion"] for row in rows) / sum(row["motion"] for row in exact), 3),
    }
    if "steps_200" in rows[0]:
        found["steps_200"] = round(median("steps_200"), 1)
    return found


def main() -> None:
    """Parse arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="microcosm")
    parser.add_argument("--clips", type=int, default=6, help="held-out scenes; the three modes in turn")
    parser.add_argument("--full", action="store_true", help="121 frames, the API's default, instead of 33")
    parser.add_argument("--only", default="", help="only savings whose name contains this")
    parser.add_argument("--reference", action="store_true", help="compare with 200 steps too")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    world = load_world(arguments.model)
    tried = [saving for saving in savings() if saving.name == "exact" or arguments.only in saving.name]
    requests = cases(world, arguments.clips, 121 if arguments.full else 33)
    rows = measure(world, requests, tried, arguments.reference)
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")


if __name__ == "__main__":
    main()
