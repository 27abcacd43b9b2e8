"""Whether a worker hangs: no unit of work has ended for far longer than one takes.

On a GPU a hang is a kernel that never ends, or a peer that is gone (NCCL); on a CPU a deadlock. The worker cannot tell:
it is what hangs. So its parent measures from what it is told: after every unit of work the worker reports.
"""

from __future__ import annotations

from collections import OrderedDict

from cosmorama.engine.estimate import volume
from cosmorama.progress import Progress, Stage
from cosmorama.request import ResolvedRequest

TIMES_THE_LONGEST = 20
"""A unit may take so many times as long as the longest of its kind so far."""
FIRST_MAY_TAKE = 5
"""The first of its kind has so many times the limit: it compiles, plans and allocates."""
_KNOWN = 256
_LONGEST_TICK_S = 2.0
_BUSY_SHARE = 0.02

Unit = tuple[Stage, int]
"""What units of work are compared by: the stage, and the clip's pixels."""


class Watchdog:
    """Told of every event of one worker and asked every second; it has no clock of its own."""

    def __init__(self, limit_s: float, *, on_gpu: bool) -> None:
        """Watch one life of a worker.

        Args:
            limit_s: No unit is overdue before.
            on_gpu: Whether the worker's processor may idle although it works.
        """
        self._limit_s = limit_s
        self._on_gpu = on_gpu
        self._longest: OrderedDict[Unit, float] = OrderedDict()
        self._working: dict[str, Unit] = {}
        self._quiet_s = 0.0
        self._used_s = 0.0

    def advanced(self, name: str, request: ResolvedRequest, progress: Progress) -> None:
        """A generation got further: a unit of work has ended."""
        before = self._working.get(name)
        if before is not None:
            self._longest[before] = max(self._longest.get(before, 0.0), self._quiet_s)
            self._longest.move_to_end(before)
            if len(self._longest) > _KNOWN:
                self._longest.popitem(last=False)
        if progress.stage in ("encode", "denoise", "decode"):
            self._working[name] = (progress.stage, volume(request))
        else:
            self._working.pop(name, None)
        self._quiet_s = self._used_s = 0.0

    def ended(self, name: str) -> None:
        """A generation is over."""
        self._working.pop(name, None)
        self._quiet_s = self._used_s = 0.0

    def overdue(self, passed_s: float, used_s: float) -> str | None:
        """In words, what takes too long; None while nothing does.

        Args:
            passed_s: Since this was asked last. More than two seconds count as two: then this process was held up too.
            used_s: Processor seconds that the worker used meanwhile.
        """
        if not self._working:
            return None
        self._quiet_s += min(passed_s, _LONGEST_TICK_S)
        self._used_s += used_s
        limit_s = max(map(self._limit, self._working.values()))
        if self._quiet_s <= limit_s:
            return None
        unknown = any(unit not in self._longest for unit in self._working.values())
        if unknown and not self._on_gpu and self._used_s > self._quiet_s * _BUSY_SHARE:
            return None  # a first step of a large model on a CPU takes as long as it takes
        stages = " or ".join(sorted({stage for stage, _ in self._working.values()}))
        return f"a unit of work ({stages}) did not end within {limit_s:.0f} s"

    def _limit(self, unit: Unit) -> float:
        longest = self._longest.get(unit)
        if longest is None:
            # A worker that uses no processor does not work on one.
            return self._limit_s * (FIRST_MAY_TAKE if self._on_gpu else 1)
        return max(self._limit_s, TIMES_THE_LONGEST * longest)
