"""The order of the queue, and how long everybody in it will have to wait."""

from __future__ import annotations

import asyncio
import time
from bisect import insort
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from cosmorama.engine.estimate import Estimator
from cosmorama.engine.outcome import Outcome
from cosmorama.engine.scheduler import Candidate, order, rank
from cosmorama.jobs.channel import Observer
from cosmorama.jobs.model import Job
from cosmorama.jobs.store import Store, Unfinished
from cosmorama.progress import Progress

SORTED_FOR_S, SORTED_FOR = 0.25, 25
"""For how long an order counts, with those that arrive in their places: in seconds, and in times what it took."""
MAX_AGE_S = 1.5
"""How old the view may be for those who ask where a job stands. The claim loop refreshes it every second anyway."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a job stands: its place among the queued (1 is next; None: it runs), and seconds until it is finished."""

    position: int | None
    eta_s: float | None


class QueueView(Observer):
    """What a server last saw of the unfinished jobs.

    Attributes:
        jobs: The unfinished by id, oldest first.
        unreadable: Ids of those whose request this release cannot read.
        gone: Ids of jobs that were unfinished at the refresh before, and that nobody ended here.
        estimator: How long work takes here; told of what is made as an observer.
    """

    def __init__(self, store: Store) -> None:
        self.jobs: dict[str, Unfinished] = {}
        self.unreadable: list[str] = []
        self.gone: list[str] = []
        self.estimator = Estimator()
        self._store = store
        self._refreshing = asyncio.Lock()
        self._began_at = self._seen_at = float("-inf")
        # What happened here while the store was read, which may not have seen it; None: over.
        self._meanwhile: dict[str, Unfinished | None] = {}
        self._sorted: list[Candidate] = []
        self._sorted_at = 0.0
        self._sorted_until = float("-inf")

    @property
    def queued(self) -> int:
        """Jobs that wait."""
        return sum(job.state == "queued" for job in self.jobs.values())

    @property
    def next_free_s(self) -> float | None:
        """Seconds until the first of the unfinished is expected to be over; None while nothing was measured."""
        first = next(iter(self.ordered()), None)
        return first.remaining_s if first is not None and self.estimator.measured else None

    async def refresh(self) -> None:
        """Read the queue anew. Who asks while it is being read shares the next reading with all who do.

        Raises:
            StoreUnavailableError: the database is away.
        """
        asked_at = time.monotonic()
        async with self._refreshing:
            if self._began_at > asked_at and self._seen_at > asked_at:
                return
            self._began_at = time.monotonic()
            self._meanwhile.clear()
            known = {job.id: job.request for job in self.jobs.values()}
            rows, self.unreadable = await self._store.unfinished(known)
            read = {job.id: job for job in rows}
            self.gone = [job_id for job_id in self.jobs if job_id not in read and job_id not in self._meanwhile]
            for job_id, news in self._meanwhile.items():
                if news is None:
                    read.pop(job_id, None)
                elif news.state == "running" or job_id not in read:
                    read[job_id] = news
            self.jobs = read
            self._sorted_until = float("-inf")
            self._seen_at = time.monotonic()

    def accepted(self, job: Job) -> None:
        """Take in a job that was just accepted here: the store need not be read for it."""
        if job.id not in self.jobs:
            arrived = Unfinished(
                job.id, job.state, job.priority, job.created_at, job.progress, job.request, owner=job.owner
            )
            self._meanwhile[job.id] = self.jobs[job.id] = arrived
            if time.monotonic() < self._sorted_until:  # to sort all anew would cost more than accepting one does
                insort(self._sorted, self.candidate(arrived, at=self._sorted_at), key=rank)

    def started(self, job: Job) -> None:
        """A job was claimed here."""
        if job.id in self.jobs:
            self._meanwhile[job.id] = self.jobs[job.id] = replace(self.jobs[job.id], state="running")

    def ended(self, job: Job) -> None:
        """A job came to its end here."""
        self._meanwhile[job.id] = None
        if self.jobs.pop(job.id, None) is not None:
            self._sorted = [candidate for candidate in self._sorted if candidate.name != job.id]

    def made(self, job: Job, outcome: Outcome) -> None:
        """Learn from a finished generation."""
        self.estimator.finished(job.request, outcome.timings)

    def ordered(self) -> list[Candidate]:
        """The unfinished as the scheduler sees them, the one that should be advanced now first."""
        if (begun_at := time.monotonic()) >= self._sorted_until:
            self._sorted_at = self._store.database.time()
            self._sorted = order(self.candidate(job, at=self._sorted_at) for job in self.jobs.values())
            took_s = time.monotonic() - begun_at
            self._sorted_until = begun_at + max(SORTED_FOR_S, SORTED_FOR * took_s)
        return self._sorted

    def suspect(self, job_id: str) -> bool:
        """Whether a process may have died of the job, as far as is known."""
        return job_id in self.jobs and self.jobs[job_id].suspect

    def candidate(self, job: Job | Unfinished, at: float | None = None) -> Candidate:
        """A job as the scheduler sees it now, or with the age that it had at a time."""
        remaining_s = job.progress.remaining_s
        if remaining_s is None:
            remaining_s = self.estimator.remaining_s(job.request, job.progress)
        age_s = (at or self._store.database.time()) - job.created_at
        return Candidate(job.id, job.priority, age_s, remaining_s)

    def standings(self, wanted: Collection[str]) -> dict[str, Standing]:
        """Where unfinished jobs stand, as if one worker did all of them in the scheduler's order."""
        found: dict[str, Standing] = {}
        eta_s, position, known = 0.0, 0, True
        for candidate in self.ordered():
            eta_s += candidate.remaining_s
            job = self.jobs[candidate.name]
            # The worker measures while it works, long before the first clip is finished.
            known = known and (self.estimator.measured or job.progress.remaining_s is not None)
            position += job.state == "queued"
            if candidate.name in wanted:
                found[candidate.name] = Standing(position if job.state == "queued" else None, eta_s if known else None)
                if len(found) == len(wanted):
                    break
        return found

    async def placed(self, jobs: tuple[Job, ...], running: Mapping[str, Progress]) -> tuple[Job, ...]:
        """Jobs with their places in the queue and their ETAs; `running`: how far those are that run here, by id."""
        open_ids = {job.id for job in jobs if not job.final}
        if not open_ids:
            return jobs
        too_old = time.monotonic() - self._seen_at > MAX_AGE_S
        if too_old or not open_ids <= self.jobs.keys():
            await self.refresh()
        standings = self.standings(open_ids)

        def place(job: Job) -> Job:
            if job.state == "running" and job.id in running:  # of these more is known than the store has been told
                job = replace(job, progress=running[job.id])
            if job.id not in standings:
                return job
            return replace(job, queue_position=standings[job.id].position, eta_s=standings[job.id].eta_s)

        return tuple(map(place, jobs))
