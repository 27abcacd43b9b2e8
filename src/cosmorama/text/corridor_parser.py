"""Reading a prompt about a drive through a corridor: what it names, what it leaves open, or that it says more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from cosmorama.text.corridor_language import (
    BOX_WORDS,
    CORRIDOR_WORDS,
    DRIVE_WORDS,
    DRIVER_WORDS,
    LIGHT_WORDS,
    SHELF_WORDS,
    SPEED_WORDS,
    Light,
    Speed,
)
from cosmorama.text.lexer import ON, THE, Lexer
from cosmorama.text.scene_language import COLOR_WORDS, FLOOR_WORDS, SHAPE_WORDS, Color, Floor, Shape
from cosmorama.text.scene_parser import NamedObject


@dataclass(frozen=True, slots=True)
class PromptCorridor:
    """What a prompt says about a drive, and None for all that it leaves open; nothing ahead is nothing ahead."""

    shelves: Color | None = None
    boxes: Color | None = None
    floor: Floor | None = None
    light: Light | None = None
    speed: Speed | None = None
    ahead: NamedObject | None = None


def parse_corridor(prompt: str) -> PromptCorridor | None:
    """What the prompt names, or None when it is not about a corridor of shelves or says what its language cannot.

    As strict as `scene_parser.parse_scene`, for the same reason.

    Example:
        >>> parse_corridor("a robot drives slowly down an aisle of blue racks")
        PromptCorridor(shelves='blue', boxes=None, floor=None, light=None, speed='slow', ahead=None)
    """
    words = _LEXER.read(prompt)
    if words is None or not {"place", "shelves"} & {kind for kind, _ in words}:
        return None
    said: dict[str, Any] = {}
    color: Color | None = None
    for kind, value in words:
        if color is not None and kind not in _THINGS:
            return None
        if kind == "color":
            color = cast(Color, value)
            continue
        named = NamedObject(cast(Shape, value), color) if kind == "ahead" else color if kind in _THINGS else value
        color = None
        if named and said.setdefault(kind, named) != named:
            return None
    corridor = PromptCorridor(**said)
    colors = [corridor.shelves, corridor.boxes, corridor.ahead and corridor.ahead.color]
    named_colors = [some for some in colors if some is not None]
    return None if color is not None or len(set(named_colors)) < len(named_colors) else corridor


_THINGS = ("shelves", "boxes", "ahead")  # what has a color


def _patterns() -> Iterator[tuple[str, tuple[str, str]]]:
    """Of the words, for a `Lexer`; they mean (kind, canonical value)."""
    yield r"(?:(?:the|a|this) )?(?:video|clip|scene|animation) (?:of|with|shows|showing)", ("-", "")
    yield r"(?:a )?(?:first person )?view (?:of|from)", ("-", "")
    for floor, words in FLOOR_WORDS.items():
        for word in sorted(words, key=len, reverse=True):
            yield rf"(?:{ON} )?(?:{THE} )?{word}", ("floor", floor)
    yield rf"{ON} {THE} (?:floor|ground)", ("-", "")
    for light, phrases in LIGHT_WORDS.items():
        for phrase in phrases:
            yield rf"(?:in |under )?(?:{THE} )?{phrase.removeprefix('a ')}", ("light", light)
    yield r"bright|well lit", ("light", "bright")
    yield r"dark|dim|dimly lit", ("light", "dim")
    for speed, speeds in SPEED_WORDS.items():
        yield "|".join(speeds), ("speed", speed)
    yield "|".join(sorted(CORRIDOR_WORDS, key=len, reverse=True)), ("place", "")
    yield "|".join((*SHELF_WORDS, "shelf", "rack")), ("shelves", "")
    yield "|".join(BOX_WORDS), ("boxes", "")
    drives = [form for word in DRIVE_WORDS for form in (word, word.removesuffix("s"), _participle(word))]
    yield "|".join(drives), ("-", "")
    yield "|".join(DRIVER_WORDS), ("-", "")
    yield "towards?|ahead(?: stands)?|in front of it|lies|stands|is|are", ("-", "")
    yield "forwards?|straight|through|along|down|past|of|with|full of|between|filled with|lined with|in|and", ("-", "")
    for color, colors in COLOR_WORDS.items():
        yield "|".join(colors), ("color", color)
    for shape, shapes in SHAPE_WORDS.items():
        yield "|".join(shapes), ("ahead", shape)
    yield "the|an|a|one|its?", ("-", "")


def _participle(word: str) -> str:
    return word.removesuffix("s").removesuffix("e") + "ing"


_LEXER = Lexer(_patterns())
