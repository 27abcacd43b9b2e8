"""Reading a prompt in the scene language: what it names, what it leaves open, or that it says something else."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import cast

from cosmorama.text.scene_language import Color, Direction, Floor, Motion, Shape, Sky
from cosmorama.text.scene_words import Token, tokens

MAX_OBJECTS = 2


@dataclass(frozen=True, slots=True)
class NamedObject:
    """An object as the prompt names it; a color of None is left open."""

    shape: Shape
    color: Color | None = None


@dataclass(frozen=True, slots=True)
class PromptScene:
    """What a prompt says about a scene: the object that acts first, and None for all that it leaves open."""

    objects: tuple[NamedObject, ...]
    motion: Motion | None = None
    direction: Direction | None = None
    floor: Floor | None = None
    sky: Sky | None = None


def parse_scene(prompt: str) -> PromptScene | None:
    """What the prompt names, or None when the scene language cannot express all of it.

    Strict on purpose: a word that is not of the language (a size, a material, a negation, a place), a third object, or
    two motions at once all make it None, because a rewriting that drops what somebody asked for is worse than none.

    Example:
        >>> parse_scene("a crimson sphere glides left")
        PromptScene(objects=(NamedObject(shape='ball', color='red'),), motion='roll', direction='left', ...)
    """
    words = tokens(prompt)
    if words is None:
        return None
    try:
        return _Reader().read(words)
    except _OutsideError:
        return None


class _OutsideError(Exception):
    """The prompt says something that the scene language cannot."""


@dataclass
class _Reader:
    """The state of reading one prompt: the noun phrase that is being read, and what was understood so far."""

    objects: list[NamedObject] = field(default_factory=list)
    events: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    """In order: ("object", the indices mentioned), ("beside", ()), ("motion", ())."""
    said: dict[str, str] = field(default_factory=dict)
    color: Color | None = None
    count: int = 0
    article: str = ""
    after_is: bool = False

    def read(self, words: list[Token]) -> PromptScene:
        for token in words:
            getattr(self, f"_{token.kind}", self._other)(token)
        self._end_phrase()
        if not self.objects:
            raise _OutsideError
        motion = cast("Motion | None", self.said.get("motion"))
        direction = cast("Direction | None", self.said.get("direction"))
        if direction and motion not in ("roll", "collide"):
            raise _OutsideError
        if motion:
            actor = self._actor(motion)
            self.objects.insert(0, self.objects.pop(actor))
        return PromptScene(
            tuple(self.objects),
            motion,
            direction,
            cast("Floor | None", self.said.get("floor")),
            cast("Sky | None", self.said.get("sky")),
        )

    def _color(self, token: Token) -> None:
        if self.color:
            raise _OutsideError
        self.color = cast(Color, token.value)

    def _count(self, token: Token) -> None:
        if self.count or self.color:
            raise _OutsideError
        self.count = int(token.value)

    def _one(self, token: Token) -> None:
        if self.count > 1:
            raise _OutsideError
        if self.color:  # "a red one"
            self._end_phrase(elliptical=True)
        else:
            self.count = 1

    def _the(self, token: Token) -> None:
        self._end_phrase()
        self.article = "the"

    def _a(self, token: Token) -> None:
        self._end_phrase()
        self.article = "a"

    def _is(self, token: Token) -> None:
        self._end_phrase()
        self.after_is = True

    def _beside(self, token: Token) -> None:
        self._end_phrase()
        self.events.append(("beside", ()))

    def _shape(self, token: Token) -> None:
        named = NamedObject(cast(Shape, token.value), self.color)
        if self.count > 1 or (self.objects and not (self.article or self.count or self.color)):
            raise _OutsideError
        self._mention(self._known(named)[:1] or self._new(named, 1))

    def _shapes(self, token: Token) -> None:
        named = NamedObject(cast(Shape, token.value), self.color)
        if self.count == 1:
            raise _OutsideError
        self._mention(self._known(named) or self._new(named, self.count or 2))

    def _known(self, named: NamedObject) -> tuple[int, ...]:
        """The objects that "the ball" means, when it was mentioned before."""
        if self.article != "the":
            return ()
        fits = [i for i, known in enumerate(self.objects) if known.shape == named.shape]
        fits = [i for i in fits if named.color in (None, self.objects[i].color)]
        if len({self.objects[i] for i in fits}) > 1:
            raise _OutsideError
        return tuple(fits)

    def _new(self, named: NamedObject, count: int) -> tuple[int, ...]:
        first = len(self.objects)
        if first + count > MAX_OBJECTS:
            raise _OutsideError
        self.objects += [named] * count
        return tuple(range(first, first + count))

    def _mention(self, indices: tuple[int, ...]) -> None:
        self.events.append(("object", indices))
        self.color, self.count, self.article, self.after_is = None, 0, "", False

    def _motion(self, token: Token) -> None:
        self._end_phrase()
        self.events.append(("motion", ()))
        now = self.said.get("motion", token.value)
        if {now, token.value} == {"roll", "collide"}:  # it rolls and hits: one scene
            self.said["motion"] = "collide"
        else:
            self._say(token)

    def _direction(self, token: Token) -> None:
        self._say(token)

    def _floor(self, token: Token) -> None:
        self._say(token)

    def _sky(self, token: Token) -> None:
        self._say(token)

    def _other(self, token: Token) -> None:
        self._end_phrase()

    def _say(self, token: Token) -> None:
        self._end_phrase()
        if self.said.setdefault(token.kind, token.value) != token.value:
            raise _OutsideError

    def _end_phrase(self, elliptical: bool = False) -> None:
        """Close a noun phrase that had no noun: "the ball is red", "one blue"; any other is not understood."""
        if self.color:
            if self.after_is and not self.count:
                last = next((indices for kind, indices in reversed(self.events) if kind == "object"), ())
            elif elliptical or self.count == 1:
                last = tuple(i for i, known in enumerate(self.objects) if known.color is None)[:1]
            else:
                last = ()
            if not last or any(self.objects[i].color for i in last):
                raise _OutsideError
            for i in last:
                self.objects[i] = replace(self.objects[i], color=self.color)
        elif self.count > 1:
            raise _OutsideError
        self.color, self.count, self.article, self.after_is = None, 0, "", False

    def _actor(self, motion: Motion) -> int:
        """Whose motion it is. In a scene only one object moves by itself, so "two balls roll" cannot be said."""
        start = next(i for i, (kind, _) in enumerate(self.events) if kind == "motion")
        before = list(dict.fromkeys(i for _, indices in self.events[:start] for i in indices))
        kinds = [kind for kind, _ in self.events]
        if not before:  # "a rolling ball"
            start = kinds.index("object", start)
            before = list(self.events[start][1])
        if "beside" in kinds[:start] and (len(before) < 2 or kinds[0] == "beside"):
            raise _OutsideError
        together = len(before) > 1 and "beside" not in kinds[:start]
        if motion == "still" or (motion == "collide" and together):
            return before[0]
        # After the first motion only the object that moves, or the one that is hit last, may be spoken of.
        last = max(i for i, kind in enumerate(kinds) if kind == "motion")
        between = {i for _, indices in self.events[start:last] for i in indices}
        if together or not between <= {before[0]}:
            raise _OutsideError
        return before[0]
