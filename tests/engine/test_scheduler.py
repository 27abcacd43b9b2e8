"""Who goes next: properties that hold whatever comes."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from cosmorama.engine.scheduler import PRIORITIES, PROMOTION_S, Candidate, admit, order

seconds = st.floats(0, 1e6, allow_nan=False)
candidates = st.lists(
    st.builds(Candidate, st.uuids().map(str), st.sampled_from(PRIORITIES), seconds, seconds), max_size=20
)


@given(candidates)
def test_order_keeps_everybody_and_is_settled(given_: list[Candidate]) -> None:
    ordered = order(given_)
    assert sorted(c.name for c in ordered) == sorted(c.name for c in given_)
    assert order(ordered) == ordered


@given(st.lists(seconds, min_size=2, max_size=20, unique=True), st.sampled_from(PRIORITIES), st.floats(0, 800))
@example([1e6, 999_999.9999999999], "high", 0.0)
def test_of_those_that_came_together_the_shortest_goes_first(remaining: list[float], priority, age_s: float) -> None:
    ordered = order(Candidate(str(i), priority, age_s, left) for i, left in enumerate(remaining))
    lengths = [max(candidate.remaining_s, 1e-3) for candidate in ordered]
    assert lengths == sorted(lengths)


@given(seconds, seconds, st.floats(0, PROMOTION_S - 1), st.floats(0, PROMOTION_S - 1))
def test_a_better_class_goes_first_until_age_has_promoted_the_other(a: float, b: float, x: float, y: float) -> None:
    assert order([Candidate("n", "normal", x, a), Candidate("h", "high", y, b)])[0].name == "h"
    old = Candidate("l", "low", 2 * PROMOTION_S + y + 1, a)
    fresh = Candidate("h", "high", 0.0, max(a, 1.0))
    assert order([fresh, old])[0].name == "l"


def test_a_long_one_is_done_although_short_ones_never_stop_coming() -> None:
    """Short jobs of 1 s arrive once a second, all the capacity there is; the long one still ends."""
    now, tick, arrived = 0.0, 0.1, 0
    work = {"long": 30.0}
    since = {"long": 0.0}
    waits = []
    while "long" in work:
        assert now < 600
        if now >= arrived:
            work[f"short {arrived}"], since[f"short {arrived}"] = 1.0, now
            arrived += 1
        chosen = order(Candidate(n, "normal", now - since[n], left) for n, left in work.items())[0].name
        work[chosen] -= tick
        now += tick
        if work[chosen] <= 1e-9:
            del work[chosen]
            if chosen != "long":
                waits.append(now - since[chosen])
    assert len(waits) > 5
    assert waits[0] < 3


@given(candidates, candidates, st.integers(1, 4))
def test_taking_in(held: list[Candidate], waiting: list[Candidate], slots: int) -> None:
    chosen = admit(held, waiting, slots)
    if not waiting or len(held) > slots:
        assert chosen is None
    elif len(held) < slots:
        assert chosen == order(waiting)[0]
    else:
        assert chosen is None or order([*held, *waiting])[0] == chosen
