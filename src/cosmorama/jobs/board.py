"""The order of the queue, and how long everybody in it will have to wait."""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from cosmorama.engine.estimate import Estimator
from cosmorama.engine.outcome import Outcome
from cosmorama.engine.scheduler import Candidate, order, rank
from cosmorama.jobs.observer import Observer
from cosmorama.jobs.record import Job
from cosmorama.jobs.upkeep import Unfinished
from cosmorama.progress import Progress
from cosmorama.request import GenerationRequest

SORTING_SHARE = 0.05
"""How much of the time may go into sorting the queue: ranks change at every moment, and a long queue takes a while."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a job stands: its place among the queued (1 is next; None: it runs), and seconds until it is finished."""

    position: int | None
    eta_s: float | None


class Board(Observer):
    """What a server last saw of the unfinished jobs.

    Attributes:
        estimator: How long work takes here; told of what is made as an observer.
        seen_at: When the store was last read, on the monotonic clock.
    """

    def __init__(self) -> None:
        self.estimator = Estimator()
        self.seen_at = float("-inf")
        self._jobs: dict[str, Unfinished] = {}
        self._requests: dict[str, GenerationRequest] = {}
        self._arrived: list[Unfinished] = []
        self._sorted: list[Candidate] = []
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
        self._arrived.clear()

    def unknown(self, jobs: Sequence[Unfinished]) -> list[str]:
        """Ids of jobs whose requests have to be read before `see`."""
        return [job.id for job in jobs if job.id not in self._requests]

    def see(self, jobs: Sequence[Unfinished], requests: Mapping[str, GenerationRequest]) -> None:
        """Take in what the store says; what arrived since `begin`, it may not have known yet."""
        known = self._requests | dict(requests)
        self._jobs = {job.id: job for job in jobs if job.id in known}
        for job in self._arrived:
            self._jobs.setdefault(job.id, job)
        self._requests = {job_id: known[job_id] for job_id in self._jobs}
        self._sorted_until = float("-inf")
        self.seen_at = time.monotonic()

    def add(self, job: Job) -> None:
        """Take in a job that was just accepted here: the store need not be read for it."""
        if job.id in self._jobs:
            return
        arrived = Unfinished(job.id, job.state, job.priority, job.created_at, job.progress)
        self._arrived.append(arrived)
        self._jobs[job.id], self._requests[job.id] = arrived, job.request
        insort(self._sorted, self._candidate(arrived), key=rank)

    def claimed(self, job_id: str) -> None:
        """A job was claimed here."""
        if job_id in self._jobs:
            self._jobs[job_id] = replace(self._jobs[job_id], state="running")

    def in_order(self) -> Iterator[tuple[Unfinished, Candidate]]:
        """The unfinished as the scheduler sees them, the one that should be advanced now first."""
        start = time.monotonic()
        if start >= self._sorted_until:
            self._sorted = order(map(self._candidate, self._jobs.values()))
            end = time.monotonic()
            self._sorted_until = end + (end - start) / SORTING_SHARE
        return ((self._jobs[candidate.name], candidate) for candidate in self._sorted)

    def model(self, job: Unfinished) -> str | None:
        """Name of the model that the job was accepted for."""
        return self._requests[job.id].model

    def running(self, job: Job) -> Candidate:
        """A job that runs here, where it is now."""
        remaining_s = job.progress.remaining_s
        if remaining_s is None:
            remaining_s = self.estimator.remaining_s(job.request, job.progress)
        return Candidate(job.id, job.priority, time.time() - job.created_at, remaining_s)

    def standings(self, wanted: Collection[str]) -> dict[str, Standing]:
        """Where unfinished jobs stand, as if one worker did all of them in the scheduler's order."""
        position, eta_s = 0, 0.0
        found: dict[str, Standing] = {}
        for job, candidate in self.in_order():
            eta_s += candidate.remaining_s
            queued = job.state == "queued"
            position += queued
            if job.id in wanted:
                known = eta_s if self.estimator.measured else None
                found[job.id] = Standing(position if queued else None, known)
                if len(found) == len(wanted):
                    break
        return found

    @property
    def next_free_s(self) -> float | None:
        """Seconds until the first of the unfinished is expected to be over; None while nothing was measured."""
        first = next(iter(self.in_order()), None)
        return first[1].remaining_s if first is not None and self.estimator.measured else None

    def made(self, job: Job, outcome: Outcome) -> None:
        """Learn from a finished generation."""
        self.estimator.finished(job.request, outcome.timings)

    def _candidate(self, job: Unfinished) -> Candidate:
        progress: Progress = job.progress
        remaining_s = progress.remaining_s
        if remaining_s is None:
            remaining_s = self.estimator.remaining_s(self._requests[job.id], progress)
        return Candidate(job.id, job.priority, time.time() - job.created_at, remaining_s)
