"""What a server knows of the queue between two looks at the store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import pytest

from cosmorama.jobs.model import Job
from cosmorama.jobs.queue import QueueView, Standing
from cosmorama.jobs.store import Unfinished
from cosmorama.progress import Progress
from cosmorama.request import ResolvedRequest
from tests.jobs.fake import REQUEST

NOW = time.time()


class FakeStore:
    """Says what the test wants; `meanwhile` happens while it is being read."""

    def __init__(self) -> None:
        self.jobs: list[Unfinished] = []
        self.reads = 0
        self.database = self
        self.time: Callable[[], float] = lambda: NOW  # the ages below are those that they say
        self.meanwhile: Callable[[], None] = lambda: None

    async def unfinished(self, known: Mapping[str, ResolvedRequest]) -> tuple[list[Unfinished], list[str]]:
        self.reads += 1
        as_read = list(self.jobs)
        await asyncio.sleep(0)
        self.meanwhile()
        return as_read, []


def queue_of(*jobs: Unfinished) -> tuple[QueueView, FakeStore]:
    store = FakeStore()
    store.jobs = list(jobs)
    queue = QueueView(store)  # type: ignore[arg-type]
    asyncio.run(queue.refresh())
    return queue, store


def job(name: str, age_s: float = 0.0, state: Literal["queued", "succeeded"] = "queued") -> Job:
    known: dict[str, Any] = {"dialect": "predict1", "model": "fake", "owner": "", "priority": "normal"}
    return Job(id=name, state=state, request=REQUEST, created_at=NOW - age_s, **known)


def stored(name: str, state: Literal["queued", "running"] = "queued", age_s: float = 0.0) -> Unfinished:
    return Unfinished(name, state, "normal", NOW - age_s, Progress("queued"), REQUEST)


def names(queue: QueueView) -> list[str]:
    return [candidate.name for candidate in queue.ordered()]


def test_what_the_worker_measures_is_told_before_anything_was_finished() -> None:
    running, waits = stored("runs", "running", age_s=90), stored("waits", age_s=1)
    queue, _ = queue_of(replace(running, progress=Progress("denoise", 3, 35, remaining_s=4.0)), waits)
    standings = queue.standings(["runs", "waits"])
    assert (standings["runs"].eta_s, standings["waits"].eta_s) == (4.0, None)  # how long a new one takes nobody knows


def test_places_and_times_add_up_whoever_is_asked_for() -> None:
    queue, _ = queue_of(*(stored(f"old{i}", "running" if i in (0, 3) else "queued", age_s=100 - i) for i in range(6)))
    queue.estimator.finished(REQUEST, {"denoise": 2.0, "decode": 1.0})
    asyncio.run(queue.refresh())
    for i in range(3):
        queue.accepted(job(f"new{i}", age_s=3 - i))
    assert names(queue) == [*(f"old{i}" for i in range(6)), "new0", "new1", "new2"]
    together = queue.standings(names(queue))
    assert together == {name: queue.standings([name])[name] for name in together}
    assert [place.position for place in together.values()] == [None, 1, 2, None, 3, 4, 5, 6, 7]
    assert [place.eta_s for place in together.values()] == pytest.approx([3.0 * (i + 1) for i in range(9)])
    assert queue.standings(["nobody"]) == {}
    assert queue.next_free_s == pytest.approx(3.0)


def test_what_happens_here_is_known_without_reading() -> None:
    queue, store = queue_of(stored("a", age_s=3), stored("b", age_s=2))
    queue.started(job("a"))
    assert queue.standings(["a", "b"]) == {"a": Standing(None, None), "b": Standing(1, None)}
    queue.ended(job("a", state="succeeded"))
    queue.accepted(job("c"))
    assert names(queue) == ["b", "c"]
    assert (queue.queued, store.reads) == (2, 1)


def test_what_happens_while_the_store_is_read_is_not_forgotten() -> None:
    queue, store = queue_of(stored("a", age_s=3), stored("b", age_s=2))

    def meanwhile() -> None:
        queue.ended(job("a", state="succeeded"))
        queue.started(job("b"))
        queue.accepted(job("c"))

    store.meanwhile = meanwhile
    asyncio.run(queue.refresh())
    assert {name: known.state for name, known in queue.jobs.items()} == {"b": "running", "c": "queued"}
    assert names(queue) == ["b", "c"]
    store.meanwhile = lambda: None  # later it is the store that knows best
    asyncio.run(queue.refresh())
    assert {name: known.state for name, known in queue.jobs.items()} == {"a": "queued", "b": "queued"}
    assert queue.gone == ["c"]
    assert not queue.suspect("a")
    store.jobs[0] = replace(store.jobs[0], suspect=True)
    asyncio.run(queue.refresh())
    assert queue.suspect("a")


def test_who_asks_while_it_is_read_shares_the_next_reading() -> None:
    queue, store = queue_of(stored("a"))

    async def ask() -> None:
        await asyncio.gather(*(queue.refresh() for _ in range(20)))

    asyncio.run(ask())
    assert store.reads - 1 == 2


def test_who_arrives_takes_its_place_without_a_new_order(monkeypatch: pytest.MonkeyPatch) -> None:
    queue, _ = queue_of(*(stored(f"s{i}", age_s=10 * i) for i in range(20)))
    before = names(queue)
    monkeypatch.setattr("cosmorama.jobs.queue.order", None)
    queue._sorted_until = float("inf")
    for arrived in (job("late"), replace(job("high"), priority="high"), job("old", age_s=55)):
        queue.accepted(arrived)
    monkeypatch.undo()
    kept = names(queue)
    assert [name for name in kept if name in before] == before
    queue._sorted_until = float("-inf")
    assert names(queue) == kept
    assert kept[0] == "high"
