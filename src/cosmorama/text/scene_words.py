"""The words of a prompt, read as tokens of the scene language; a prompt with any other word is not read at all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from cosmorama.text.lexer import ON, THE, Lexer
from cosmorama.text.scene_language import COLOR_WORDS, FLOOR_WORDS, MOTION_WORDS, SHAPE_WORDS, SKY_WORDS

Meaning = Literal["color", "shape", "shapes", "motion", "direction", "floor", "sky", "count", "one"]
Kind = Meaning | Literal["the", "a", "and", "beside", "is", "-"]


@dataclass(frozen=True, slots=True)
class Token:
    """A word or phrase: what kind it is, and its canonical value ("" where there is none)."""

    kind: Kind
    value: str = ""


# Other forms of the motion words: plural subjects, participles, and the ways to say where a fall or a hit comes from.
_MORE_MOTION_WORDS = {
    "fall": "fall drop land bounce plummets tumbles down|from above|from the sky",
    "roll": "roll slide move glide travel gliding traveling travelling",
    "collide": "hit strike collide bump crash push into striking bumping crashing pushing",
    "still": "rest stand sit stay remain remains sitting staying|at rest|does not move",
}
_MORE_SKY_WORDS = {"day": ("blue sky", "bright sky", "day"), "night": ("night sky", "dark sky"), "studio": ()}
_COUNTS = {"two": 2, "2": 2, "both": 2, "a pair of": 2, "a couple of": 2, "single": 1, "1": 1}
_COUNTS |= dict.fromkeys(("three", "four", "five", "six", "several", "many", "some", "3", "4", "5", "6"), 3)
_UNDER = r"(?:under|beneath|in|at|against|during|on|with)"


def tokens(prompt: str) -> list[Token] | None:
    """The prompt's tokens, or None when it holds anything that is not a word of the scene language."""
    return _LEXER.read(prompt)


def _patterns() -> Iterator[tuple[str, Token]]:
    """Of the words, for a `Lexer`."""
    things = "|".join(word for words in (*COLOR_WORDS.values(), *SHAPE_WORDS.values()) for word in words)
    yield r"(?:(?:the|a|this) )?(?:video|clip|scene|animation) (?:of|with|shows|showing)", Token("-")
    yield r"there (?:is|are)|each other|one another|then|that|which", Token("-")
    yield r"(?:the )?camera (?:is|stays|remains|stands) (?:static|still|fixed|motionless)", Token("-")
    yield r"(?:with )?(?:(?:a|the) )?(?:static|still|fixed) camera", Token("-")
    for floor, words in FLOOR_WORDS.items():
        for word in sorted(words, key=len, reverse=True):
            # A bare material may be what an object is made of ("a concrete block"), so it needs its preposition.
            optional = "?" if " " in word else ""
            yield rf"(?:{ON} ){optional}(?:{THE} )?{word}(?! (?:{things})\b)", Token("floor", floor)
        yield rf"the (?:floor|ground) is {floor}", Token("floor", floor)
    yield rf"{ON} {THE} (?:floor|ground)", Token("-")
    skies = [(word, sky) for words in (SKY_WORDS, _MORE_SKY_WORDS) for sky, many in words.items() for word in many]
    for word, sky in sorted(skies, key=lambda pair: len(pair[0]), reverse=True):
        yield rf"(?:{_UNDER} )?(?:{THE} )?{word}", Token("sky", sky)
    yield r"(?:from )?(?:the )?left to (?:the )?right|from the left", Token("direction", "right")
    yield r"(?:from )?(?:the )?right to (?:the )?left|from the right", Token("direction", "left")
    for side in ("left", "right"):
        # "To the left of", "the left ball" and "right next to" say where a thing is, not where it goes.
        place = rf"(?! (?:of|side|hand|half|corner|edge|next|beside|near|{things})\b)"
        yield rf"(?:towards? the |to the )?{side}{place}|{side}wards?", Token("direction", side)
    for motion, motion_words in MOTION_WORDS.items():
        phrases = _MORE_MOTION_WORDS[motion].split("|")
        for word in (*phrases[1:], *motion_words, *phrases[0].split()):
            yield word, Token("motion", motion)
    for color, color_words in COLOR_WORDS.items():
        yield "|".join(color_words), Token("color", color)
    for shape, shape_words in SHAPE_WORDS.items():
        yield "|".join(word + ("es" if word.endswith("x") else "s") for word in shape_words), Token("shapes", shape)
        yield "|".join(shape_words), Token("shape", shape)
    for word, number in _COUNTS.items():
        yield word, Token("count", str(number))
    yield "one", Token("one")
    yield "the", Token("the")
    yield "another|an|a", Token("a")
    yield "and", Token("and")
    yield "next to|beside|near|with", Token("beside")
    yield "is|are", Token("is")


_LEXER = Lexer(_patterns())
