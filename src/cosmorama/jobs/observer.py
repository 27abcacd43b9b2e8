"""Who is told of what happens to jobs on this server: its metrics and its traces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cosmorama.engine.outcome import Outcome
from cosmorama.jobs.record import Job, JobError, State


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

    def ended(self, job: Job, state: State, error: JobError | None) -> None:
        """A job is over. `job` is as it was last; `state` is how it ended."""


@dataclass(frozen=True, slots=True)
class Observers(Observer):
    """Several of them as one."""

    members: Sequence[Observer] = ()

    def accepted(self, job: Job) -> None:
        """Tell each."""
        for member in self.members:
            member.accepted(job)

    def started(self, job: Job) -> None:
        """Tell each."""
        for member in self.members:
            member.started(job)

    def advanced(self, job: Job) -> None:
        """Tell each."""
        for member in self.members:
            member.advanced(job)

    def made(self, job: Job, outcome: Outcome) -> None:
        """Tell each."""
        for member in self.members:
            member.made(job, outcome)

    def ended(self, job: Job, state: State, error: JobError | None) -> None:
        """Tell each."""
        for member in self.members:
            member.ended(job, state, error)
