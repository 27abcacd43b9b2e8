"""Does a drive show what its prompt says? Read off by the corridor's probe, and its speed off its motion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cosmorama.text.language import SPEED_WORDS, SPEEDS, Corridor
from microcosm.evaluation.adherence import CLIP_FRAMES, MIDDLE
from microcosm.evaluation.corridor_probe import ANSWERS, CorridorProbe, classes
from microcosm.evaluation.egomotion import speed_m_s
from microcosm.evaluation.figures import Figure
from microcosm.evaluation.heldout import HeldOut, deranged, real_clips
from microcosm.evaluation.rollouts import Job, draw_all
from microcosm.scenes.dataset import CLIP_FRAMES as LONGEST
from microcosm.scenes.simulate import Frames

FPS = 24
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
