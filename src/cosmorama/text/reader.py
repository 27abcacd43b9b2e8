"""Reading prompts in the languages of Microcosm's two worlds, and writing out what they leave open.

A table names every word that is known and its kind; the kinds of a prompt's words, one letter each, are read by a
regular expression. Strict on purpose: a word that is not of the language (a size, a material, a negation, a place), a
third object, or two motions at once make a prompt one that is not understood, because a rewriting that drops what
somebody asked for is worse than none.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

from cosmorama.text import language
from cosmorama.text.language import Color, Corridor, Direction, Floor, Light, Motion, Scene, SceneObject, Shape, Sky

T = TypeVar("T")
MAX_OBJECTS = 2
MAX_CHARACTERS = 2000
"""Of a prompt that is read: one that only says what these languages can is never nearly as long."""
_LONGEST_WORD = re.compile(r"\w{24}")
"""Characters that no known word has: looking for others in it costs time for each of them."""
_WORD = re.compile(r"\w+|[^\w\s'-]")
_SEPARATOR = re.compile(r"[\s.,;:!'\"()-]*")


@dataclass(frozen=True, slots=True)
class NamedObject:
    """An object as the prompt names it; a color of None is left open."""

    shape: Shape
    color: Color | None = None

    def __str__(self) -> str:
        return self.shape if self.color is None else f"{self.color} {self.shape}"


@dataclass(frozen=True, slots=True)
class PromptScene:
    """What a prompt says about a scene: the object that acts first, and None for all that it leaves open."""

    objects: tuple[NamedObject, ...]
    motion: Motion | None = None
    direction: Direction | None = None
    floor: Floor | None = None
    sky: Sky | None = None


@dataclass(frozen=True, slots=True)
class PromptCorridor:
    """What a prompt says about a drive, and None for all that it leaves open; nothing ahead is nothing ahead."""

    shelves: Color | None = None
    boxes: Color | None = None
    floor: Floor | None = None
    light: Light | None = None
    speed: language.Speed | None = None
    ahead: NamedObject | None = None


Token = tuple[str, str]
"""The letter of a word's kind, and its canonical value ("" where there is none)."""


def written_out(prompt: str) -> str:
    """A prompt in the language of one of Microcosm's worlds, written out; any other comes back as it is.

    What the prompt leaves open is chosen from the prompt's own words, so the same prompt always gives the same text.

    Example:
        >>> written_out("a crimson sphere glides left on the grass at night")
        'A red ball rolls to the left on a green floor under a dark night sky. The camera is static.'
    """
    if (scene := parse_scene(prompt)) is not None:
        return language.canonical_caption(filled(scene, prompt))
    if (drive := parse_corridor(prompt)) is not None:
        return language.corridor_caption(_filled_corridor(drive, _Choice.of(prompt)))
    return prompt


def parse_scene(prompt: str) -> PromptScene | None:
    """What the prompt names, or None when the first world's language cannot express all of it.

    Example:
        >>> parse_scene("a crimson sphere glides left")
        PromptScene(objects=(NamedObject(shape='ball', color='red'),), motion='roll', direction='left', ...)
    """
    words = SCENE.read(prompt)
    try:
        return None if words is None else _Reading().read(words)
    except _OutsideError:
        return None


def parse_corridor(prompt: str) -> PromptCorridor | None:
    """What the prompt names, or None when it is not about a corridor of shelves or says what its language cannot.

    Example:
        >>> parse_corridor("a robot drives slowly down an aisle of blue racks")
        PromptCorridor(shelves='blue', boxes=None, floor=None, light=None, speed='slow', ahead=None)
    """
    return corridor_of(CORRIDOR.read(prompt) or [])


