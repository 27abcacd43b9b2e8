"""The life of a job in the database. Every transition is one conditional UPDATE, so that of two servers one wins.

    accept -> queued -claim-> running -finish-> succeeded | failed | cancelled
                 ^--- release ---'
Blocking; `service` calls it from threads of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Float, and_, bindparam, case, func, select, true, update

from cosmorama.errors import CosmoramaError
from cosmorama.jobs.admission import Limits, NewJob, decided, room
from cosmorama.jobs.codec import pack_error
from cosmorama.jobs.database import Database
from cosmorama.jobs.record import FINAL, Job, JobError, JobNotFoundError, State
from cosmorama.jobs.schema import job_of, jobs
from cosmorama.progress import Progress


@dataclass(frozen=True, slots=True)
class Hold:
    """A claim on a job: only who has it may finish it, and only once."""

    job_id: str
    holder: str
    attempt: int

    @property
    def where(self) -> ColumnElement[bool]:
        """The condition that the claim still stands."""
        return and_(
            jobs.c.id == self.job_id,
            jobs.c.state == "running",
            jobs.c.holder == self.holder,
            jobs.c.attempts == self.attempt,
        )


@dataclass(frozen=True, slots=True)
class Finish:
    """How a job ends; the result's fields are for successes."""

    state: Literal["succeeded", "failed", "cancelled"]
    error: JobError | None = None
    outcome: str | None = None
    media_type: str | None = None
    result_key: str | None = None
    result_bytes: int = 0

    def values(self, now: ColumnElement[float]) -> dict[str, Any]:
        """The columns."""
        return {
            "state": self.state,
            "finished_at": now,
            "error": None if self.error is None else pack_error(self.error),
            "outcome": self.outcome,
            "media_type": self.media_type,
            "result_key": self.result_key,
            "result_bytes": self.result_bytes,
            "remaining_s": 0.0,
            "holder": None,
            "lease_until": None,
            "waiter": None,
            "waiter_until": None,
            "webhook_due": _webhook_due(now),
            **({"stage": "done"} if self.state == "succeeded" else {}),
        }


