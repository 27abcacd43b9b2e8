"""JSON in which every object has each of its fields once: of two values, one would be lost without a word."""

from __future__ import annotations

import json
from typing import Any


def loads(text: str | bytes | bytearray) -> Any:
    """What a text in JSON says; the same value twice does no harm.

    Raises:
        RepeatedFieldError: a field has two values.
        ValueError: it is no JSON, or nested too deep to be read.
    """
    try:
        return json.loads(text, object_pairs_hook=_each_once)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


class RepeatedFieldError(ValueError):
    """An object with two values of one field.

    Attributes:
        field: Its name.
    """

    def __init__(self, field: str) -> None:
        self.field = field[:80]
        super().__init__(f"{self.field}: has two values; send one of them")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found and found[name] != value:
            raise RepeatedFieldError(name)
        found[name] = value
    return found
