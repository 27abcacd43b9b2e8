"""Keeping a text within a number of words."""

from __future__ import annotations

import re

_SENTENCE_END = re.compile(r"[.!?][\"'”’)]*(?=\s|$)")


def within_words(text: str, limit: int) -> str:
    """The text on one line, cut at the last sentence end that leaves at most `limit` words (else at the word)."""
    words = text.split()
    kept = " ".join(words[:limit])
    if len(words) <= limit:
        return kept
    ends = [match.end() for match in _SENTENCE_END.finditer(kept)]
    return kept[: ends[-1]] if ends else kept