class Store:
    """Jobs in a database, one at a time."""

    def __init__(self, database: Database, lease_s: float) -> None:
        self.database = database
        self.lease_s = lease_s

    def accept(self, new: Sequence[NewJob], limits: Limits) -> list[str | CosmoramaError]:
        """Put jobs on the disk, all in one transaction; for each its id, an earlier job's id, or why it is refused."""
        with self.database.write(admission=True) as connection:
            left = room(connection, limits)
            # One statement with the rows as parameters: with values of its own it would be put together for each.
            insert = jobs.insert().values(waiter_until=self.database.now() + bindparam("waits_s", type_=Float))
            answers: list[str | CosmoramaError] = []
            for job in new:
                answer = decided(connection, job, limits, left)
                if answer is None:
                    waits_s = None if job.waiter is None else self.lease_s  # now plus null is null
                    connection.execute(insert, job.values() | {"waits_s": waits_s})
                    left -= 1
                    answer = job.id
                answers.append(answer)
            return answers

    def foresee(self, new: NewJob, limits: Limits) -> str | CosmoramaError | None:
        """What `accept` would answer now; None: the job's own id."""
        with self.database.read() as connection:
            return decided(connection, new, limits, room(connection, limits))

    def get(self, job_id: str, owner: str | None = None) -> Job:
        """One job.

        Raises:
            JobNotFoundError: there is none, or it is not the owner's.
        """
        with self.database.read() as connection:
            row = connection.execute(select(jobs).where(jobs.c.id == job_id, _owned(owner))).mappings().first()
        if row is None:
            raise JobNotFoundError(f"there is no job {job_id[:80]}")
        return job_of(row)

    def page(
        self,
        *,
        cursor: str | None,
        limit: int,
        state: State | None = None,
        owner: str | None = None,
        dialect: str | None = None,
        ascending: bool = False,
    ) -> list[Job]:
        """Jobs before (after, if `ascending`) the one with the id `cursor`, in the order of acceptance.

        Raises:
            JobNotFoundError: there is no such job.
        """
        wanted = select(jobs).where(_owned(owner)).limit(limit)
        if state is not None:
            wanted = wanted.where(jobs.c.state == state)
        if dialect is not None:
            wanted = wanted.where(jobs.c.dialect == dialect)
        with self.database.read() as connection:
            if cursor is not None:
                seq = connection.execute(select(jobs.c.seq).where(jobs.c.id == cursor, _owned(owner))).scalar()
                if seq is None:
                    raise JobNotFoundError(f"there is no job {cursor[:80]}")
                wanted = wanted.where(jobs.c.seq > seq if ascending else jobs.c.seq < seq)
            rows = connection.execute(wanted.order_by(jobs.c.seq if ascending else jobs.c.seq.desc())).mappings()
            return [job_of(row) for row in rows]

    def claim(self, job_id: str, holder: str) -> tuple[Hold, Job] | None:
        """Take a queued job; None if it is not queued (any more)."""
        now = self.database.now()
        taken = (
            update(jobs)
            .where(jobs.c.id == job_id, jobs.c.state == "queued", jobs.c.cancel_error.is_(None))
            .values(
                state="running",
                holder=holder,
                lease_until=now + self.lease_s,
                attempts=jobs.c.attempts + 1,
                started_at=func.coalesce(jobs.c.started_at, now),
                stage="prepare",
                step=0,
                total=0,
                remaining_s=None,
            )
            .returning(jobs)
        )
        with self.database.write() as connection:
            row = connection.execute(taken).mappings().first()
        return None if row is None else (Hold(job_id, holder, row["attempts"]), job_of(row))

    def advance(self, progress: Mapping[Hold, Progress]) -> None:
        """Note how far running jobs are."""
        with self.database.write() as connection:
            for hold, point in progress.items():
                connection.execute(
                    update(jobs)
                    .where(hold.where)
                    .values(stage=point.stage, step=point.step, total=point.total, remaining_s=point.remaining_s)
                )

    def finish(self, hold: Hold, finish: Finish) -> Job | None:
        """End a running job; None if it is not this holder's any more, and whatever was made must be thrown away."""
        ended = update(jobs).where(hold.where).values(finish.values(self.database.now())).returning(jobs)
        with self.database.write() as connection:
            row = connection.execute(ended).mappings().first()
        return None if row is None else job_of(row)

    def blame(self, hold: Hold, weight: int) -> int | None:
        """Note that a process may have died of a running job; the sum of weights by now, None if it is not ours now."""
        noted = update(jobs).where(hold.where).values(blamed=jobs.c.blamed + weight).returning(jobs.c.blamed)
        with self.database.write() as connection:
            return connection.execute(noted).scalar()

    def release(self, hold: Hold) -> bool:
        """Put a running job back into the queue; False if it is not ours any more."""
        with self.database.write() as connection:
            back = connection.execute(update(jobs).where(hold.where).values(state="queued", **_UNHELD))
        return back.rowcount == 1

    def cancel(self, job_id: str, error: JobError) -> State | None:
        """Cancel a queued job, or ask the holder of a running one to; the state before, None if there is none."""
        with self.database.write() as connection:
            state: State | None = connection.execute(select(jobs.c.state).where(jobs.c.id == job_id)).scalar()
            if state == "queued":
                ended = Finish("cancelled", error).values(self.database.now())
                connection.execute(update(jobs).where(jobs.c.id == job_id, jobs.c.state == "queued").values(ended))
            elif state == "running":
                connection.execute(
                    update(jobs)
                    .where(jobs.c.id == job_id, jobs.c.state == "running")
                    .values(cancel_error=pack_error(error))
                )
        return state

    def remove(self, job_id: str) -> bool:
        """Forget a finished job; False if there is none."""
        with self.database.write() as connection:
            gone = connection.execute(jobs.delete().where(jobs.c.id == job_id, jobs.c.state.in_(FINAL)))
        return gone.rowcount == 1

    def drop_content(self, job_id: str) -> None:
        """Note that a job's files are gone."""
        with self.database.write() as connection:
            connection.execute(
                update(jobs).where(jobs.c.id == job_id).values(result_key=None, result_bytes=0, input_bytes=0)
            )


_UNHELD: dict[str, Any] = {
    "holder": None,
    "lease_until": None,
    "stage": "queued",
    "step": 0,
    "total": 0,
    "remaining_s": None,
}


def _owned(owner: str | None) -> ColumnElement[bool]:
    return true() if owner is None else jobs.c.owner == owner


def _webhook_due(now: ColumnElement[float]) -> ColumnElement[float | None]:
    return case((jobs.c.webhook_url.is_not(None), now), else_=None)