def corridor_of(words: Sequence[Token]) -> PromptCorridor | None:
    """What the tokens of a prompt say, see `parse_corridor`."""
    kinds = "".join(kind for kind, _ in words)
    # A color stands before its thing, and a place or shelves are spoken of.
    if not re.fullmatch(r"(?=.*[PS])(?:c[SBA]|[^c])*", kinds):
        return None
    said: dict[str, Any] = {}
    color: str | None = None
    for kind, value in words:
        if name := _CORRIDOR_SLOTS.get(kind):
            ahead = NamedObject(cast(Shape, value), cast("Color | None", color))
            slot: Any = ahead if kind == "A" else color if kind in "SB" else value
            if slot and said.setdefault(name, slot) != slot:
                return None
        color = value if kind == "c" else None
    drive = PromptCorridor(**said)
    named = [some for some in (drive.shelves, drive.boxes, drive.ahead and drive.ahead.color) if some]
    return drive if len(set(named)) == len(named) else None


class _Vocabulary:
    """Reads prompts all of whose words it knows.

    Args:
        table: (letter of the kind, canonical value, regular expression), where a space stands for any separation; the
            first that matches wins.
    """

    def __init__(self, table: Iterable[tuple[str, str, str]]) -> None:
        rows = tuple(table)
        self._tokens = tuple(row[:2] for row in rows)
        words = "|".join(rf"(?P<_{i}>\b(?:{pattern})\b)" for i, (_, _, pattern) in enumerate(rows))
        self._words = re.compile(words.replace(" ", r"[\s-]+"))

    def read(self, prompt: str) -> list[Token] | None:
        """The prompt's tokens, in order; None when it holds anything else."""
        if len(prompt) > MAX_CHARACTERS or _LONGEST_WORD.search(prompt):
            return None
        text = prompt.lower().replace("gray", "grey")
        found: list[Token] = []
        end = 0
        for match in self._words.finditer(text):
            if not _SEPARATOR.fullmatch(text, end, match.start()):
                return None
            found.append(self._token(match))
            end = match.end()
        return found if _SEPARATOR.fullmatch(text, end) else None

    def tokens(self, prompt: str) -> list[Token]:
        """The prompt's tokens, in order, words that it does not know as tokens of a kind "?" with themselves as values,
        and "." for what parts a text; "k" is a can, or the verb. None of a prompt that is too long.
        """
        if len(prompt) > MAX_CHARACTERS or _LONGEST_WORD.search(prompt):
            return []
        text = prompt.lower().replace("gray", "grey")
        found: list[Token] = []
        end = 0
        for match in self._words.finditer(text):
            found += _unknown(text[end : match.start()])
            found.append(("k", "cylinder") if match.group() == "can" else self._token(match))
            end = match.end()
        return found + _unknown(text[end:])

    def _token(self, match: re.Match[str]) -> Token:
        return self._tokens[int((match.lastgroup or "_0")[1:])]


def _unknown(text: str) -> list[Token]:
    return [("?" if part[0].isalnum() else ".", part) for part in _WORD.findall(text)]


_ON = r"(?:on|onto|upon|across|over|along|to)"
_THE = r"(?:a|an|the)"
_VIDEO = r"(?:(?:the|a|this) )?(?:video|clip|scene|animation) (?:of|with|shows|showing)"
# Other forms of the motion words: plural subjects, participles, and the ways to say where a fall or a hit comes from.
_MORE_MOTION_WORDS = {
    "fall": "fall drop land bounce plummets tumbles down|from above|from the sky|is dropped",
    "roll": "roll slide move glide travel gliding traveling travelling",
    "collide": "hit strike collide bump crash push into striking bumping crashing pushing",
    "still": "rest stand sit stay remain remains sitting staying|at rest|does not move",
}
_MORE_SKY_WORDS = {
    "day": ("blue sky", "bright sky", "morning sky", "day", "daytime", "bright daylight", "sunny"),
    "night": ("night sky", "dark sky", "dark of night", "dark"),
    "studio": ("background white", "white backdrop"),
}
_SURFACES = "surface|tabletop|rug|carpet|mat|linoleum|tiles|flooring|boards?|planks|deck|porch|pier|desk|lane"
_MORE_FLOOR_WORDS = {
    "grey": "pavement|cement|asphalt|tarmac|parking lot",
    "green": "turf|grassy field",
    "wooden": "hardwood(?: floor)?|wood floor|timber|parquet|planks|beach sand|sandy (?:beach|ground)|sand ground|desk"
    "|(?:oak|walnut) (?:table|desk|planks)",
}
_MORE_COLOR_WORDS = {"blue": ("sapphire",), "purple": ("lavender", "lilac"), "yellow": ("gold",)}
_MORE_SHAPE_WORDS = {"ball": ("marble",), "cylinder": ("tube", "pipe", "tin can", "tin")}
_SCENE_SLOTS = {"m": "motion", "d": "direction", "f": "floor", "y": "sky"}
_CORRIDOR_SLOTS = {"S": "shelves", "B": "boxes", "A": "ahead", "f": "floor", "l": "light", "v": "speed"}


