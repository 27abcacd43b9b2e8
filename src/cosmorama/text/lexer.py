"""Prompts read as words and phrases that all are known; a prompt with any other word is not read at all."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Generic, TypeVar

T = TypeVar("T")

ON = r"(?:on|onto|upon|across|over|along|to)"
THE = r"(?:a|an|the)"
MAX_CHARACTERS = 2000
"""Of a prompt that is read: one that only says what these languages can is never nearly as long."""
_LONGEST_WORD = re.compile(r"\w{24}")
"""Characters that no known word has: looking for others in it costs time for each of them."""
_SEPARATOR = re.compile(r"[\s.,;:!'\"()-]*")


class Lexer(Generic[T]):
    """Reads what its patterns describe.

    Args:
        patterns: (regular expression, what it means), where a space stands for any separation; the first that matches
            wins.
    """

    def __init__(self, patterns: Iterable[tuple[str, T]]) -> None:
        table = tuple(patterns)
        self._meanings = tuple(meaning for _, meaning in table)
        words = "|".join(rf"(?P<_{i}>\b(?:{pattern})\b)" for i, (pattern, _) in enumerate(table))
        self._words = re.compile(words.replace(" ", r"[\s-]+"))

    def read(self, prompt: str) -> list[T] | None:
        """What the prompt's words mean, in order; None when it holds anything else."""
        if len(prompt) > MAX_CHARACTERS or _LONGEST_WORD.search(prompt):
            return None
        text = prompt.lower().replace("gray", "grey")
        found: list[T] = []
        end = 0
        for match in self._words.finditer(text):
            if not _SEPARATOR.fullmatch(text, end, match.start()):
                return None
            found.append(self._meanings[int((match.lastgroup or "_0")[1:])])
            end = match.end()
        return found if _SEPARATOR.fullmatch(text, end) else None
