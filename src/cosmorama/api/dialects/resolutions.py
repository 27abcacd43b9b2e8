"""The resolution keys of the later wire formats: a tier (256, 480, 512 or 720), alone or with an aspect ratio.

A tier alone means 16:9. `720_16_9` is 1280x704 to Predict2.5 and 1280x720 to the Generator and Cosmos3.
"""

from __future__ import annotations

from collections.abc import Mapping

from cosmorama.errors import InvalidRequestError, Problem
from cosmorama.request import Size

ASPECTS = ("16_9", "1_1", "9_16", "4_3", "3_4")
Table = Mapping[str, Size]


def _tier(tier: str, *sizes: tuple[int, int]) -> dict[str, Size]:
    """Keys of one tier; `sizes` are (width, height) in the order of `ASPECTS`."""
    named = {f"{tier}_{aspect}": Size(*size) for aspect, size in zip(ASPECTS, sizes, strict=True)}
    return {tier: named[f"{tier}_16_9"], **named}


_256 = _tier("256", (320, 192), (256, 256), (192, 320), (320, 256), (256, 320))
_480 = _tier("480", (832, 480), (640, 640), (480, 832), (736, 544), (544, 736))
_512 = _tier("512", (640, 384), (512, 512), (384, 640), (640, 512), (512, 640))

COSMOS3: Table = {
    **_256,
    **_480,
    **_tier("720", (1280, 720), (960, 960), (720, 1280), (1104, 832), (832, 1104)),
}
"""Also the Generator's."""

PREDICT25: Table = {
    **_256,
    **_480,
    **_512,
    **_tier("720", (1280, 704), (960, 960), (704, 1280), (960, 704), (704, 960)),
}
"""Tier 720 is the five sizes of the Predict models; Transfer2.5 has the same tiers."""


def size_of(key: str, table: Table) -> Size:
    """The size that a resolution key stands for.

    Raises:
        InvalidRequestError: the table has no such key.
    """
    if key not in table:
        raise InvalidRequestError(Problem("resolution", key, f"one of {', '.join(table)}"))
    return table[key]


def tier_of(key: str) -> str:
    """The tier of a key: 720 of `720_16_9`."""
    return key.partition("_")[0]