def _scene_table() -> Iterator[tuple[str, str, str]]:
    """Rows for `_Vocabulary`. Capital letters are words that are read where a prompt is not read whole."""
    things = "|".join(
        word for words in (*language.COLOR_WORDS.values(), *language.SHAPE_WORDS.values()) for word in words
    )
    yield "-", "", _VIDEO
    yield "-", "", r"there (?:is|are)|each other|one another|then|that|which"
    yield "-", "", r"(?:the )?camera (?:(?:is|stays|remains|stands) (?:static|still|fixed|motionless)|does not move)"
    yield "-", "", r"(?:with )?(?:(?:a|the) )?(?:static|still|fixed) (?:camera|shot|take|view|life)"
    for floor, words in language.FLOOR_WORDS.items():
        for word in sorted(words, key=len, reverse=True):
            # A bare material may be what an object is made of ("a concrete block"), so it needs its preposition.
            optional = "?" if " " in word else ""
            yield "f", floor, rf"(?:{_ON} ){optional}(?:{_THE} )?{word}(?! (?:{things})\b)"
        yield "f", floor, rf"the (?:floor|ground) is {floor}"
        yield "f", floor, rf"(?:{_ON} )?(?:{_THE} )?{floor} (?:{_SURFACES})(?! (?:{things})\b)"
    for named, more in _MORE_FLOOR_WORDS.items():
        yield "f", named, rf"{_ON} (?:{_THE} )?(?:{more})(?! (?:{things})\b)"
    yield "-", "", rf"{_ON} {_THE} (?:floor|ground)"
    skies = [
        (word, sky) for words in (language.SKY_WORDS, _MORE_SKY_WORDS) for sky, many in words.items() for word in many
    ]
    for word, sky in sorted(skies, key=lambda pair: len(pair[0]), reverse=True):
        yield "y", sky, rf"(?:(?:under|beneath|in|at|against|during|on|with) )?(?:{_THE} )?{word}"
    for begin, side in (("left", "right"), ("right", "left")):
        which = r"(?: hand)?(?: side)?"
        yield "d", side, rf"(?:from )?(?:the )?{begin}{which} to (?:the )?{side}{which}|from (?:the )?{begin}{which}"
        yield "d", side, rf"{begin[0]} to {side[0]}|towards the {side} side|towards the {side} edge(?: of the frame)?"
    moves = "|".join(rf"(?<={word}\s)" for word in language.MOTION_WORDS["roll"])
    for side in language.DIRECTIONS:
        # "To the left of", "the left ball" and "right next to" say where a thing is; "rolls to the left next to a cube"
        # says where it goes.
        yield "d", side, rf"(?:{moves})to the {side}(?= (?:next|beside|near)\b)"
        place = rf"(?! (?:of|side|hand|half|corner|edge|next|beside|near|{things})\b)"
        yield "d", side, rf"(?:towards? the |to the )?{side}{place}|{side}wards?"
    for motion, motion_words in language.MOTION_WORDS.items():
        phrases = _MORE_MOTION_WORDS[motion].split("|")
        for word in (*phrases[1:], *motion_words, *phrases[0].split()):
            yield "m", motion, word
    for color, color_words in language.COLOR_WORDS.items():
        names = "|".join((*color_words, *_MORE_COLOR_WORDS.get(color, ())))
        yield "c", color, rf"(?:{names})(?: colou?red)?"
    for shape, shape_words in language.SHAPE_WORDS.items():
        known = (*_MORE_SHAPE_WORDS.get(shape, ()), *shape_words)
        yield "p", shape, "|".join(word + ("es" if word.endswith("x") else "s") for word in known)
        yield "s", shape, "|".join(known)
    for floor, floor_words in language.FLOOR_WORDS.items():
        material = "|".join(filter(None, (*floor_words, _MORE_FLOOR_WORDS.get(floor))))
        yield "F", floor, rf"(?:{material})(?! (?:{things})\b)"
        yield "F", floor, rf"{floor} \w+ (?:floor|ground|{_SURFACES})"
        yield "F", floor, rf"(?:floor|ground|surface)\W+(?:is |should be |of |in )?{floor}(?! (?:{things})\b)"
    yield "M", "still", "static|stationary|no motion(?! blur)|not moving|nothing (?:moves|happens)"
    yield "M", "fall", "dropped|drop test|free fall|released"
    yield "M", "roll", "pushed|thrown|tossed|kicked"
    yield "M", "collide", "touches|meets|taps|nudges|kicks|rams|knocks?|struck|impacts?|collision|contact"
    yield "n", "2", "two|2|both|a pair of|a couple of"
    yield "1", "1", "single|1"
    yield "n", "3", "three|four|five|six|several|many|some|3|4|5|6"
    yield "o", "1", "one"
    yield "t", "", "the"
    yield "a", "", "another|an|a"
    yield "-", "", "and"
    yield "b", "", "next to|beside|near|with"
    yield "i", "", "is|are"


