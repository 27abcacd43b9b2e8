"""Which request goes next: priority class first, then the largest ratio of age to remaining work.

The ratio is that of highest-response-ratio-next scheduling (P. Brinch Hansen, 1971), applied between steps: of requests
that came together the shortest goes first; a short one soon overtakes a long one; and a long one cannot starve, since
its ratio grows for as long as it is here, with every step that it is given as well as with every second that it waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from cosmorama.request import ResolvedRequest

Priority = Literal["high", "normal", "low"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)
"""Best first."""
PROMOTION_S = 900.0
"""A request moves up one class for every so many seconds of its age, so that no class starves another."""
PREPARING, PREPARING_PER_OWNER = 8, 4
"""Requests whose inputs are fetched, read, described or expanded at once, beside those that compute; and of one owner,
so that whose inputs come slowly keeps only his own waiting."""
_LEAST_WORK_S = 1e-3


@dataclass(frozen=True, slots=True)
class Candidate:
    """A request that could go next.

    Attributes:
        name: Its name.
        priority: Its class.
        age_s: Seconds since it was accepted.
        remaining_s: Estimated seconds of work left.
    """

    name: str
    priority: Priority
    age_s: float
    remaining_s: float


def prepares_slowly(request: ResolvedRequest, *, expanded_elsewhere: bool) -> bool:
    """Whether preparing a request may take long: it has media, or another server writes its prompt out.

    Such a request takes none of the places of those that compute until its inputs are there.
    """
    media = request.image is not None or request.video is not None or bool(request.controls)
    return media or (expanded_elsewhere and request.prompt_upsampling is not False)


def order(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The candidates, the one that should be advanced now first; of equals the oldest, the shortest, or as given."""
    return sorted(candidates, key=rank)


def admit(held: Sequence[Candidate], waiting: Sequence[Candidate], slots: int) -> Candidate | None:
    """The waiting candidate to take in beside those that are held, if any.

    While one of `slots` is free, the best. When all are taken there is one more, for a candidate that would be advanced
    before everything that is held: else a short one would wait until a long one is through.
    """
    if not waiting or len(held) > slots:
        return None
    best = order(waiting)[0]
    return best if len(held) < slots or order([*held, best])[0] is best else None


def rank(candidate: Candidate) -> tuple[int, float, float, float]:
    """What `order` sorts by: the least goes first."""
    promoted = PRIORITIES.index(candidate.priority) - int(max(candidate.age_s, 0) // PROMOTION_S)
    remaining_s = max(candidate.remaining_s, _LEAST_WORK_S)
    # At age zero every ratio is zero; the millisecond lets the shortest go first then too.
    ratio = (max(candidate.age_s, 0) + 1e-3) / remaining_s
    return max(promoted, 0), -ratio, -candidate.age_s, remaining_s  # the last where two ratios are one number
