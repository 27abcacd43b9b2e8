"""The worlds by name: what is drawn from a seed in each, and its frames.

`python -m microcosm.scenes.shots objects OUT.png` draws a sheet of examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import typer
from PIL import Image

from cosmorama.text.language import Corridor, Scene, SceneObject, canonical_caption, corridor_caption
from microcosm.scenes.corridor import Drive, draw_drive, render_drive
from microcosm.scenes.simulate import SIZES, Frames, Shot, draw_shot, render
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


def main(world: World, out: Path, rows: int = 8, seed: int = 1) -> None:
    """Draw a sheet of 16:9 examples of a world."""
    shots = (shot for shot in map(DRAW[world], count(seed)) if shot.size_px == SIZES[0])
    strips = []
    for shot in islice(shots, rows):
        print(caption_of(shot.scene))
        strips.append(np.concatenate(list(frames_of(shot, [0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0])), axis=1))
    Image.fromarray(np.concatenate(strips)).save(out)


if __name__ == "__main__":
    typer.run(main)