def _corridor_table() -> Iterator[tuple[str, str, str]]:
    yield "-", "", _VIDEO
    yield "-", "", r"(?:a )?(?:first person )?view (?:of|from)"
    for floor, words in language.FLOOR_WORDS.items():
        for word in sorted(words, key=len, reverse=True):
            yield "f", floor, rf"(?:{_ON} )?(?:{_THE} )?{word}"
    yield "-", "", rf"{_ON} {_THE} (?:floor|ground)"
    for light, phrases in language.LIGHT_WORDS.items():
        for phrase in phrases:
            yield "l", light, rf"(?:in |under )?(?:{_THE} )?{phrase.removeprefix('a ')}"
    yield "l", "bright", "bright|well lit"
    yield "l", "dim", "dark|dim|dimly lit"
    for speed, speeds in language.SPEED_WORDS.items():
        yield "v", speed, "|".join(speeds)
    yield "P", "", "|".join(sorted(language.CORRIDOR_WORDS, key=len, reverse=True))
    yield "S", "", "|".join((*language.SHELF_WORDS, "shelf", "rack"))
    yield "B", "", "|".join(language.BOX_WORDS)
    yield "-", "", "|".join(rf"{word[:-1]}s?|{word[:-1].removesuffix('e')}ing" for word in language.DRIVE_WORDS)
    yield "-", "", "|".join(language.DRIVER_WORDS)
    yield "-", "", "towards?|ahead(?: stands)?|in front of it|lies|stands|is|are"
    yield "-", "", "forwards?|straight|through|along|down|past|of|with|full of|between|filled with|lined with|in|and"
    for color, colors in language.COLOR_WORDS.items():
        yield "c", color, "|".join(colors)
    for shape, shapes in language.SHAPE_WORDS.items():
        yield "A", shape, "|".join(shapes)
    yield "-", "", "the|an|a|one|its?"


