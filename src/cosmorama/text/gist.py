"""What is left of a prompt in free words: what Microcosm can picture of it.

`cosmorama.text.reader` takes a prompt whole or not at all, since what it writes out stands in its place. A text encoder
that knows a few words only reads such a prompt by dropping the others, and may then take a color for another thing's.
Here the others are dropped by rules, so that what stays is what was said of these things.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import cast

from cosmorama.text import language
from cosmorama.text.language import Color, Direction, Floor, Motion, Shape, Sky
from cosmorama.text.reader import (
    CORRIDOR,
    MAX_OBJECTS,
    SCENE,
    NamedObject,
    PromptCorridor,
    PromptScene,
    Token,
    corridor_of,
    filled,
    parse_corridor,
    parse_scene,
)

_NOT = frozenset(("no", "not", "without", "never", "none", "nothing", "neither", "except", "t"))  # of doesn't
_SAID = frozenset("mdfycspPSBAlv")  # kinds of which a "no" turns the meaning
_PLACES = re.compile(r"corridor|aisle|hallway|warehouse|shel(?:f|v)|racks?\b", re.IGNORECASE)


def understood(prompt: str) -> PromptScene | PromptCorridor | None:
    """What a prompt says of Microcosm's worlds, read whole if that can be, else as far as it is known; None: nothing.

    Example:
        >>> understood("please show me a shiny red ball that glides left, 4k")
        PromptScene(objects=(NamedObject(shape='ball', color='red'),), motion='roll', direction='left', ...)
    """
    return _read(prompt)[0]


def scene_in(prompt: str) -> PromptScene | None:
    """What a prompt says of objects, see `understood`."""
    found = understood(prompt)
    return found if isinstance(found, PromptScene) else None


def corridor_in(prompt: str) -> PromptCorridor | None:
    """What a prompt says of a corridor, see `understood`."""
    found = understood(prompt)
    return found if isinstance(found, PromptCorridor) else None


def gist(prompt: str) -> str | None:
    """What is known of a prompt that cannot be read whole, in the words of the training captions; None: nothing, or all
    of it is known.

    Example:
        >>> gist("please show me a shiny red ball that glides left, 4k")
        'A red ball rolls to the left.'
    """
    match _read(prompt):
        case PromptScene(objects, motion, direction, floor, sky), False:
            return language.scene_sentence(objects, motion or "still", direction, floor, sky)
        case PromptCorridor(shelves, boxes, floor, light, speed, ahead), False:
            return language.corridor_sentence(shelves, boxes, floor, light, speed, ahead)
    return None


def on_the_move(prompt: str) -> language.Scene | None:
    """The objects of a prompt that stand still, or of which nothing is said, on the move, and all that it leaves open
    chosen; None: it is not of objects.

    Things that stand are in corridors, too. Two of one color are in no scene: the second one has another here.

    Example:
        >>> on_the_move("a red ball rests on the grass at night")
        Scene(objects=(SceneObject(color='red', shape='ball'),), motion='roll', direction='right', floor='green', ...)
    """
    said = scene_in(prompt)
    if said is None:
        return None
    motion = "roll" if said.motion in (None, "still") else said.motion
    scene = filled(replace(said, motion=motion), prompt)
    if len({thing.color for thing in scene.objects}) < len(scene.objects):
        first, second = scene.objects
        other = next(color for color in language.COLORS if color not in (first.color, scene.floor))
        scene = replace(scene, objects=(first, replace(second, color=other)))
    return scene


@lru_cache(maxsize=64)
def _read(prompt: str) -> tuple[PromptScene | PromptCorridor | None, bool]:
    """What a prompt says, and whether that is all of it."""
    whole = parse_scene(prompt) or parse_corridor(prompt)
    return (whole, True) if whole else (_partly(prompt), False)


def _partly(prompt: str) -> PromptScene | PromptCorridor | None:
    if _PLACES.search(prompt):
        tokens = CORRIDOR.tokens(prompt)
        return None if _denied(tokens) else corridor_of(_colored(tokens, "SBA"))
    tokens = SCENE.tokens(prompt)
    tokens = [_noun(tokens, at) for at in range(len(tokens))]
    if _denied(tokens):
        return None
    reading = _Reading()
    for phrase in _phrases(tokens):
        reading.take(phrase)
    return reading.scene()


def _noun(tokens: list[Token], at: int) -> Token:
    """A token, "can" as the thing where something says that it is one."""
    kind, value = tokens[at]
    if kind != "k":
        return kind.lower() if kind in "FM" else kind, value
    before = "".join(other for other, _ in tokens[max(0, at - 2) : at])
    return ("s", value) if re.search(r"[tac1on]$|[tac]\?$", before) else ("?", "can")


def _denied(tokens: list[Token]) -> bool:
    """Whether a "no" stands before something that is known: what is not wanted cannot be said."""
    for at, (kind, word) in enumerate(tokens):
        if kind == "?" and word in _NOT:
            after = next((other for other, _ in tokens[at + 1 :] if other not in "tai1o-"), "?")
            if after in _SAID:
                return True
    return False


def _colored(tokens: list[Token], things: str) -> list[Token]:
    """The known tokens, with colors only where they are of a known thing: "a red car" is none of these."""
    kept: list[Token] = []
    for at, (kind, value) in enumerate(tokens):
        if kind == "c":
            after = re.match(rf"\??\??[{things}]", "".join(other for other, _ in tokens[at + 1 : at + 4]))
            if after is None:
                continue
        if kind not in "?.k":
            kept.append((kind, value))
    return kept


@dataclass(frozen=True, slots=True)
class _Phrase:
    """A kind of token, its value, and what stands before and after it."""

    kind: str
    value: str
    color: str | None = None
    count: int = 1
    known: bool = False
    passive: bool = False


def _phrases(tokens: list[Token]) -> list[_Phrase]:
    """Objects with their colors and counts, colors that stand alone, and what is said of motion and place."""
    for moving in re.finditer("cm(?=[sp])", "".join(kind for kind, _ in tokens)):  # a red rolling ball
        at = moving.start()
        tokens[at : at + 2] = tokens[at + 1], tokens[at]
    kinds = "".join(kind for kind, _ in tokens)
    found: list[_Phrase] = []
    at = 0
    while at < len(kinds):
        if match := _OBJECT.match(kinds, at):
            values = [value for _, value in tokens[at : match.end()]]
            color = values[match.start("c") - at] if match["c"] else None
            number = values[match.start("n") - at] if match["n"] else "2" if match["s"] == "p" else "1"
            found.append(_Phrase(match["s"], values[-1], color, int(number), known="t" in match.group()))
            at = match.end()
            continue
        kind, value = tokens[at]
        follows = re.sub(r"[tai1o?.-]", "", kinds[at + 1 :])[:1]
        hits_floor = value == "collide" and follows == "f"
        if kind in "cmdfy" and not hits_floor:
            passive = kind == "m" and tokens[at + 1 : at + 2] == [("?", "by")]
            found.append(_Phrase(kind, value, passive=passive))
        at += 1
    return found


_OBJECT = re.compile(r"[tai]?(?P<n>[n1o])?\??\??(?P<c>c)?(?:c(?=[sp?]))?\??\??(?P<s>[sp])")


@dataclass
class _Reading:
    """What was taken in so far: the objects, which of them were spoken of when, and what is said of the scene."""

    objects: list[NamedObject] = field(default_factory=list)
    spoken: list[int] = field(default_factory=list)
    motions: list[tuple[Motion, int, bool]] = field(default_factory=list)
    """Each with how many objects had been spoken of, and whether it is passive. The first one counts."""
    said: dict[str, str] = field(default_factory=dict)
    several: bool = False

    def take(self, phrase: _Phrase) -> None:
        """Take in a phrase. Of what a scene has one of the first counts."""
        match phrase.kind:
            case "s" | "p":
                self._mention(phrase)
            case "c":
                self._color(cast(Color, phrase.value))
            case "m":
                motion = cast(Motion, phrase.value)
                self.motions.append((motion, len(self.spoken), phrase.passive))
            case "d":
                self.said.setdefault("direction", phrase.value)
            case "f" | "y":
                self.said.setdefault({"f": "floor", "y": "sky"}[phrase.kind], phrase.value)

    def _mention(self, phrase: _Phrase) -> None:
        named = NamedObject(cast(Shape, phrase.value), cast("Color | None", phrase.color))
        same = [
            index
            for index, one in enumerate(self.objects)
            if one.shape == named.shape and (named.color in (None, one.color) or (phrase.known and one.color is None))
        ]
        self.several = phrase.kind == "p"
        if same:
            if not self.several and self.objects[same[0]].color is None:
                self.objects[same[0]] = named
            self.spoken += same if self.several else same[:1]
            return
        new = range(len(self.objects), min(len(self.objects) + phrase.count, MAX_OBJECTS))
        self.objects += [named] * len(new)
        self.spoken += new

    def _color(self, color: Color) -> None:
        """A color alone is that of the last object without one, or speaks of the one that has it."""
        for index in [*self.spoken[-1 - self.several :], *range(len(self.objects))]:
            if self.objects[index].color is None:
                self.objects[index] = replace(self.objects[index], color=color)
                return
        self.spoken += [index for index, one in enumerate(self.objects) if one.color == color][:1]

    def scene(self) -> PromptScene | None:
        """The scene, if it is one."""
        if not self.objects:
            return None
        moving = [motion for motion in self.motions if motion[0] != "still"]
        kinds = [motion[0] for motion in moving]
        if set(kinds) == {"roll", "collide"}:
            kinds = ["collide"]
        direction = self.said.get("direction")
        moves = direction is not None and not self.motions
        motion: Motion = next(iter(kinds), "roll" if moves else "still")  # captions say what happens, if only that
        if direction and motion not in ("roll", "collide"):
            direction = None
        if motion == "collide" and len(self.objects) == 1:  # what is hit by something unknown moves on
            motion = "roll"
        if moving:
            _, before, passive = moving[0]
            later = self.spoken[before:]
            first = later[0] if later and (passive or not before) else self.spoken[before - 1]
            self.objects.insert(0, self.objects.pop(first))
        return PromptScene(
            tuple(self.objects),
            motion,
            cast("Direction | None", direction),
            cast("Floor | None", self.said.get("floor")),
            cast("Sky | None", self.said.get("sky")),
        )
