"""Which frames of a clip stand for it on another clip's grid of times."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

_SLACK = 0.25
"""How far before a clip's first frame, in grid intervals, a sample may fall: containers round times to 1 ms or so."""


def span_s(fps: float, frames: int) -> float:
    """Seconds from the first to the last of `frames` samples."""
    return (frames - 1) / fps


def pick_last(times_s: Sequence[float], fps: float, frames: int) -> list[int]:
    """Indices of the frames nearest in time to the last `frames` points of a grid that ends at the last frame.

    Args:
        times_s: Presentation times in seconds, ascending, at least one.
        fps: Points per second of the grid, above 0.
        frames: Most points wanted, at least 1.

    Returns:
        Ascending indices into `times_s`, at least 1 and at most `frames`: fewer where the clip is shorter than the
        grid. An index repeats where the clip has fewer frames per second than the grid.
    """
    end = times_s[-1]
    available = math.floor((end - times_s[0]) * fps + _SLACK) + 1
    wanted = [end - k / fps for k in reversed(range(min(frames, available)))]
    return [_nearest(times_s, time) for time in wanted]


def pick_first(times_s: Sequence[float], fps: float, frames: int) -> list[int]:
    """Indices of the frames nearest in time to the first `frames` points of a grid that starts at the first frame.

    Arguments and result as for `pick_last`.
    """
    start = times_s[0]
    available = math.floor((times_s[-1] - start) * fps + _SLACK) + 1
    return [_nearest(times_s, start + k / fps) for k in range(min(frames, available))]


def _nearest(times_s: Sequence[float], time: float) -> int:
    after = min(bisect.bisect_left(times_s, time), len(times_s) - 1)
    before = max(after - 1, 0)
    return before if time - times_s[before] < times_s[after] - time else after