SCENE = _Vocabulary(_scene_table())
CORRIDOR = _Vocabulary(_corridor_table())
_PHRASE = re.compile(
    r"[mdfyb-]"
    r"|[tai]?(?:n|1?o*)c?[sp]"  # the two red balls
    r"|[tai]?1?o*co"  # a red one
    r"|[tai]?(?:n|1?o*)c?(?![n1ocsp])"  # is red; one blue; what begins a phrase without ending one
)


class _OutsideError(Exception):
    """The prompt says something that the scene language cannot."""


@dataclass
class _Reading:
    """What was understood of a scene so far."""

    objects: list[NamedObject] = field(default_factory=list)
    events: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    """In order: ("object", the indices mentioned), ("beside", ()), ("motion", ())."""
    said: dict[str, str] = field(default_factory=dict)

    def read(self, words: list[Token]) -> PromptScene:
        kinds = "".join(kind for kind, _ in words)
        at = 0
        while at < len(kinds):
            match = _PHRASE.match(kinds, at)
            if not match or not match.group():
                raise _OutsideError
            self._phrase(match.group(), [value for _, value in words[at : match.end()]])
            at = match.end()
        motion = cast("Motion | None", self.said.get("motion"))
        if not self.objects or ("direction" in self.said and motion not in ("roll", "collide")):
            raise _OutsideError
        if motion:
            self.objects.insert(0, self.objects.pop(self._actor(motion)))
        return PromptScene(tuple(self.objects), **cast("dict[str, Any]", self.said))

    def _phrase(self, kinds: str, values: list[str]) -> None:
        """Take in one phrase, given its kinds and their values."""
        if kinds in _SCENE_SLOTS:
            slot, value = _SCENE_SLOTS[kinds], values[0]
            if kinds == "m":
                self.events.append(("motion", ()))
                if {self.said.get(slot), value} == {"roll", "collide"}:  # it rolls and hits: one scene
                    self.said[slot] = value = "collide"
            if self.said.setdefault(slot, value) != value:
                raise _OutsideError
        elif kinds == "b":
            self.events.append(("beside", ()))
        elif kinds != "-":
            counted = zip(kinds.partition("c")[0], values, strict=False)
            count = next((int(value) for kind, value in counted if kind in "n1o"), 0)
            color = cast("Color | None", values[kinds.index("c")] if "c" in kinds else None)
            if kinds[-1] in "sp":
                self._mention(kinds, NamedObject(cast(Shape, values[-1]), color), count)
            elif color:
                self._color(color, count, is_=kinds[0] == "i", elliptical=kinds[-1] == "o")
            elif count > 1:
                raise _OutsideError

    def _mention(self, kinds: str, named: NamedObject, count: int) -> None:
        """Objects, which "the ball" may have been spoken of before."""
        many = kinds[-1] == "p"
        if count == 1 if many else count > 1 or (self.objects and kinds in ("s", "is")):
            raise _OutsideError
        known: list[int] = []
        if kinds[0] == "t":
            known = [i for i, one in enumerate(self.objects) if one.shape == named.shape]
            known = [i for i in known if named.color in (None, self.objects[i].color)]
            if len({self.objects[i] for i in known}) > 1:
                raise _OutsideError
        if not known:
            known = list(range(len(self.objects), len(self.objects) + ((count or 2) if many else 1)))
            self.objects += [named] * len(known)
            if len(self.objects) > MAX_OBJECTS:
                raise _OutsideError
        self.events.append(("object", tuple(known if many else known[:1])))

    def _color(self, color: Color, count: int, *, is_: bool, elliptical: bool) -> None:
        """A color without a noun: "the ball is red", "one blue"; any other is not understood."""
        colored: tuple[int, ...] = ()
        if is_ and not count:
            colored = next((indices for kind, indices in reversed(self.events) if kind == "object"), ())
        elif elliptical or count == 1:
            colored = tuple(i for i, known in enumerate(self.objects) if known.color is None)[:1]
        if not colored or any(self.objects[i].color for i in colored):
            raise _OutsideError
        for i in colored:
            self.objects[i] = replace(self.objects[i], color=color)

    def _actor(self, motion: Motion) -> int:
        """Whose motion it is. In a scene only one object moves by itself, so "two balls roll" cannot be said."""
        kinds = [kind for kind, _ in self.events]
        start = kinds.index("motion")
        before = list(dict.fromkeys(i for _, indices in self.events[:start] for i in indices))
        if not before:  # "a rolling ball"
            start = kinds.index("object", start)
            before = list(self.events[start][1])
        beside = "beside" in kinds[:start]
        if beside and (len(before) < 2 or kinds[0] == "beside"):
            raise _OutsideError
        together = len(before) > 1 and not beside
        if motion == "still" or (motion == "collide" and together):
            return before[0]
        # After the first motion only the object that moves, or the one that is hit last, may be spoken of.
        last = len(kinds) - 1 - kinds[::-1].index("motion")
        between = {i for _, indices in self.events[start:last] for i in indices}
        if together or not between <= {before[0]}:
            raise _OutsideError
        return before[0]


