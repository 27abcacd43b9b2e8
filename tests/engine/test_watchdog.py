"""Whether a worker hangs, told from what it reports and how much processor it uses."""

from __future__ import annotations

from cosmorama.engine.watchdog import FIRST_MAY_TAKE, TIMES_THE_LONGEST, Watchdog
from cosmorama.progress import Progress
from cosmorama.request import ResolvedRequest

REQUEST = ResolvedRequest(prompt="a ball", frames=9)
LARGE = ResolvedRequest(prompt="a ball", frames=93)
LIMIT_S = 10.0


def ticks(dog: Watchdog, seconds: float, *, busy: bool = True) -> str | None:
    """What it says when nothing is reported for so long."""
    said = None
    for _ in range(round(seconds)):
        said = said or dog.overdue(1.0, 1.0 if busy else 0.0)
    return said


def measured(unit_s: float = 1.0, *, on_gpu: bool = True) -> Watchdog:
    """One that has seen units of this length."""
    dog = Watchdog(LIMIT_S, on_gpu=on_gpu)
    for step in range(3):
        dog.advanced("job", REQUEST, Progress("denoise", step, 50))
        assert ticks(dog, unit_s) is None
    return dog


def test_nobody_hangs_who_has_nothing_to_do() -> None:
    dog = Watchdog(LIMIT_S, on_gpu=True)
    assert ticks(dog, 1000, busy=False) is None
    dog.advanced("job", REQUEST, Progress("prepare"))  # somebody's video is downloaded, under limits of its own
    assert ticks(dog, 1000, busy=False) is None
    dog.advanced("job", REQUEST, Progress("denoise", 1, 50))
    dog.ended("job")
    assert ticks(dog, 1000, busy=False) is None


def test_a_unit_that_takes_too_long() -> None:
    dog = measured()
    dog.advanced("job", REQUEST, Progress("denoise", 3, 50))
    assert ticks(dog, max(LIMIT_S, TIMES_THE_LONGEST) - 1) is None
    said = ticks(dog, 3)
    assert said is not None
    assert "denoise" in said


def test_slow_units_may_take_longer() -> None:
    dog = measured(8.0)
    dog.advanced("job", REQUEST, Progress("denoise", 3, 50))
    assert ticks(dog, TIMES_THE_LONGEST * 8 - 1) is None
    assert ticks(dog, 3) is not None


def test_the_first_of_a_size_may_take_longer_on_a_gpu() -> None:
    dog = measured()
    dog.advanced("large", LARGE, Progress("denoise", 0, 50))
    assert ticks(dog, FIRST_MAY_TAKE * LIMIT_S - 1) is None
    assert ticks(dog, 3) is not None


def test_the_first_of_a_size_takes_as_long_as_it_computes_on_a_cpu() -> None:
    dog = measured(on_gpu=False)
    dog.advanced("large", LARGE, Progress("denoise", 0, 50))
    assert ticks(dog, 10_000) is None
    idle = measured(on_gpu=False)
    idle.advanced("large", LARGE, Progress("denoise", 0, 50))
    assert ticks(idle, max(LIMIT_S, TIMES_THE_LONGEST) + 2, busy=False) is not None


def test_time_in_which_the_server_itself_stood_still_counts_little() -> None:
    dog = measured()
    dog.advanced("job", REQUEST, Progress("denoise", 3, 50))
    assert dog.overdue(3600.0, 0.0) is None
