"""Does a clip show what its prompt says? Read off by the probe, on stills and on short clips from text alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cosmorama.text.language import Direction, Scene
from microcosm.evaluation.crispness import sharpness_figure
from microcosm.evaluation.figures import Figure
from microcosm.evaluation.heldout import HeldOut, deranged, held_out, real_clips
from microcosm.evaluation.probe import Probe, Sight
from microcosm.evaluation.rollouts import Job, draw_all
from microcosm.evaluation.tracking import direction, track_color
from microcosm.scenes.simulate import Frames

CLIP_FRAMES = 33
LATE = 24  # the frame at whose outlines one looks: what has moved for a second
MIDDLE = 12  # the frame of a clip that the probe looks at: half a second in, everything is under way
_LIMITS = {
    "main color": (85, 95, 40),
    "main shape": (75, 90, 40),
    "floor": (95, 99, 40),
    # Chance gets every second of these right, so that 40 points are more than the must leaves.
    "count of objects": (70, 90, 20),
    "motion direction": (80, 95, 30),
}
"""Least, goal, and by how many points the answers must fall when the captions are shuffled."""


class Pictures(NamedTuple):
    """What was drawn for the prompts, the real frames, and the scenes that both should show."""

    drawn: list[Sight]
    real: list[Sight]
    scenes: list[Scene]


def color_right(sight: Sight, scene: Scene) -> bool:
    """Whether an object of the main object's color is there, or is the surest one if none is sure."""
    color = scene.objects[0].color
    return color in sight.shapes or color == sight.main[0]


def shape_right(sight: Sight, scene: Scene) -> bool:
    """Whether the object of the main object's color has its shape; the surest object, if that color is not there."""
    thing = scene.objects[0]
    return sight.shapes.get(thing.color, sight.main[1]) == thing.shape


def floor_right(sight: Sight, scene: Scene) -> bool:
    """Whether the floor is the scene's."""
    return sight.floor == scene.floor


def count_right(sight: Sight, scene: Scene) -> bool:
    """Whether as many objects are there as in the scene."""
    return len(sight.shapes) == len(scene.objects)


_SIDE = re.compile(r"\b(left|right)", re.IGNORECASE)
"""Of a wording that says where something goes; "a ball hits a cube" may go either way."""
MEASURES: dict[str, Callable[[Sight, Any], bool]] = {
    "main color": color_right,
    "main shape": shape_right,
    "floor": floor_right,
    "count of objects": count_right,
}


def still_prompts(count: int) -> list[HeldOut[Scene]]:
    """Held-out scenes, in turn with one object and with two."""
    single = held_out(count - count // 2, lambda scene: len(scene.objects) == 1)
    double = held_out(count // 2, lambda scene: len(scene.objects) == 2)
    return _in_turn(single, double)


def clip_prompts(count: int) -> list[HeldOut[Scene]]:
    """Held-out scenes, two of three of them with a direction; none that a still was drawn from, up to 100 stills."""
    directed = held_out(count - count // 3, lambda scene: scene.direction is not None, skip=100)
    others = held_out(count // 3, lambda scene: scene.direction is None, skip=100)
    return _in_turn(directed, others)


def _in_turn(first: Sequence[HeldOut[Scene]], second: Sequence[HeldOut[Scene]]) -> list[HeldOut[Scene]]:
    """Both lists evenly mixed, each in its order."""
    places = [((index + 0.5) / len(part), one) for part in (first, second) for index, one in enumerate(part)]
    return [one for _, one in sorted(places, key=lambda place: place[0])]


def measure(
    weights: Path, probe: Probe, stills: Sequence[HeldOut[Scene]], clips: Sequence[HeldOut[Scene]], processes: int
) -> tuple[list[Figure], list[Frames], list[Frames]]:
    """The figures, the stills [1, h, w, 3] and the clips that they were measured on."""
    seeds = [shot.shot.seed for shot in stills]
    pictures = draw_all(
        weights, [Job(one.prompt, 1, seed) for one, seed in zip(stills, seeds, strict=True)], "stills", processes
    )
    drawn = draw_all(
        weights, [Job(one.prompt, CLIP_FRAMES, one.shot.seed) for one in clips], "33-frame clips", processes
    )
    real = real_clips(clips, CLIP_FRAMES, processes)
    shown = np.stack([picture[0] for picture in pictures] + [clip[MIDDLE] for clip in drawn])
    true = np.stack([one.frame(MIDDLE) for one in stills] + [clip[MIDDLE] for clip in real])
    held = [*stills, *clips]
    seen = Pictures(probe.look(shown), probe.look(true), [one.scene for one in held])
    figures = [_figure(name, seen, [one.canonical for one in held]) for name in MEASURES]
    moving = [index for index, one in enumerate(clips) if one.scene.direction and _SIDE.search(one.prompt)]
    if moving:
        ours, theirs = ([some[index] for index in moving] for some in (drawn, real))
        figures.append(direction_figure(ours, theirs, [clips[index] for index in moving]))
    late = [np.stack([clip[LATE] for clip in some]) for some in (drawn, real)]
    edges = sharpness_figure(late[0], late[1], "clips a second on")
    return [*figures, *(_gap(figure) for figure in figures), edges], pictures, drawn


def _figure(name: str, seen: Pictures, canonical: Sequence[bool]) -> Figure:
    right = MEASURES[name]
    hits = np.array([right(sight, scene) for sight, scene in zip(seen.drawn, seen.scenes, strict=True)])
    plain = np.array(canonical)
    bounds = {
        "real frames": _share(right, seen.real, seen.scenes),
        "shuffled": _share(right, seen.drawn, deranged(seen.scenes)),
        "canonical": 100 * float(hits[plain].mean()),
        "other wordings": 100 * float(hits[~plain].mean()) if (~plain).any() else float("nan"),
    }
    must, goal, _ = _LIMITS[name]
    return Figure(name, 100 * float(hits.mean()), must, goal, "%", bounds=bounds, note=f"{len(hits)} prompts")


def _share(right: Callable[[Sight, Scene], bool], sights: Sequence[Sight], scenes: Sequence[Scene]) -> float:
    return 100 * float(np.mean([right(sight, scene) for sight, scene in zip(sights, scenes, strict=True)]))


def direction_figure(drawn: Sequence[Frames], real: Sequence[Frames], held: Sequence[HeldOut[Scene]]) -> Figure:
    """How often the main object, found by its color, goes where the prompt says; shuffled: of scenes that all move."""
    scenes = [one.scene for one in held]

    def found(clips: Sequence[Frames]) -> list[Direction | None]:
        return [direction(track_color(clip, one.objects[0].color)) for clip, one in zip(clips, scenes, strict=True)]

    def share(ways: Sequence[Direction | None], wanted: Sequence[Scene]) -> float:
        return 100 * float(np.mean([way == scene.direction for way, scene in zip(ways, wanted, strict=True)]))

    ways = found(drawn)
    bounds = {"real frames": share(found(real), scenes), "shuffled": share(ways, deranged(scenes))}
    must, goal, _ = _LIMITS["motion direction"]
    return Figure(
        "motion direction", share(ways, scenes), must, goal, "%", bounds=bounds, note=f"{len(held)} clips of 33 frames"
    )


def _gap(figure: Figure) -> Figure:
    least = _LIMITS[figure.name][2]
    gap = figure.value - figure.bounds["shuffled"]
    return Figure(f"{figure.name}: above shuffled prompts", gap, least, least, "points", note=figure.note)
