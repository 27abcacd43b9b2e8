"""Who is let into the queue: what is known of a job before it is accepted, and why one is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, select

from cosmorama.engine.scheduler import PRIORITIES, Priority
from cosmorama.errors import CosmoramaError, QueueFullError
from cosmorama.jobs.codec import pack_request
from cosmorama.jobs.record import Job, JobConflictError
from cosmorama.jobs.schema import jobs
from cosmorama.request import GenerationRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """What is known of a job before it is accepted.

    `fingerprint` is compared where there is an `idempotency_key`; `blob_bytes` is the size of its inline media.
    """

    id: str
    request: GenerationRequest
    dialect: str
    model: str
    owner: str
    priority: Priority
    fingerprint: str
    created_at: float
    labels: Mapping[str, str]
    idempotency_key: str | None = None
    deadline_at: float | None = None
    webhook_url: str | None = None
    waiter: str | None = None
    blob_bytes: int = 0

    @property
    def job(self) -> Job:
        """As it is once it was accepted."""
        return Job(
            id=self.id,
            state="queued",
            dialect=self.dialect,
            model=self.model,
            owner=self.owner,
            request=self.request,
            priority=self.priority,
            created_at=self.created_at,
            metadata=dict(self.labels),
            deadline_at=self.deadline_at,
            idempotency_key=self.idempotency_key,
            webhook_url=self.webhook_url,
            attached=self.waiter is not None,
        )

    def values(self) -> dict[str, Any]:
        """The columns, except for what depends on the database's clock."""
        return {
            "id": self.id,
            "state": "queued",
            "owner": self.owner,
            "dialect": self.dialect,
            "model": self.model,
            "priority": PRIORITIES.index(self.priority),
            "request": pack_request(self.request),
            "labels": json.dumps(dict(self.labels)),
            "idempotency_key": self.idempotency_key,
            "fingerprint": self.fingerprint,
            "created_at": self.created_at,
            "deadline_at": self.deadline_at,
            "webhook_url": self.webhook_url,
            "waiter": self.waiter,
            "input_bytes": self.blob_bytes,
        }


@dataclass(frozen=True, slots=True)
class Limits:
    """How many jobs may be unfinished: waiting beside `running` that are made, and per owner."""

    queue: int
    running: int
    per_owner: int | None = None


_UNFINISHED = select(jobs.c.state, func.count()).where(jobs.c.state.in_(("queued", "running"))).group_by(jobs.c.state)


def room(connection: Connection, limits: Limits) -> int:
    """How many more jobs may be accepted."""
    counted: dict[str, int] = {row[0]: row[1] for row in connection.execute(_UNFINISHED)}
    return limits.queue + max(limits.running - counted.get("running", 0), 0) - counted.get("queued", 0)


def decided(connection: Connection, job: NewJob, limits: Limits, left: int) -> str | CosmoramaError | None:
    """An earlier job's id, or why this one is refused, with room for `left` more; None: it can be accepted."""
    return _earlier(connection, job) or _refusal(connection, job, limits, left)


def _earlier(connection: Connection, job: NewJob) -> str | JobConflictError | None:
    """The job that was accepted before under the same key."""
    if job.idempotency_key is None:
        return None
    same = select(jobs.c.id, jobs.c.fingerprint).where(
        jobs.c.owner == job.owner, jobs.c.idempotency_key == job.idempotency_key
    )
    found = connection.execute(same).first()
    if found is None:
        return None
    if found.fingerprint == job.fingerprint:
        return str(found.id)
    return JobConflictError(f"the Idempotency-Key was used for another request, job {found.id}")


def _refusal(connection: Connection, job: NewJob, limits: Limits, left: int) -> QueueFullError | None:
    if left <= 0:
        waiting = connection.execute(select(func.count()).where(jobs.c.state == "queued")).scalar_one()
        return QueueFullError(
            f"{waiting} jobs wait already, as many as this server lets wait; this one would be number {waiting + 1}"
        )
    if limits.per_owner is None:
        return None
    own = select(func.count()).where(jobs.c.owner == job.owner, jobs.c.state.in_(("queued", "running")))
    count = connection.execute(own).scalar_one()
    if count < limits.per_owner:
        return None
    return QueueFullError(f"{count} jobs of this key are unfinished, and no more than {limits.per_owner} may be")
