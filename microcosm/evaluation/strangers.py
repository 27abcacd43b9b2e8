"""A hundred prompts as a stranger types them, who knows the world from hearsay: does the picture show what they say?

`strangers.txt` has a prompt a line, then what must be seen: the objects, the floor and the direction, as far as the
prompt says them. It was written before anything was drawn from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from cosmorama.text.language import Color, Direction, Floor, SceneObject, Shape
from microcosm.evaluation.adherence import CLIP_FRAMES, MEASURES, MIDDLE
from microcosm.evaluation.figures import Figure
from microcosm.evaluation.probe import Probe, Sight
from microcosm.evaluation.rollouts import Job, draw_all
from microcosm.evaluation.tracking import direction, track_color
from microcosm.scenes.simulate import Frames

_LIMITS = {"main color": (95, 98), "main shape": (80, 95), "floor": (95, 98), "count of objects": (85, 95)}
_DIRECTION_LIMITS = (85, 95)


@dataclass(frozen=True, slots=True)
class Stranger:
    """A prompt, and what it asks for; None where it does not say."""

    prompt: str
    objects: tuple[SceneObject, ...]
    floor: Floor | None = None
    direction: Direction | None = None


def strangers() -> list[Stranger]:
    """All of them, in order."""
    return read_strangers(Path(__file__).with_suffix(".txt"))


def read_strangers(path: Path) -> list[Stranger]:
    """Those of a file, a line each."""
    return [_read(line) for line in path.read_text().splitlines()]


def _read(line: str) -> Stranger:
    prompt, things, *more = (part.strip() for part in line.split(" | "))
    objects = tuple(SceneObject(cast(Color, c), cast(Shape, s)) for c, s in map(str.split, things.split(", ")))
    said = dict(part.split() for part in more)
    return Stranger(prompt, objects, cast("Floor | None", said.get("floor")), cast("Direction | None", said.get(">")))


def measure(
    weights: Path, probe: Probe, wanted: Sequence[Stranger], processes: int
) -> tuple[list[Figure], list[Frames]]:
    """The figures, and the frames [h, w, 3] that they were read off, stills where no direction is asked for."""
    jobs = [Job(one.prompt, CLIP_FRAMES if one.direction else 1, seed) for seed, one in enumerate(wanted)]
    drawn = draw_all(weights, jobs, "strangers", processes)
    shown = [clip[MIDDLE] if len(clip) > 1 else clip[0] for clip in drawn]
    return [*seen_figures(probe.look(np.stack(shown)), wanted), *_direction_figures(drawn, wanted)], shown


def seen_figures(sights: Sequence[Sight], wanted: Sequence[Stranger]) -> list[Figure]:
    """How often what the probe sees is what was asked for."""
    figures = []
    for name, right in MEASURES.items():
        asked = [pair for pair in zip(sights, wanted, strict=True) if name != "floor" or pair[1].floor is not None]
        if asked:
            share = 100 * float(np.mean([right(*pair) for pair in asked]))
            figures.append(Figure(f"strangers: {name}", share, *_LIMITS[name], "%", note=f"{len(asked)} prompts"))
    return figures


def _direction_figures(drawn: Sequence[Frames], wanted: Sequence[Stranger]) -> list[Figure]:
    asked = [(clip, one) for clip, one in zip(drawn, wanted, strict=True) if one.direction is not None]
    if not asked:
        return []
    hits = [direction(track_color(clip, one.objects[0].color)) == one.direction for clip, one in asked]
    share = 100 * float(np.mean(hits))
    return [Figure("strangers: motion direction", share, *_DIRECTION_LIMITS, "%", note=f"{len(asked)} clips")]
