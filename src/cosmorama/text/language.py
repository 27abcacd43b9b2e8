"""What Microcosm, the embedded world model, can picture, and the words for it.

Its first world is of one or two objects on a floor (`Scene`), its second a camera that drives forward through a
corridor of shelves and boxes (`Corridor`). Shared by the simulators that make its training clips, by what writes
prompts out, and by the captioner. Pure Python: importing it must stay cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

Color = Literal["red", "green", "blue", "yellow", "orange", "purple"]
Shape = Literal["ball", "cube", "cylinder"]
Motion = Literal["fall", "roll", "collide", "still"]
Direction = Literal["left", "right"]
Floor = Literal["grey", "green", "blue", "wooden"]
Sky = Literal["day", "night", "studio"]
Light = Literal["bright", "dim"]
Speed = Literal["slow", "fast"]

COLORS: tuple[Color, ...] = get_args(Color)
SHAPES: tuple[Shape, ...] = get_args(Shape)
MOTIONS: tuple[Motion, ...] = get_args(Motion)
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
FLOORS: tuple[Floor, ...] = get_args(Floor)
SKIES: tuple[Sky, ...] = get_args(Sky)
LIGHTS: tuple[Light, ...] = get_args(Light)
SPEEDS: tuple[Speed, ...] = get_args(Speed)

# Every word below occurs in training captions; the first of each tuple is the canonical one.
COLOR_WORDS: dict[Color, tuple[str, ...]] = {
    "red": ("red", "crimson", "scarlet", "ruby"),
    "green": ("green", "emerald", "lime"),
    "blue": ("blue", "navy", "azure", "cobalt"),
    "yellow": ("yellow", "golden", "lemon"),
    "orange": ("orange", "amber", "tangerine"),
    "purple": ("purple", "violet", "magenta"),
}
SHAPE_WORDS: dict[Shape, tuple[str, ...]] = {
    "ball": ("ball", "sphere", "orb", "globe"),
    "cube": ("cube", "box", "block", "crate"),
    "cylinder": ("cylinder", "can", "barrel", "drum"),
}
MOTION_WORDS: dict[Motion, tuple[str, ...]] = {
    "fall": ("falls", "drops", "lands", "bounces", "falling", "dropping", "bouncing", "landing"),
    "roll": ("rolls", "slides", "moves", "glides", "rolling", "sliding", "moving", "travels"),
    "collide": ("hits", "strikes", "collides", "bumps", "crashes", "pushes", "hitting", "colliding"),
    "still": ("rests", "stands", "sits", "stays", "resting", "standing", "still", "motionless"),
}
FLOOR_WORDS: dict[Floor, tuple[str, ...]] = {
    "grey": ("grey floor", "gray floor", "concrete floor", "concrete", "grey ground"),
    "green": ("green floor", "grass", "lawn", "meadow", "green ground"),
    "blue": ("blue floor", "blue mat", "blue carpet", "blue ground"),
    "wooden": ("wooden floor", "wooden table", "wood", "sand", "tan floor"),
}
SKY_WORDS: dict[Sky, tuple[str, ...]] = {
    "day": ("pale blue sky", "clear sky", "daylight", "sunny day", "outdoors"),
    "night": ("dark night sky", "dark night", "night", "darkness"),
    "studio": ("white studio", "studio", "white background", "white room"),
}
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

SKY_PHRASES: dict[Sky, str] = {
    "day": "under a pale blue sky",
    "night": "under a dark night sky",
    "studio": "in a white studio",
}


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One object: a color and a shape."""

    color: Color
    shape: Shape

    def __str__(self) -> str:
        return f"{self.color} {self.shape}"


@dataclass(frozen=True, slots=True)
class Scene:
    """What happens in a clip.

    Attributes:
        objects: One or two objects. The first acts; in "collide" it hits the second, otherwise the second stands by.
        motion: "fall" (and bounce or land), "roll" (balls roll, the others slide), "collide" (roll or slide into the
            second object) or "still".
        direction: Where the first object moves; only "roll" and "collide" have one, otherwise None.
        floor: Color or material of the floor.
        sky: What is behind: pale blue sky, dark night or white studio.
    """

    objects: tuple[SceneObject, ...]
    motion: Motion
    direction: Direction | None
    floor: Floor
    sky: Sky

    def __post_init__(self) -> None:
        if not 1 <= len(self.objects) <= 2:
            raise ValueError(f"a scene has one or two objects, not {len(self.objects)}")
        if self.motion == "collide" and len(self.objects) != 2:
            raise ValueError("a collision needs two objects")
        if (self.direction is not None) != (self.motion in ("roll", "collide")):
            raise ValueError(f"direction {self.direction!r} does not fit motion {self.motion!r}")


