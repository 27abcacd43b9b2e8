"""What happens to jobs, and who is told: events for those who follow one, and observers of all."""

from __future__ import annotations

import asyncio
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

from pydantic_core import to_json

from cosmorama.engine.outcome import Outcome
from cosmorama.jobs.model import Job
from cosmorama.progress import Stage


@dataclass(frozen=True)
class JobEvent:
    """Something that happened to a job. Numbers grow, also across restarts, so a client can say what it has seen.

    Attributes:
        number: For `Last-Event-ID`.
        kind: `status` (any change short of the end), `preview`, or the final state.
        job: The job then; None for previews.
        preview: A small JPEG of a frame as it is estimated now, for previews.
    """

    number: int
    kind: Literal["status", "preview", "succeeded", "failed", "cancelled"]
    job: Job | None = None
    preview: bytes | None = None

    @cached_property
    def payload(self) -> bytes:
        """The event's data in JSON: written once, however many watch the job."""
        if self.preview is not None:
            return to_json({"media_type": "image/jpeg", "data": b64encode(self.preview).decode()})
        return b"null" if self.job is None else to_json(self.job.summary())


class Observer:
    """Told of jobs, on the event loop; has to return at once. Does nothing itself."""

    def accepted(self, job: Job) -> None:
        """A job was accepted, in the task of the request that brought it."""

    def started(self, job: Job) -> None:
        """A job left the queue."""

    def advanced(self, job: Job) -> None:
        """A job got further: see its `progress`."""

    def made(self, job: Job, outcome: Outcome) -> None:
        """A job's clip is made; it is still to be stored."""

    def ended(self, job: Job) -> None:
        """A job is over, and it was this server that ended it."""

    def left(self, job_id: str) -> None:
        """A job that was unfinished is over, and it was another server that ended it."""


class Observers(Observer):
    """Several of them as one."""

    def __init__(self, *members: Observer) -> None:
        for name in ("accepted", "started", "advanced", "made", "ended", "left"):
            setattr(self, name, _each([getattr(member, name) for member in members]))


def _each(calls: list[Callable[..., None]]) -> Callable[..., None]:
    def call(*arguments: Any) -> None:
        for each in calls:
            each(*arguments)

    return call


_PER_ATTEMPT, _PER_STAGE = 1_000_000, 100_000
_STAGES: tuple[Stage, ...] = get_args(Stage)


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


class JobChannel:
    """The newest of one job.

    Attributes:
        job: As it is where it runs; None if it does not run here.
        preview: The newest, if any.
        watchers: How many use the channel; it goes when none does.
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
        self._reading = asyncio.Lock()
        self._told: JobEvent | None = None
        self._told_at = (-1, float("-inf"))

    async def told(self, read: Callable[[], Awaitable[Job]], max_age_s: float) -> JobEvent:
        """The event that tells how the job is: one object for all who ask, and one look at the store.

        Args:
            read: How to look at the job where it does not run here.
            max_age_s: For how long what was seen there may count.
        """
        if self.job is not None:
            if self._told is None or self._told.job is not self.job:
                self._told = status(self.job)
            return self._told
        async with self._reading:
            version, at = self._told_at
            if self._told is None or version != self.version or time.monotonic() - at > max_age_s:
                seen = (self.version, time.monotonic())
                self._told = status(await read())
                self._told_at = seen
            return self._told

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


class Channels:
    """The channels that somebody watches or that a running job fills."""

    def __init__(self) -> None:
        self._channels: dict[str, JobChannel] = {}

    def __len__(self) -> int:
        return len(self._channels)

    def find(self, job_id: str) -> JobChannel | None:
        """The job's channel, if anybody uses one."""
        return self._channels.get(job_id)

    def touch(self, job_id: str) -> None:
        """Wake who waits for a job."""
        if job_id in self._channels:
            self._channels[job_id].touch()

    @contextmanager
    def using(self, job_id: str) -> Iterator[JobChannel]:
        """The job's channel, kept for as long as somebody is in here."""
        channel = self._channels.setdefault(job_id, JobChannel())
        channel.watchers += 1
        try:
            yield channel
        finally:
            channel.watchers -= 1
            if not channel.watchers:
                self._channels.pop(job_id, None)
