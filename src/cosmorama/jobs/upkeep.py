"""What a server looks after in the store as a whole: the queue, leases, deadlines, retention, webhooks. Blocking."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from sqlalchemy import ColumnElement, and_, func, or_, select, update

from cosmorama.engine.outcome import Outcome
from cosmorama.engine.scheduler import PRIORITIES, Priority
from cosmorama.jobs.codec import pack_error, unpack_error, unpack_outcome, unpack_request
from cosmorama.jobs.record import FINAL, JobError, State
from cosmorama.jobs.schema import jobs
from cosmorama.jobs.store import Finish, Hold, Store
from cosmorama.progress import Progress, Stage
from cosmorama.request import GenerationRequest

_OPEN = ("queued", "running")


@dataclass(frozen=True, slots=True)
class Unfinished:
    """What scheduling needs to know of a job that is not over; `suspect`: whether a process may have died of it."""

    id: str
    state: State
    priority: Priority
    created_at: float
    progress: Progress
    suspect: bool = False


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a server's sign of life found: the claims that stand, and the errors to end some of them with."""

    held: frozenset[Hold]
    cancelled: Mapping[Hold, JobError]


@dataclass(frozen=True, slots=True)
class Due:
    """A webhook to send: to where, and how often that was tried."""

    job_id: str
    url: str
    attempts: int


