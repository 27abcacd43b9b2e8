"""Does a drive show what its prompt says? Read off by the corridor's probe, and its speed off its motion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cosmorama.text.corridor_language import SPEED_WORDS, Corridor, Speed
from microcosm.adherence import CLIP_FRAMES, MIDDLE
from microcosm.corridor import SPEED_M_S
from microcosm.corridor_probe import ANSWERS, CorridorProbe, classes
from microcosm.dataset import CLIP_FRAMES as LONGEST
from microcosm.egomotion import speed_m_s
from microcosm.figures import Figure
from microcosm.heldout import HeldOut, deranged, real_clips
from microcosm.rollouts import Job, draw_all
from microcosm.simulate import Frames

FPS = 24
_LIMITS = {"shelves": (85, 95), "boxes": (85, 95), "floor": (90, 99), "light": (95, 99), "ahead": (75, 90)}
_NAMES = {
    "shelves": "color of the shelves",
    "boxes": "color of the boxes",
    "ahead": "what is ahead, by color, or nothing",
}
_BETWEEN_M_S = (SPEED_M_S["slow"][1] + SPEED_M_S["fast"][0]) / 2
_LEAST_M_S = SPEED_M_S["slow"][0] / 2  # less is standing still


def measure(
    weights: Path, probe: CorridorProbe, held: Sequence[HeldOut[Corridor]], processes: int
) -> tuple[list[Figure], list[Frames]]:
    """The figures, and the clips of 33 frames that they were measured on."""
    jobs = [Job(one.prompt, CLIP_FRAMES, one.shot.seed) for one in held]
    drawn = draw_all(weights, jobs, "drives", processes)
    real = real_clips(held, CLIP_FRAMES, processes)
    return [*seen_figures(probe, drawn, real, held), speed_figure(drawn, real, held)], drawn


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


def speed_of(clip: Frames) -> Speed | None:
    """Slow or fast, or None for a camera that does not drive forward."""
    speed = speed_m_s(clip, FPS)
    if speed < _LEAST_M_S:
        return None
    return "fast" if speed > _BETWEEN_M_S else "slow"


def speed_figure(drawn: Sequence[Frames], real: Sequence[Frames], held: Sequence[HeldOut[Corridor]]) -> Figure:
    """How often the camera drives forward, slowly or quickly as the prompt says; of those prompts that say it."""
    said = [index for index, one in enumerate(held) if says_speed(one.prompt)]
    scenes = [held[index].scene for index in said]

    def share(clips: Sequence[Frames], wanted: Sequence[Corridor]) -> float:
        speeds = [speed_of(clips[index]) for index in said]
        return 100 * float(np.mean([speed == scene.speed for speed, scene in zip(speeds, wanted, strict=True)]))

    bounds = {"real frames": share(real, scenes), "shuffled": share(drawn, deranged(scenes))}
    forward = 100 * float(np.mean([speed_of(clip) is not None for clip in drawn]))
    bounds["drives forward"] = forward
    return Figure(
        "corridor: forward, slowly or quickly",
        share(drawn, scenes),
        80,
        95,
        "%",
        bounds=bounds,
        note=f"{len(said)} clips",
    )


def says_speed(prompt: str) -> bool:
    """Whether a prompt says how fast the camera drives."""
    return any(word in prompt.split() for words in SPEED_WORDS.values() for word in words)
