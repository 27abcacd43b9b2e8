"""Whether the camera of a clip moves forward: everything then moves away from the middle of the picture.

What is near the picture's edge is usually nearer to the camera too, so that its speed grows with the square of its
distance from the middle. How well that explains the change from one picture to another, and how fast it goes, is a
least-squares solution of the brightness constancy equation (Lucas and Kanade, 1981).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cosmorama.text.colors import Floats
from cosmorama.text.pixels import cells

_PAIRS = 8
_APART_S = 1 / 12
_EXPLAINED = 0.3  # of the change
_EVERYWHERE = 0.2  # of the whole picture's rate, in each of its quarters
_MARGIN = 3


def approach(frames: NDArray[np.uint8], fps: float) -> float:
    """How fast a clip uint8 [T, H, W, 3] is driven into.

    Returns:
        By which share per second things at the picture's edge move away from its middle; below 0 for a camera that
        moves backward, 0 for one that does neither.
    """
    step = max(1, round(fps * _APART_S))
    if len(frames) <= step:
        return 0.0
    starts = np.unique(np.linspace(0, len(frames) - 1 - step, _PAIRS).astype(int))
    rates = [_rate(_light(frames[start]), _light(frames[start + step])) for start in starts]
    found = [rate for rate in rates if rate]
    if len(found) <= len(rates) / 2 or min(found) * max(found) < 0:
        return 0.0
    return float(np.median(found)) * fps / step


def _light(frame: NDArray[np.uint8]) -> Floats:
    light: Floats = cells(frame)[..., 0]
    for axis in (0, 1, 0, 1):
        light = (np.roll(light, 1, axis) + 2 * light + np.roll(light, -1, axis)) * np.float32(0.25)
    return light


def _rate(before: Floats, after: Floats) -> float:
    """From one picture to the other; 0 where moving away from the middle does not explain the change."""
    if min(before.shape) <= 2 * (_MARGIN + 1):
        return 0.0
    down, right = np.gradient((before + after) / 2)
    y, x = (np.arange(side, dtype=np.float32) - (side - 1) / 2 for side in before.shape)
    nearness = np.maximum(np.abs(y)[:, None], np.abs(x)) / (max(before.shape) / 2)
    along = nearness * (y[:, None] * down + x * right)
    inner = (slice(_MARGIN, -_MARGIN), slice(_MARGIN, -_MARGIN))
    along, change = along[inner], (after - before)[inner]
    rate = _solved(along, change)
    left = float(((change + rate * along) ** 2).sum())
    quarters = [
        _solved(along_part, change_part)
        for along_half, change_half in zip(np.array_split(along, 2), np.array_split(change, 2), strict=True)
        for along_part, change_part in zip(
            np.array_split(along_half, 2, axis=1), np.array_split(change_half, 2, axis=1), strict=True
        )
    ]
    explained = left < (1 - _EXPLAINED) * float((change**2).sum())
    everywhere = all(part / rate > _EVERYWHERE for part in quarters) if rate else False
    return rate if explained and everywhere else 0.0


def _solved(along: Floats, change: Floats) -> float:
    return -float((along * change).sum()) / max(float((along**2).sum()), 1e-9)
