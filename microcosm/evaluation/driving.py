"""Does a drive show what its prompt says? Read off by the corridor's probe, and its speed off its motion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cosmorama.text.language import SPEED_WORDS, SPEEDS, Corridor
from cosmorama.world.microcosm.odometry import FOV_DEG, HALF_WIDTH_M
from microcosm.evaluation.adherence import CLIP_FRAMES, MIDDLE
from microcosm.evaluation.figures import Figure
from microcosm.evaluation.heldout import HeldOut, deranged, real_clips
from microcosm.evaluation.probe import ANSWERS, CorridorProbe, classes
from microcosm.evaluation.rollouts import Job, draw_all
from microcosm.scenes.dataset import CLIP_FRAMES as LONGEST
from microcosm.scenes.simulate import Frames

FPS = 24
_EYE_M = 1.27  # above the floor
_MARGIN_PX = 3
_SMOOTHED = 2  # times
_LIMITS = {"shelves": (85, 95), "boxes": (85, 95), "floor": (90, 99), "light": (95, 99), "ahead": (75, 90)}
_NAMES = {
    "shelves": "color of the shelves",
    "boxes": "color of the boxes",
    "ahead": "what is ahead, by color, or nothing",
}


def measure(
    weights: Path, probe: CorridorProbe, held: Sequence[HeldOut[Corridor]], processes: int
) -> tuple[list[Figure], list[Frames]]:
    """The figures, and the clips of 33 frames that they were measured on."""
    jobs = [Job(one.prompt, CLIP_FRAMES, one.shot.seed) for one in held]
    drawn = draw_all(weights, jobs, "drives", processes)
    real = real_clips(held, CLIP_FRAMES, processes)
    return [*seen_figures(probe, drawn, real, held), *speed_figures(drawn, real, held)], drawn


def draw_long(weights: Path, held: Sequence[HeldOut[Corridor]], processes: int) -> list[Frames]:
    """Drives of full length."""
    return draw_all(weights, [Job(one.prompt, LONGEST, one.shot.seed) for one in held], "long drives", processes)


def seen_figures(
    probe: CorridorProbe, drawn: Sequence[Frames], real: Sequence[Frames], held: Sequence[HeldOut[Corridor]]
) -> list[Figure]:
    """How often the answers that the probe reads off the middle of the clips are those of the prompts."""
    scenes = [one.scene for one in held]

    def shares(clips: Sequence[Frames], wanted: Sequence[Corridor]) -> Tensor:
        right = torch.tensor([classes(scene) for scene in wanted])
        return 100 * (probe.look(np.stack([clip[MIDDLE] for clip in clips])) == right).float().mean(0)

    ours, theirs, chance = shares(drawn, scenes), shares(real, scenes), shares(drawn, deranged(scenes))
    return [
        Figure(
            f"corridor: {_NAMES.get(name, name)}",
            float(ours[index]),
            *_LIMITS[name],
            "%",
            bounds={"real frames": float(theirs[index]), "shuffled": float(chance[index])},
            note=f"{len(held)} clips of 33 frames",
        )
        for index, name in enumerate(ANSWERS)
    ]


def speed_figures(drawn: Sequence[Frames], real: Sequence[Frames], held: Sequence[HeldOut[Corridor]]) -> list[Figure]:
    """Of drives whose prompts say how fast: how often a fast one is faster than a slow one, and how fast they are."""
    said = [index for index, one in enumerate(held) if says_speed(one.prompt)]
    scenes = [held[index].scene for index in said]
    ours, theirs = (np.array([speed_m_s(clips[index], FPS) for index in said]) for clips in (drawn, real))

    def ordered(speeds: NDArray[np.float64], wanted: Sequence[Corridor]) -> float:
        fast = np.array([scene.speed == "fast" for scene in wanted])
        return 100 * float((speeds[fast][:, None] > speeds[~fast]).mean())

    bounds = {"real frames": ordered(theirs, scenes), "shuffled": ordered(ours, deranged(scenes))}
    note = f"{len(said)} clips"
    pairs = Figure("corridor: fast is faster than slow", ordered(ours, scenes), 80, 95, "%", bounds=bounds, note=note)
    bounds = {}
    for speed in SPEEDS:
        chosen = [scene.speed == speed for scene in scenes]
        bounds |= {f"{speed}, m/s": float(ours[chosen].mean()), f"{speed}, real": float(theirs[chosen].mean())}
    share = 100 * float(ours.mean() / theirs.mean())
    return [pairs, Figure("corridor: speed, of the real one", share, 70, 90, "%", bounds=bounds, note=note)]


def says_speed(prompt: str) -> bool:
    """Whether a prompt says how fast the camera drives."""
    return any(word in prompt.split() for words in SPEED_WORDS.values() for word in words)


def speed_m_s(clip: Frames, fps: float) -> float:
    """Forward speed of the camera in a clip uint8 [T, h, w, 3]; about 0 for a picture that stands still.

    Every pixel is taken for a point of the corridor's walls or floor, whose distances the simulator knows. Forward
    motion at v m/s then moves it away from the middle of the picture at v times a known speed, and v is the
    least-squares solution of the brightness constancy equation (Lucas and Kanade, 1981) over all pixels and frames.
    """
    light = _smooth(clip.astype(np.float64).mean(-1))
    now = (light[1:] + light[:-1]) / 2
    change = np.diff(light, axis=0) * fps
    down, right = np.gradient(now, axis=(1, 2))
    away_down, away_right = _flow(*clip.shape[1:3])
    along = away_down * down + away_right * right
    inner = (slice(None), slice(_MARGIN_PX, -_MARGIN_PX), slice(_MARGIN_PX, -_MARGIN_PX))
    along, change = along[inner], change[inner]
    return float(-(along * change).sum() / max(float((along**2).sum()), 1e-9))


def _flow(height: int, width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pixels per second (down, right), each [h, w], at 1 m/s."""
    focal_px = min(height, width) / 2 / math.tan(math.radians(FOV_DEG / 2))
    y, x = (np.arange(side)[:, None] - (side - 1) / 2 for side in (height, width))
    x = x.T
    nearness = np.maximum(np.abs(x) / HALF_WIDTH_M, y / _EYE_M) / focal_px  # one over the distance
    return y * nearness, x * nearness


def _smooth(light: NDArray[np.float64]) -> NDArray[np.float64]:
    for _ in range(_SMOOTHED):
        for axis in (1, 2):
            light = (np.roll(light, 1, axis) + 2 * light + np.roll(light, -1, axis)) / 4
    return light