class Upkeep:
    """The store, looked at from above."""

    def __init__(self, store: Store) -> None:
        self._database = store.database
        self._lease_s = store.lease_s

    def unfinished(self) -> list[Unfinished]:
        """All jobs that are to be worked on, oldest first."""
        table = jobs.c
        wanted = (
            select(
                table.id,
                table.state,
                table.priority,
                table.created_at,
                table.stage,
                table.step,
                table.total,
                table.remaining_s,
                table.blamed,
            )
            .where(or_(table.state == "running", and_(table.state == "queued", table.cancel_error.is_(None))))
            .order_by(table.seq)
        )
        with self._database.read() as connection:
            rows = connection.execute(wanted).all()
        return [
            Unfinished(
                row.id,
                cast("State", row.state),
                PRIORITIES[row.priority],
                row.created_at,
                Progress(cast("Stage", row.stage), row.step, row.total, remaining_s=row.remaining_s),
                row.blamed > 0,
            )
            for row in rows
        ]

    def requests(self, ids: Iterable[str]) -> dict[str, GenerationRequest]:
        """The requests of some jobs."""
        wanted = select(jobs.c.id, jobs.c.request).where(jobs.c.id.in_(list(ids)))
        with self._database.read() as connection:
            return {row.id: unpack_request(row.request) for row in connection.execute(wanted)}

    def recent(self, model: str, limit: int = 50) -> list[tuple[GenerationRequest, Outcome]]:
        """The newest successes of a model, oldest first, to learn from how long they took."""
        wanted = (
            select(jobs.c.request, jobs.c.outcome)
            .where(jobs.c.state == "succeeded", jobs.c.model == model)
            .order_by(jobs.c.seq.desc())
            .limit(limit)
        )
        with self._database.read() as connection:
            rows = connection.execute(wanted).all()
        return [(unpack_request(row.request), unpack_outcome(row.outcome)) for row in reversed(rows)]

    def heartbeat(self, server: str) -> Heartbeat:
        """Renew what a server holds and waits for."""
        until = self._database.now() + self._lease_s
        with self._database.write() as connection:
            connection.execute(
                update(jobs).where(jobs.c.state == "running", jobs.c.holder == server).values(lease_until=until)
            )
            connection.execute(
                update(jobs).where(jobs.c.state.in_(_OPEN), jobs.c.waiter == server).values(waiter_until=until)
            )
            rows = connection.execute(
                select(jobs.c.id, jobs.c.attempts, jobs.c.cancel_error).where(
                    jobs.c.state == "running", jobs.c.holder == server
                )
            ).all()
        holds = {Hold(row.id, server, row.attempts): row.cancel_error for row in rows}
        cancelled = {hold: unpack_error(error) for hold, error in holds.items() if error is not None}
        return Heartbeat(frozenset(holds), cancelled)

    def seize(self, server: str) -> list[tuple[Hold, JobError | None]]:
        """Take running jobs whose holder gives no sign of life; with each, the error if it was to be cancelled."""
        # Not its own: that a server is late itself does not mean that it does not work.
        expired = and_(jobs.c.state == "running", jobs.c.lease_until < self._database.now(), jobs.c.holder != server)
        taken = []
        with self._database.write() as connection:
            lost = connection.execute(
                select(jobs.c.id, jobs.c.holder, jobs.c.attempts, jobs.c.cancel_error).where(expired)
            ).all()
            for row in lost:
                old = Hold(row.id, row.holder, row.attempts)
                mine = update(jobs).where(old.where, expired)
                values = {"holder": server, "lease_until": self._database.now() + self._lease_s}
                if connection.execute(mine.values(values)).rowcount:
                    error = None if row.cancel_error is None else unpack_error(row.cancel_error)
                    taken.append((Hold(row.id, server, row.attempts), error))
        return taken

    def end_abandoned(self, server: str, error: JobError) -> list[str]:
        """Cancel what nobody waits for any more, as a server finds it."""
        # Not what is waited for at this one: that it is late itself does not mean that its clients are gone.
        gone = and_(jobs.c.waiter_until < self._database.now(), jobs.c.waiter != server)
        return self._end(gone, Finish("cancelled", error))

    def end_cancelled(self, error: JobError) -> list[str]:
        """Cancel what went back into the queue before its holder had seen that it was to be cancelled."""
        return self._end(jobs.c.cancel_error.is_not(None), Finish("cancelled", error))

    def end_overdue(self, error: JobError) -> list[str]:
        """Fail what passed its deadline in the queue; who runs a job looks after its deadline himself."""
        return self._end(
            and_(jobs.c.deadline_at < self._database.now(), jobs.c.state == "queued"), Finish("failed", error)
        )

    def expired(self, age_s: float) -> list[str]:
        """Jobs that were over so long ago."""
        with self._database.read() as connection:
            old = jobs.c.finished_at < self._database.now() - age_s
            return list(connection.execute(select(jobs.c.id).where(jobs.c.state.in_(FINAL), old)).scalars())

    def over(self, max_bytes: int) -> list[str]:
        """The oldest finished jobs without whose files all others fit into `max_bytes`."""
        size = jobs.c.result_bytes + jobs.c.input_bytes
        with self._database.read() as connection:
            excess = int(connection.execute(select(func.coalesce(func.sum(size), 0))).scalar_one()) - max_bytes
            if excess <= 0:
                return []
            oldest = select(jobs.c.id, size.label("size")).where(jobs.c.state.in_(FINAL), size > 0)
            found = []
            for row in connection.execute(oldest.order_by(jobs.c.finished_at)):
                found.append(row.id)
                excess -= row.size
                if excess <= 0:
                    break
            return found

    def results(self, ids: Sequence[str]) -> Mapping[str, tuple[State, str | None]]:
        """State and the clip's key of some jobs; those that are gone are missing."""
        wanted = select(jobs.c.id, jobs.c.state, jobs.c.result_key).where(jobs.c.id.in_(ids))
        with self._database.read() as connection:
            return {row.id: (cast("State", row.state), row.result_key) for row in connection.execute(wanted)}

    def take_webhooks(self, limit: int = 16) -> list[Due]:
        """Webhooks that are due; nobody else gets them for the length of a lease."""
        now = self._database.now()
        with self._database.write() as connection:
            due = select(jobs.c.id).where(jobs.c.webhook_due <= now).order_by(jobs.c.webhook_due).limit(limit)
            mine = (
                update(jobs)
                .where(jobs.c.id.in_(due.scalar_subquery()), jobs.c.webhook_due <= now)
                .values(webhook_due=now + self._lease_s, webhook_attempts=jobs.c.webhook_attempts + 1)
                .returning(jobs.c.id, jobs.c.webhook_url, jobs.c.webhook_attempts)
            )
            return [Due(row.id, row.webhook_url, row.webhook_attempts) for row in connection.execute(mine)]

    def set_webhook(self, job_id: str, retry_in_s: float | None) -> None:
        """Try a webhook again later, or (None) no more."""
        due = None if retry_in_s is None else self._database.now() + retry_in_s
        with self._database.write() as connection:
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(webhook_due=due))

    def _end(self, condition: ColumnElement[bool], finish: Finish) -> list[str]:
        with self._database.write() as connection:
            ended = connection.execute(
                update(jobs)
                .where(condition, jobs.c.state == "queued")
                .values(finish.values(self._database.now()))
                .returning(jobs.c.id)
            ).scalars()
            found = list(ended)
            connection.execute(
                update(jobs)
                .where(condition, jobs.c.state == "running", jobs.c.cancel_error.is_(None))
                .values(cancel_error=None if finish.error is None else pack_error(finish.error))
            )
        return found
