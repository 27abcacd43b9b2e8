"""What this process knows of jobs before the database does: every step of those it runs, for those who watch."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from cosmorama.jobs.record import Job, JobEvent
from cosmorama.progress import Stage

_PER_ATTEMPT = 1_000_000
_PER_STAGE = 100_000
_STAGES: tuple[Stage, ...] = ("queued", "prepare", "encode", "denoise", "decode", "done")


def number(job: Job) -> int:
    """A number that grows with a job's progress, the same whoever computes it, on any server and after any restart."""
    if job.final:
        return (job.attempts + 2) * _PER_ATTEMPT - 1
    if job.state == "queued":
        return (job.attempts + 1) * _PER_ATTEMPT + max(_PER_STAGE - 2 - (job.queue_position or _PER_STAGE), 0)
    # Even ones; the odd ones are for previews.
    within = min(2 * job.progress.step, _PER_STAGE - 2)
    return job.attempts * _PER_ATTEMPT + _STAGES.index(job.progress.stage) * _PER_STAGE + within


def status(job: Job) -> JobEvent:
    """The event that tells how a job is."""
    match job.state:
        case "succeeded" | "failed" | "cancelled":
            return JobEvent(number(job), job.state, job)
    return JobEvent(number(job), "status", job)


class Feed:
    """The newest of one job.

    Attributes:
        job: As it is where it runs; None if it does not run here.
        preview: The newest, if any.
        watchers: How many use the feed; it goes when none does.
        previewing: How many of them want previews.
        version: Grows with every change.
    """

    def __init__(self) -> None:
        self.job: Job | None = None
        self.preview: JobEvent | None = None
        self.watchers = 0
        self.previewing = 0
        self.version = 0
        self._changed = asyncio.Event()

    def update(self, job: Job) -> None:
        """The job has moved on."""
        self.job = job
        self.touch()

    def show(self, jpeg: bytes) -> None:
        """A preview of the job where it was last."""
        if self.job is not None:
            self.preview = JobEvent(number(self.job) + 1, "preview", preview=jpeg)
            self.touch()

    def touch(self) -> None:
        """Wake who waits: something changed, perhaps only in the database."""
        self.version += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def change(self, seen: int, timeout_s: float) -> None:
        """Return once the version is another than `seen`, or after the time."""
        if self.version == seen:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._changed.wait()


class Feeds:
    """The feeds that somebody watches or that a running job fills."""

    def __init__(self) -> None:
        self._feeds: dict[str, Feed] = {}

    def __len__(self) -> int:
        return len(self._feeds)

    def find(self, job_id: str) -> Feed | None:
        """The job's feed, if anybody uses one."""
        return self._feeds.get(job_id)

    def touch(self, job_id: str) -> None:
        """Wake who waits for a job."""
        if job_id in self._feeds:
            self._feeds[job_id].touch()

    @contextmanager
    def using(self, job_id: str) -> Iterator[Feed]:
        """The job's feed, kept for as long as somebody is in here."""
        feed = self._feeds.setdefault(job_id, Feed())
        feed.watchers += 1
        try:
            yield feed
        finally:
            feed.watchers -= 1
            if not feed.watchers:
                self._feeds.pop(job_id, None)
