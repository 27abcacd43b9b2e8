"""Microcosm's second world, in words: a camera that drives forward through a corridor of shelves and boxes.

Shared, like `scene_language`, by the simulator, the prompt upsampler and the captioner. Pure Python.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from cosmorama.text.scene_language import Color, Floor, SceneObject, article

Light = Literal["bright", "dim"]
Speed = Literal["slow", "fast"]

LIGHTS: tuple[Light, ...] = get_args(Light)
SPEEDS: tuple[Speed, ...] = get_args(Speed)

# Every word below occurs in training captions; the first of each tuple is the canonical one.
CORRIDOR_WORDS: tuple[str, ...] = ("corridor", "aisle", "hallway", "warehouse", "warehouse aisle")
SHELF_WORDS: tuple[str, ...] = ("shelves", "racks", "shelving")
BOX_WORDS: tuple[str, ...] = ("boxes", "crates", "cartons", "packages")
DRIVER_WORDS: tuple[str, ...] = ("camera", "robot", "vehicle", "forklift")
LIGHT_WORDS: dict[Light, tuple[str, ...]] = {
    "bright": ("bright light", "a bright room", "daylight"),
    "dim": ("dim light", "a dark room", "darkness"),
}
SPEED_WORDS: dict[Speed, tuple[str, ...]] = {"slow": ("slowly", "gently"), "fast": ("quickly", "fast")}
DRIVE_WORDS: tuple[str, ...] = ("drives", "moves", "travels", "rolls", "advances")


@dataclass(frozen=True, slots=True)
class Corridor:
    """What a drive shows.

    Attributes:
        shelves: Color of the shelves on both sides.
        boxes: Color of the boxes on them.
        floor: Color or material of the floor.
        light: Bright, or dim.
        speed: Slow or fast.
        ahead: What stands in the way, if anything: the camera drives towards it.
    """

    shelves: Color
    boxes: Color
    floor: Floor
    light: Light
    speed: Speed
    ahead: SceneObject | None = None

    def __post_init__(self) -> None:
        if self.shelves == self.boxes or (self.ahead is not None and self.ahead.color in (self.shelves, self.boxes)):
            raise ValueError("shelves, boxes and what is ahead differ in color")


def corridor_caption(corridor: Corridor) -> str:
    """The one detailed wording of a drive; the prompt upsampler writes it and most training captions are it.

    Example:
        >>> corridor_caption(Corridor("blue", "yellow", "grey", "bright", "slow", SceneObject("red", "ball")))
        'The camera drives slowly forward through a corridor of blue shelves with yellow boxes on a grey floor in \
bright light, towards a red ball.'
    """
    text = (
        f"The {DRIVER_WORDS[0]} {DRIVE_WORDS[0]} {SPEED_WORDS[corridor.speed][0]} forward through a "
        f"{CORRIDOR_WORDS[0]} of {corridor.shelves} {SHELF_WORDS[0]} with {corridor.boxes} {BOX_WORDS[0]} on "
        f"{article(f'{corridor.floor} floor')} in {LIGHT_WORDS[corridor.light][0]}"
    )
    return f"{text}." if corridor.ahead is None else f"{text}, towards {article(str(corridor.ahead))}."
