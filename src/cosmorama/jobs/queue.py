"""The order of the queue, and how long everybody in it will have to wait."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left, insort
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

from cosmorama.engine.estimate import Estimator
from cosmorama.engine.outcome import Outcome
from cosmorama.engine.scheduler import Candidate, order, rank
from cosmorama.jobs.model import Job, JobError, Observer, State
from cosmorama.jobs.store import Unfinished, Upkeep
from cosmorama.progress import Progress
from cosmorama.request import ResolvedRequest

SORTING_SHARE = 0.02

"""How much of the time may go into sorting the queue: ranks change at every moment, and a long queue takes a while."""

_REMAINING_S = attrgetter("remaining_s")


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a job stands: its place among the queued (1 is next; None: it runs), and seconds until it is finished."""

    position: int | None
    eta_s: float | None


class Board(Observer):
    """What a server last saw of the unfinished jobs.

    Attributes:
        estimator: How long work takes here; told of what is made as an observer.
        gone: Ids of jobs that were unfinished when the store was read before, and that nobody ended here.
        seen_at: When the store was last read, on the monotonic clock.
    """

    def __init__(self) -> None:
        self.estimator = Estimator()
        self.seen_at = float("-inf")
        self.gone: list[str] = []
        self._jobs: dict[str, Unfinished] = {}
        self._requests: dict[str, ResolvedRequest] = {}
        # What happened here since the store was begun to be read, which may not have seen it; None: over.
        self._news: dict[str, Unfinished | None] = {}
        self._sorted: list[Candidate] = []
        self._ranked: dict[str, Candidate] = {}
        self._sorted_until = float("-inf")

    @property
    def jobs(self) -> Sequence[Unfinished]:
        """The unfinished, oldest first."""
        return list(self._jobs.values())

    @property
    def queued(self) -> int:
        """Jobs that wait."""
        return sum(job.state == "queued" for job in self._jobs.values())

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._jobs

    def begin(self) -> None:
        """The store is about to be read, for `see`."""
        self._news.clear()

    def unknown(self, jobs: Sequence[Unfinished]) -> list[str]:
        """Ids of jobs whose requests have to be read before `see`."""
        return [job.id for job in jobs if job.id not in self._requests]

    def see(self, jobs: Sequence[Unfinished], requests: Mapping[str, ResolvedRequest]) -> None:
        """Take in what the store says; what happened here since `begin`, it may not have known yet."""
        known = self._requests | dict(requests)
        open_ids = {job.id for job in jobs}
        self.gone = [job_id for job_id in self._jobs if job_id not in open_ids and job_id not in self._news]
        self._jobs = {job.id: job for job in jobs if job.id in known}
        for job_id, news in self._news.items():
            if news is None:
                self._jobs.pop(job_id, None)
            elif news.state == "running" or job_id not in self._jobs:
                self._jobs[job_id] = news
        self._requests = {job_id: known[job_id] for job_id in self._jobs}
        self._enter_and_leave()
        self.seen_at = time.monotonic()

    def add(self, job: Job) -> None:
        """Take in a job that was just accepted here: the store need not be read for it."""
        if job.id in self._jobs:
            return
        arrived = Unfinished(job.id, job.state, job.priority, job.created_at, job.progress, owner=job.owner)
        self._news[job.id] = self._jobs[job.id] = arrived
        self._requests[job.id] = job.request
        self._enter(arrived)

    def claimed(self, job_id: str) -> None:
        """A job was claimed here."""
        if job_id in self._jobs:
            self._news[job_id] = self._jobs[job_id] = replace(self._jobs[job_id], state="running")

    def ended(self, job: Job, state: State, error: JobError | None) -> None:
        """A job came to its end here: the store need not be read for it."""
        self._news[job.id] = None
        self._requests.pop(job.id, None)
        if self._jobs.pop(job.id, None) is not None and job.id in self._ranked:
            del self._sorted[self._place(job.id)]
            del self._ranked[job.id]

    def in_order(self) -> Iterator[tuple[Unfinished, Candidate]]:
        """The unfinished as the scheduler sees them, the one that should be advanced now first."""
        self._sort()
        return ((self._jobs[candidate.name], candidate) for candidate in self._sorted)

    def suspect(self, job_id: str) -> bool:
        """Whether a process may have died of the job, as far as is known."""
        return job_id in self._jobs and self._jobs[job_id].suspect

    def model(self, job: Unfinished) -> str | None:
        """Name of the model that the job was accepted for."""
        return self._requests[job.id].model

    def request(self, job: Unfinished) -> ResolvedRequest:
        """What the job is to make."""
        return self._requests[job.id]

    def running(self, job: Job) -> Candidate:
        """A job that runs here, where it is now."""
        remaining_s = job.progress.remaining_s
        if remaining_s is None:
            remaining_s = self.estimator.remaining_s(job.request, job.progress)
        return Candidate(job.id, job.priority, time.time() - job.created_at, remaining_s)

    def standings(self, wanted: Collection[str]) -> dict[str, Standing]:
        """Where unfinished jobs stand, as if one worker did all of them in the scheduler's order."""
        self._sort()
        places = sorted((self._place(job_id), job_id) for job_id in wanted if job_id in self._jobs)
        running = sorted(self._place(job.id) for job in self._jobs.values() if job.state == "running")
        eta_s, counted = 0.0, 0
        found: dict[str, Standing] = {}
        for place, job_id in places:
            if self.estimator.measured:
                eta_s += sum(map(_REMAINING_S, self._sorted[counted : place + 1]))
                counted = place + 1
            queued = self._jobs[job_id].state == "queued"
            position = place + 1 - bisect_left(running, place) if queued else None
            found[job_id] = Standing(position, eta_s if self.estimator.measured else None)
        return found

    @property
    def next_free_s(self) -> float | None:
        """Seconds until the first of the unfinished is expected to be over; None while nothing was measured."""
        first = next(iter(self.in_order()), None)
        return first[1].remaining_s if first is not None and self.estimator.measured else None

    def made(self, job: Job, outcome: Outcome) -> None:
        """Learn from a finished generation."""
        self.estimator.finished(job.request, outcome.timings)

    def _sort(self) -> None:
        start = time.monotonic()
        if start >= self._sorted_until:
            self._sorted = order(map(self._candidate, self._jobs.values()))
            self._ranked = {candidate.name: candidate for candidate in self._sorted}
            end = time.monotonic()
            self._sorted_until = end + (end - start) / SORTING_SHARE

    def _enter_and_leave(self) -> None:
        """Bring the sorted queue up to who is in it; how far they are is seen when it is next sorted."""
        if gone := self._ranked.keys() - self._jobs.keys():
            self._sorted = [candidate for candidate in self._sorted if candidate.name not in gone]
            for job_id in gone:
                del self._ranked[job_id]
        for job in [job for job in self._jobs.values() if job.id not in self._ranked]:
            self._enter(job)

    def _enter(self, job: Unfinished) -> None:
        candidate = self._ranked[job.id] = self._candidate(job)
        insort(self._sorted, candidate, key=rank)

    def _place(self, job_id: str) -> int:
        """Where a job is in the sorted queue, without searching all of it: that would be done at every acceptance."""
        candidate = self._ranked[job_id]
        place = bisect_left(self._sorted, rank(candidate), key=rank)
        while self._sorted[place] is not candidate:  # as good as it, to the last digit
            place += 1
        return place

    def _candidate(self, job: Unfinished) -> Candidate:
        progress: Progress = job.progress
        remaining_s = progress.remaining_s
        if remaining_s is None:
            remaining_s = self.estimator.remaining_s(self._requests[job.id], progress)
        return Candidate(job.id, job.priority, time.time() - job.created_at, remaining_s)


