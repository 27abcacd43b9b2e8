"""What a server knows of the queue without reading it."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Literal

import pytest

from cosmorama.jobs.model import Job
from cosmorama.jobs.queue import Board, Standing
from cosmorama.jobs.store import Unfinished
from cosmorama.progress import Progress
from tests.jobs.fake import REQUEST

NOW = time.time()


def job(name: str, age_s: float = 0.0) -> Job:
    return Job(
        id=name,
        state="queued",
        dialect="predict1",
        model="fake",
        owner="",
        request=REQUEST,
        priority="normal",
        created_at=NOW - age_s,
    )


def stored(name: str, state: Literal["queued", "running"] = "queued", age_s: float = 0.0) -> Unfinished:
    return Unfinished(name, state, "normal", NOW - age_s, Progress("queued"))


def read(board: Board, *jobs: Unfinished) -> None:
    board.begin()
    board.see(jobs, {known.id: REQUEST for known in jobs})


def test_places_and_times_add_up_whoever_is_asked_for() -> None:
    board = Board()
    board.estimator.finished(REQUEST, {"denoise": 2.0, "decode": 1.0})
    read(board, *(stored(f"old{i}", "running" if i in (0, 3) else "queued", age_s=100 - i) for i in range(6)))
    for i in range(3):
        board.add(job(f"new{i}", age_s=3 - i))
    names = [known.id for known, _ in board.in_order()]
    assert names == [*(f"old{i}" for i in range(6)), "new0", "new1", "new2"]
    together = board.standings(names)
    assert together == {name: board.standings([name])[name] for name in names}
    assert [together[name].position for name in names] == [None, 1, 2, None, 3, 4, 5, 6, 7]
    assert [together[name].eta_s for name in names] == pytest.approx([3.0 * (i + 1) for i in range(9)])
    assert board.standings(["nobody"]) == {}


def test_the_end_of_a_job_is_known_without_reading() -> None:
    board = Board()
    read(board, stored("a", age_s=3), stored("b", age_s=2))
    board.claimed("a")
    assert board.standings(["a", "b"]) == {"a": Standing(None, None), "b": Standing(1, None)}
    board.ended(job("a"), "succeeded", None)
    assert [known.id for known, _ in board.in_order()] == ["b"]
    assert "a" not in board


def test_what_happens_while_the_store_is_read_is_not_forgotten() -> None:
    board = Board()
    read(board, stored("a", age_s=3), stored("b", age_s=2))
    board.begin()
    as_read = [stored("a", age_s=3), stored("b", age_s=2)]
    board.ended(job("a"), "succeeded", None)
    board.claimed("b")
    board.add(job("c"))
    board.see(as_read, {})
    assert {known.id: known.state for known in board.jobs} == {"b": "running", "c": "queued"}
    read(board, *as_read)  # later it is the store that knows best
    assert {known.id: known.state for known in board.jobs} == {"a": "queued", "b": "queued"}
    assert not board.suspect("a")
    read(board, replace(as_read[0], suspect=True))
    assert board.suspect("a")


def test_reading_again_lets_jobs_in_and_out_at_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cosmorama.jobs.queue.SORTING_SHARE", 1e-9)  # sorted once, and not again
    board = Board()
    read(board, *(stored(name, age_s=age) for name, age in (("a", 50), ("c", 30), ("e", 10))))
    assert [known.id for known, _ in board.in_order()] == ["a", "c", "e"]
    read(board, *(stored(name, age_s=age) for name, age in (("b", 40), ("c", 30), ("d", 20), ("e", 10))))
    assert [known.id for known, _ in board.in_order()] == ["b", "c", "d", "e"]
    assert [board.standings([name])[name].position for name in "bcde"] == [1, 2, 3, 4]
    board.ended(job("c"), "succeeded", None)
    assert board.standings("bcde") == {"b": Standing(1, None), "d": Standing(2, None), "e": Standing(3, None)}