def article(phrase: str) -> str:
    """`phrase` with its indefinite article: "an orange ball", "a red cube"."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def travel_verb(shape: Shape) -> str:
    """How a shape travels over the floor: balls roll, cubes and (upright) cylinders slide."""
    return "rolls" if shape == "ball" else "slides"


def landing_verb(shape: Shape) -> str:
    """What a shape does when it reaches the floor."""
    return "bounces" if shape == "ball" else "lands"


def canonical_caption(scene: Scene) -> str:
    """The one detailed wording of a scene; the prompt upsampler writes it and about a third of training captions are
    it.

    Example:
        >>> canonical_caption(Scene((SceneObject("red", "ball"),), "roll", "right", "green", "day"))
        'A red ball rolls to the right on a green floor under a pale blue sky. The camera is static.'
    """
    said = scene_sentence(scene.objects, scene.motion, scene.direction, scene.floor, scene.sky)
    return f"{said} The camera is static."


class Thing(Protocol):
    """An object as its words are written, `str(thing)`."""

    @property
    def shape(self) -> Shape: ...


def scene_sentence(
    objects: Sequence[Thing], motion: Motion, direction: Direction | None, floor: Floor | None, sky: Sky | None
) -> str:
    """A scene in a sentence, without what is None.

    Example:
        >>> scene_sentence([SceneObject("red", "ball")], "roll", "left", None, None)
        'A red ball rolls to the left.'
    """
    first, last = objects[0], article(str(objects[-1]))
    travels = travel_verb(first.shape) + (f" to the {direction}" if direction else "")
    actions: dict[Motion, str] = {
        "fall": f"falls and {landing_verb(first.shape)}",
        "roll": travels,
        "collide": f"{travels} and hits {last}",
        "still": "stands still",
    }
    text = f"{article(str(first))} {actions[motion]}"
    if floor:
        text += f" on {article(f'{floor} floor')}"
    if motion != "collide" and len(objects) == 2:
        text += f" next to {last}"
    if sky:
        text += f" {SKY_PHRASES[sky]}"
    return f"{text[0].upper()}{text[1:]}."


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
    return corridor_sentence(
        corridor.shelves, corridor.boxes, corridor.floor, corridor.light, corridor.speed, corridor.ahead
    )


def corridor_sentence(
    shelves: Color | None,
    boxes: Color | None,
    floor: Floor | None,
    light: Light | None,
    speed: Speed | None,
    ahead: Thing | None,
) -> str:
    """A drive in a sentence, without what is None."""
    driven = f"{DRIVE_WORDS[0]} {SPEED_WORDS[speed][0]}" if speed else DRIVE_WORDS[0]
    sides = [
        f"{color} {words[0]}" if color else words[0] for color, words in ((shelves, SHELF_WORDS), (boxes, BOX_WORDS))
    ]
    text = f"The {DRIVER_WORDS[0]} {driven} forward through a {CORRIDOR_WORDS[0]} of {' with '.join(sides)}"
    if floor:
        text += f" on {article(f'{floor} floor')}"
    if light:
        text += f" in {LIGHT_WORDS[light][0]}"
    return f"{text}." if ahead is None else f"{text}, towards {article(str(ahead))}."


_MIRRORED = {"left": "right", "right": "left", "leftwards": "rightwards", "rightwards": "leftwards"}


def mirror_caption(caption: str) -> str:
    """`caption` for the horizontally flipped clip: left and right swapped, everything else kept. Its own inverse."""
    return "".join(_MIRRORED.get(word, word) for word in _split_keeping_separators(caption))


def _split_keeping_separators(text: str) -> list[str]:
    parts: list[str] = []
    for character in text:
        if parts and character.isalpha() and parts[-1][-1].isalpha():
            parts[-1] += character
        else:
            parts.append(character)
    return parts
