"""The worlds by name: what is drawn from a seed in each, and its frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from cosmorama.text.language import Corridor, Scene, SceneObject, canonical_caption, corridor_caption
from microcosm.scenes.corridor import Drive, draw_drive, render_drive
from microcosm.scenes.simulate import Frames, Shot, draw_shot, render
from microcosm.scenes.steered import Steered, draw_steered

World = Literal["objects", "corridor", "steered"]
AnyScene = Scene | Corridor
AnyShot = Shot | Drive | Steered
DRAW: dict[World, Callable[[int], AnyShot]] = {"objects": draw_shot, "corridor": draw_drive, "steered": draw_steered}


def frames_of(shot: AnyShot, times_s: Sequence[float], scale: int = 1) -> Frames:
    """Frames of a shot at increasing times; see `simulate.render`. Of a steered drive, as many frames."""
    if isinstance(shot, Steered):
        return shot.frames(slice(len(times_s)), scale)
    return render_drive(shot, times_s, scale=scale) if isinstance(shot, Drive) else render(shot, times_s, scale=scale)


def caption_of(scene: AnyScene) -> str:
    """The canonical wording of a scene."""
    return corridor_caption(scene) if isinstance(scene, Corridor) else canonical_caption(scene)


def world_of(scene: AnyScene) -> World:
    """Which world a scene is of."""
    return "corridor" if isinstance(scene, Corridor) else "objects"


def scene_from_json(value: dict[str, Any]) -> AnyScene:
    """The inverse of `dataclasses.asdict` for a scene."""
    if "shelves" in value:
        return Corridor(**{**value, "ahead": None if value["ahead"] is None else SceneObject(**value["ahead"])})
    return Scene(**{**value, "objects": tuple(SceneObject(**thing) for thing in value["objects"])})