@dataclass(frozen=True, slots=True)
class _Choice:
    """Chooses what a prompt leaves open, by a hash of its words."""

    text: str

    @classmethod
    def of(cls, prompt: str) -> _Choice:
        return cls(" ".join(prompt.lower().split()))

    def __call__(self, named: T | None, options: Sequence[T], what: str) -> T:
        if named is not None:
            return named
        digest = hashlib.sha256(f"{what}\n{self.text}".encode()).digest()
        return options[int.from_bytes(digest[:8], "big") % len(options)]


def filled(named: PromptScene, prompt: str) -> Scene:
    """What a prompt names, with what it leaves open chosen from its own words."""
    choose = _Choice.of(prompt)
    taken: set[str | None] = {known.color for known in named.objects}
    floor = choose(named.floor, [floor for floor in language.FLOORS if floor not in taken], "floor")
    taken.add(floor)
    objects: list[SceneObject] = []
    for i, known in enumerate(named.objects):
        color = choose(known.color, [color for color in language.COLORS if color not in taken], f"color {i}")
        taken.add(color)
        objects.append(SceneObject(color, known.shape))
    options: list[Motion] = ["fall", "roll", "collide"] if len(objects) == 2 else ["fall", "roll"]
    motion = choose(named.motion, options, "motion")
    if motion == "collide" and len(objects) == 1:
        free = [color for color in language.COLORS if color not in (objects[0].color, floor)]
        objects.append(SceneObject(choose(None, free, "other"), choose(None, language.SHAPES, "other shape")))
    direction = choose(named.direction, language.DIRECTIONS, "direction") if motion in ("roll", "collide") else None
    return Scene(tuple(objects), motion, direction, floor, choose(named.sky, language.SKIES, "sky"))


def _filled_corridor(named: PromptCorridor, choose: _Choice) -> Corridor:
    """What is not said to be ahead is not there."""
    colors = {named.shelves, named.boxes, named.ahead and named.ahead.color}
    free = [color for color in language.COLORS if color not in colors]
    shelves = choose(named.shelves, free, "shelves")
    boxes = choose(named.boxes, [color for color in free if color != shelves], "boxes")
    ahead = None
    if named.ahead is not None:
        left = [color for color in free if color not in (shelves, boxes)]
        ahead = SceneObject(choose(named.ahead.color, left, "ahead"), named.ahead.shape)
    floor, light = choose(named.floor, language.FLOORS, "floor"), choose(named.light, language.LIGHTS, "light")
    return Corridor(shelves, boxes, floor, light, choose(named.speed, language.SPEEDS, "speed"), ahead)