BOARD_AGE_S = 1.5

"""How old the board may be for those who ask where a job stands. The dispatcher reads it anew every second anyway."""


class Lookout:
    """Reads the queue, as seldom as it may.

    Args:
        upkeep, call: The store, and how to call its blocking methods.
        board: Filled by `look`.

    Attributes:
        unreadable: Ids of unfinished jobs whose request this release cannot read.
    """

    def __init__(self, upkeep: Upkeep, call: Callable[..., Awaitable[Any]], board: Board) -> None:
        self.board = board
        self._upkeep = upkeep
        self._call = call
        self._looking = asyncio.Lock()
        self._began_at = float("-inf")
        self.unreadable: list[str] = []

    async def look(self) -> None:
        """Read the queue anew. Who asks while it is being read shares the next reading with all who do.

        Raises:
            StoreUnavailableError: the database is away.
        """
        asked_at = time.monotonic()
        async with self._looking:
            if self._began_at > asked_at and self.board.seen_at > asked_at:
                return
            self._began_at = time.monotonic()
            self.board.begin()
            unfinished = await self._call(self._upkeep.unfinished)
            unknown = self.board.unknown(unfinished)
            requests, self.unreadable = await self._call(self._upkeep.requests, unknown) if unknown else ({}, [])
            self.board.see(unfinished, requests)

    async def placed(self, jobs: tuple[Job, ...], running: Mapping[str, Progress]) -> tuple[Job, ...]:
        """Jobs with their places in the queue and their ETAs; `running`: how far those are that run here, by id."""
        if all(job.final for job in jobs):
            return jobs
        # Of the jobs that run here more is known than the store has been told.
        jobs = tuple(
            replace(job, progress=running[job.id]) if job.state == "running" and job.id in running else job
            for job in jobs
        )
        open_ids = {job.id for job in jobs if not job.final}
        too_old = time.monotonic() - self.board.seen_at > BOARD_AGE_S
        if too_old or any(job_id not in self.board for job_id in open_ids):
            await self.look()
        standings = self.board.standings(open_ids)
        return tuple(
            replace(job, queue_position=standings[job.id].position, eta_s=standings[job.id].eta_s)
            if job.id in standings
            else job
            for job in jobs
        )
