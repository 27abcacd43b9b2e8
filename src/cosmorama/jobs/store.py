"""The job store: every transition of a job is one conditional UPDATE, so that of two servers one wins.

accept -> queued -claim-> running -finish-> succeeded | failed | cancelled
             ^--- release ---'
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal, cast, get_args

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Float,
    RowMapping,
    Update,
    and_,
    bindparam,
    case,
    func,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from cosmorama.engine.outcome import Outcome
from cosmorama.engine.scheduler import PRIORITIES, Priority
from cosmorama.errors import JobConflictError, JobNotFoundError, QueueFullError
from cosmorama.jobs.database import UNREADABLE, UNREADABLE_OUTCOME, Database, RequestDocument, in_thread, jobs
from cosmorama.jobs.model import FINAL, STATES, Job, JobError, JobResult, State
from cosmorama.progress import Progress, Stage
from cosmorama.request import ResolvedRequest

_OPEN = ("queued", "running")
_CURSOR = re.compile(r"after_([0-9]{1,18})")
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TIMED_ID = re.compile(r"job_([0-9a-f]{13})[0-9a-f]{16}")
_PLAIN = ("id", "dialect", "model", "owner", "created_at", "idempotency_key", "webhook_url")
"""Columns that hold what the attributes of a job of the same name do, and do not change."""


def timed_id(created_at: float, chance: str) -> str:
    """The id of a job: when it was accepted, to the microsecond, and 16 hexadecimal digits that nobody can guess."""
    return f"job_{int(created_at * 1e6):013x}{chance}"


def fingerprint(dialect: str, request: ResolvedRequest, blobs: Mapping[str, bytes]) -> str:
    """Equal for requests that ask for the same: of a request before `resolve`, so that an undrawn seed stays equal."""
    digests = {where: sha256(blob).hexdigest() for where, blob in blobs.items()}
    return sha256(json.dumps([dialect, _packed(request), digests], sort_keys=True).encode()).hexdigest()


def _packed(request: ResolvedRequest) -> str:
    return RequestDocument().process_bind_param(request, cast("Any", None))


def job_of(row: RowMapping) -> Job:
    """The job in a row, without what depends on other rows (queue position, ETA). What cannot be read is left out."""
    request, outcome = row["request"], row["outcome"]
    known = row["state"] in STATES
    readable = known and request is not None and outcome is not UNREADABLE_OUTCOME
    result = None
    if outcome is not None and outcome is not UNREADABLE_OUTCOME:
        result = JobResult(outcome, row["media_type"], row["result_bytes"], row["result_key"])
    return Job(
        **{name: row[name] for name in (*_PLAIN, "started_at", "finished_at", "deadline_at", "attempts", "error")},
        state=row["state"] if known else "running",  # it is not for this release to say that it is over
        readable=readable,
        request=request or ResolvedRequest(),
        priority=_priority(row["priority"]),
        metadata=row["labels"],
        progress=_progress(row),
        result=result,
        attached=row["waiter"] is not None,
    )


@dataclass(frozen=True, slots=True)
class Limits:
    """How many jobs may be unfinished: waiting beside `running` that are made, and per owner."""

    queue: int
    running: int
    per_owner: int | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim on a job: only who has it may finish it, and only once."""

    job_id: str
    holder: str
    attempt: int
    left_s: float | None = field(default=None, compare=False)
    """How much of the job's time was left when it was claimed, by the clock of the store."""

    @property
    def stands(self) -> ColumnElement[bool]:
        """The condition that nobody has taken the job over."""
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
    outcome: Outcome | None = None
    media_type: str | None = None
    result_key: str | None = None
    result_bytes: int = 0

    def values(self, now: ColumnElement[float]) -> dict[str, Any]:
        """The columns."""
        return {
            "state": self.state,
            "finished_at": now,
            "error": self.error,
            "outcome": self.outcome,
            "media_type": self.media_type,
            "result_key": self.result_key,
            "result_bytes": self.result_bytes,
            "remaining_s": 0.0,
            "holder": None,
            "lease_until": None,
            "waiter": None,
            "waiter_until": None,
            "webhook_due": case((jobs.c.webhook_url.is_not(None), now), else_=None),
            # What was sent with a job that made nothing goes with it.
            **({"stage": "done", "step": jobs.c.total} if self.state == "succeeded" else {"input_bytes": 0}),
        }


@dataclass(frozen=True, slots=True)
class Unfinished:
    """What scheduling needs to know of a job that is not over.

    Attributes:
        request: What it is to make.
        suspect: Whether a process may have died of it.
        owner: The key that it belongs to.
    """

    id: str
    state: State
    priority: Priority
    created_at: float
    progress: Progress
    request: ResolvedRequest
    suspect: bool = False
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A webhook to send: to where, how often that was tried with this time, and for whom."""

    job_id: str
    url: str
    attempts: int
    owner: str = ""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A job that somebody waits to have accepted; `put` gives its id, or raises before it writes."""

    put: Callable[[Connection, Counter[str]], str]
    answer: Future[str] = field(default_factory=Future)


class Store:
    """The jobs in a database.

    All methods raise `StoreUnavailableError` while the database is away.

    Args:
        database: Where they are.
        lease_s: For how long a server counts as alive after its last sign of life.
    """

    def __init__(self, database: Database, lease_s: float) -> None:
        self.database = database
        self.lease_s = lease_s
        self._asked: deque[_Asked] = deque()
        self._admitting = threading.Lock()
        # Made once: to make it costs as much as to execute it.
        self._insert = jobs.insert().values(
            waiter_until=database.now() + bindparam("waiter_s", type_=Float(53)),
            deadline_at=database.now() + bindparam("deadline_s", type_=Float(53)),
        )

    @in_thread
    def create(self) -> None:
        """Make the tables; raises as `Database.create`."""
        self.database.create()

    # Coming in, and being looked at.

    async def accept(
        self,
        job: Job,
        limits: Limits,
        *,
        fingerprint: str = "",
        deadline_s: float | None = None,
        waiter: str | None = None,
        input_bytes: int = 0,
    ) -> str:
        """Put a job on the disk; its id, or that of the job that was accepted before under the same idempotency key.

        What is asked for while a disk is waited for shares the next transaction: many disks take milliseconds for each.

        Args:
            job: As `Jobs` made it.
            limits: How many jobs may be unfinished.
            fingerprint: Compared where there is an idempotency key.
            deadline_s: Seconds that it has from now on.
            waiter: The server that a client waits at, for a job that is for nobody else.
            input_bytes: Size of its inline media.

        Raises:
            QueueFullError: there is no room.
            JobConflictError: the idempotency key was used for another request.
        """
        values = {name: getattr(job, name) for name in _PLAIN} | {
            "state": job.state,
            "priority": PRIORITIES.index(job.priority),
            "request": job.request,
            "labels": dict(job.metadata),
            "fingerprint": fingerprint,
            "waiter": waiter,
            "waiter_s": None if waiter is None else self.lease_s,
            "deadline_s": deadline_s,
            "input_bytes": input_bytes,
        }

        def put(connection: Connection, unfinished: Counter[str]) -> str:
            earlier = _admit(connection, unfinished, job, limits, fingerprint)
            if earlier is None:
                connection.execute(self._insert, values)
                unfinished["queued"] += 1
            return earlier or job.id

        asked = _Asked(put)
        self._asked.append(asked)
        turn = self.database.threads.submit(self._admit_asked)
        turn.add_done_callback(lambda _: asked.answer.cancel())  # if it was answered, or is to be, this does nothing
        return await asyncio.wrap_future(asked.answer)

    def _admit_asked(self) -> None:
        """Accept in one transaction all that is asked for by now."""
        with self._admitting:
            taken = [self._asked.popleft() for _ in range(len(self._asked))]
            taken = [asked for asked in taken if asked.answer.set_running_or_notify_cancel()]
            if not taken:
                return  # the transaction before was theirs too
            try:
                answers = self._put(taken)
            except Exception as error:  # noqa: BLE001  # it is raised where it is waited for
                # Of several it is not known whose fault it is, and nobody fails of another's.
                answers = [error] if len(taken) == 1 else [self._put_alone(asked) for asked in taken]
            for asked, answer in zip(taken, answers, strict=True):
                if isinstance(answer, Exception):
                    asked.answer.set_exception(answer)
                else:
                    asked.answer.set_result(answer)

    def _put(self, taken: Sequence[_Asked]) -> list[str | Exception]:
        answers = list[str | Exception]()
        with self.database.write(admission=True) as connection:
            unfinished = _unfinished(connection)
            for asked in taken:
                try:
                    answers.append(asked.put(connection, unfinished))
                except (QueueFullError, JobConflictError) as error:  # which were seen before anything was written
                    answers.append(error)
        return answers

    def _put_alone(self, asked: _Asked) -> str | Exception:
        try:
            return self._put([asked])[0]
        except Exception as error:  # noqa: BLE001  # as above
            return error

    @in_thread
    def would_accept(self, job: Job, limits: Limits, fingerprint: str) -> str | None:
        """What `accept` would answer or raise now; None: it would take the job."""
        with self.database.read() as connection:
            return _admit(connection, _unfinished(connection), job, limits, fingerprint)

    @in_thread
    def get(self, job_id: str, owner: str | None = None) -> Job:
        """One job.

        Raises:
            JobNotFoundError: there is none, or it is not the owner's.
        """
        row = None
        if _ID.fullmatch(job_id):  # Postgres refuses what it cannot have stored, NUL for example
            with self.database.read() as connection:
                row = connection.execute(select(jobs).where(jobs.c.id == job_id, _owned(owner))).mappings().first()
        if row is None:
            raise JobNotFoundError(f"there is no job {job_id[:80]}")
        return job_of(row)

    @in_thread
    def page(
        self,
        *,
        cursor: str | None,
        limit: int,
        state: State | None = None,
        owner: str | None = None,
        dialect: str | None = None,
        ascending: bool = False,
    ) -> tuple[list[Job], str | None]:
        """Jobs before (after, if `ascending`) the one that `cursor` names, in the order of acceptance.

        Args:
            cursor: What this gave for the page before, or the id of a job, which may have been removed meanwhile.
            limit: How many.
            state, owner, dialect: Only of these.
            ascending: Oldest first.

        Returns:
            The jobs, and the cursor of the page after them, which stands whatever becomes of them; None at the end.

        Raises:
            JobNotFoundError: there never was such a job.
        """
        # One more than asked for tells whether there are more.
        wanted = select(jobs).where(_owned(owner)).limit(limit + 1)
        if state is not None:
            wanted = wanted.where(jobs.c.state == state)
        if dialect is not None:
            wanted = wanted.where(jobs.c.dialect == dialect)
        with self.database.read() as connection:
            if cursor is not None:
                column, value = _place(connection, cursor, owner)
                wanted = wanted.where(column > value if ascending else column < value)
            rows = connection.execute(wanted.order_by(jobs.c.seq if ascending else jobs.c.seq.desc())).mappings().all()
        more = len(rows) > limit
        return [job_of(row) for row in rows[:limit]], f"after_{rows[limit - 1]['seq']}" if more else None

    @in_thread
    def unfinished(self, known: Mapping[str, ResolvedRequest]) -> tuple[list[Unfinished], list[str]]:
        """All jobs that are to be worked on, oldest first, and the ids of those of them whose request cannot be read.

        Args:
            known: Requests that need not be read again, by id.
        """
        table = jobs.c
        wanted = (
            select(
                *(table.id, table.state, table.priority, table.created_at, table.blamed, table.owner),
                *(table.stage, table.step, table.total, table.remaining_s),
            )
            .where(or_(table.state == "running", _free(table, self.database.now())))
            .order_by(table.seq)
        )
        requests: dict[str, ResolvedRequest | None] = dict(known)
        with self.database.read() as connection:
            rows = connection.execute(wanted).mappings().all()
            for ids in _batches(row["id"] for row in rows if row["id"] not in known):
                requests |= {
                    row.id: row.request
                    for row in connection.execute(select(table.id, table.request).where(table.id.in_(ids)))
                }
        found, unreadable = list[Unfinished](), list[str]()
        for row in rows:
            request = requests.get(row["id"])
            if request is None:
                unreadable.append(row["id"])
                continue
            known_of = (row["id"], row["state"], _priority(row["priority"]), row["created_at"], _progress(row))
            found.append(Unfinished(*known_of, request, row["blamed"] > 0, row["owner"]))
        return found, unreadable

    @in_thread
    def recent(self, model: str, limit: int = 50) -> list[tuple[ResolvedRequest, Outcome]]:
        """The newest successes of a model, oldest first, to learn from how long they took."""
        wanted = (
            select(jobs.c.request, jobs.c.outcome)
            .where(jobs.c.state == "succeeded", jobs.c.model == model)
            .order_by(jobs.c.seq.desc())
            .limit(limit)
        )
        with self.database.read() as connection:
            rows = connection.execute(wanted).all()
        return [
            (row.request, row.outcome) for row in reversed(rows) if row.request and isinstance(row.outcome, Outcome)
        ]

    # Being worked on.

    @in_thread
    def claim(self, ids: Sequence[str], holder: str) -> tuple[Claim, Job] | None:
        """Take one queued job: the first of `ids` that nobody else takes at this moment. None if all are gone.

        Servers that order the queue alike all want the same job; with Postgres whom it is not given to gets the next
        one, instead of nothing (`FOR UPDATE SKIP LOCKED`).
        """
        now = self.database.now()
        queued = jobs.alias()
        free = (
            select(queued.c.id)
            .where(queued.c.id.in_(ids), _free(queued.c, now))
            .order_by(self.database.place(queued.c.id, ids))
            .limit(1)
            .with_for_update(skip_locked=True)  # SQLite, which has one writer at a time, does without
            .scalar_subquery()
        )
        taken = (
            update(jobs)
            .where(jobs.c.id == free, jobs.c.state == "queued")
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
            .returning(jobs, (jobs.c.deadline_at - now).label("left_s"))
        )
        with self.database.write() as connection:
            row = connection.execute(taken).mappings().first()
        return None if row is None else (Claim(row["id"], holder, row["attempts"], row["left_s"]), job_of(row))

    @in_thread
    def advance(self, progress: Mapping[Claim, Progress]) -> None:
        """Note how far running jobs are."""
        with self.database.write() as connection:
            for claim, point in progress.items():
                connection.execute(
                    update(jobs)
                    .where(claim.stands)
                    .values(stage=point.stage, step=point.step, total=point.total, remaining_s=point.remaining_s)
                )

    @in_thread
    def heartbeat(self, server: str) -> dict[Claim, JobError | None]:
        """Renew what a server holds and waits for; the claims that stand, with the error that one is to end with."""
        until = self.database.now() + self.lease_s
        mine = and_(jobs.c.state == "running", jobs.c.holder == server)
        with self.database.write() as connection:
            self.database.hear_time(connection)
            waited = update(jobs).where(jobs.c.state.in_(_OPEN), jobs.c.waiter == server)
            connection.execute(waited.values(waiter_until=until))
            held = update(jobs).where(mine).values(lease_until=until)
            rows = connection.execute(held.returning(jobs.c.id, jobs.c.attempts, jobs.c.cancel_error)).all()
        return {Claim(row.id, server, row.attempts): row.cancel_error for row in rows}

    @in_thread
    def finish(self, claim: Claim, finish: Finish) -> Job | None:
        """End a running job; None if it is not this holder's any more, and whatever was made must be thrown away."""
        with self.database.write() as connection:
            return next(self._ended(connection, update(jobs).where(claim.stands), finish), None)

    @in_thread
    def release(
        self,
        claim: Claim,
        weight: int = 0,
        most: int | None = None,
        finish: Finish | None = None,
        progress: Progress | None = None,
    ) -> Job | None:
        """Put a running job back into the queue; one that was to be cancelled is cancelled.

        In one transaction, so that it can be said again when its answer was lost.

        Args:
            claim: The claim.
            weight: How much the job is suspected of the death of a process. A job that got further than at the last
                death did not die of what killed it then: only this one counts.
            most: What the sum of weights may not reach.
            finish: How the job ends where it does.
            progress: How far it was when its process died, where that is known better than by its last heartbeat.

        Returns:
            The job if it ended; None if it is in the queue, or is not ours any more.
        """
        with self.database.write() as connection:
            names = ("blamed", "blamed_at", "stage", "step", "cancel_error")
            row = connection.execute(select(*(jobs.c[name] for name in names)).where(claim.stands)).first()
            if row is None:
                return None
            mine = update(jobs).where(claim.stands)
            if row.cancel_error is not None:
                return next(self._ended(connection, mine, Finish("cancelled", row.cancel_error)), None)
            blamed, values = row.blamed, dict[str, Any]()
            if weight:
                reached = _reached(progress or row)
                blamed = weight + (0 if reached > row.blamed_at else row.blamed)
                values = {"blamed": blamed, "blamed_at": max(reached, row.blamed_at)}
            if most is not None and finish is not None and weight and blamed >= most:
                return next(self._ended(connection, mine.values(values), finish), None)
            unheld = {"holder": None, "lease_until": None, "remaining_s": None}
            connection.execute(mine.values(state="queued", stage="queued", step=0, total=0, **unheld, **values))
        return None

    @in_thread
    def cancel(self, job_id: str, error: JobError) -> Job | None:
        """Cancel a queued job, and return it; ask the holder of a running one to."""
        mine = update(jobs).where(jobs.c.id == job_id)
        with self.database.write() as connection:
            for ended in self._ended(connection, mine.where(jobs.c.state == "queued"), Finish("cancelled", error)):
                return ended
            connection.execute(mine.where(jobs.c.state == "running").values(cancel_error=error))
        return None

    # Ending what nobody would end otherwise.

    @in_thread
    def take_over_expired(self, server: str) -> list[Claim]:
        """Take running jobs whose holder gives no sign of life."""
        # Not its own: that a server is late itself does not mean that it does not work.
        now = self.database.now()
        expired = and_(jobs.c.state == "running", jobs.c.lease_until < now, jobs.c.holder != server)
        taken = update(jobs).where(expired).values(holder=server, lease_until=now + self.lease_s)
        with self.database.write() as connection:
            rows = connection.execute(taken.returning(jobs.c.id, jobs.c.attempts)).all()
        return [Claim(row.id, server, row.attempts) for row in rows]

    @in_thread
    def end_unwanted(self, server: str, gone: JobError, late: JobError, cancelled: JobError) -> list[Job]:
        """End queued jobs that nobody would end otherwise, as a server finds them; ask holders to end running ones.

        Args:
            server: Who looks.
            gone: The error of jobs that nobody waits for any more.
            late: Of those that passed their deadline in the queue; who runs a job looks after its deadline himself.
            cancelled: Of those that an older release put back into the queue although they were to be cancelled.
        """
        now = self.database.now()
        # Not what is waited for at this one: that it is late itself does not mean that its clients are gone.
        left = and_(jobs.c.waiter_until < now, jobs.c.waiter != server)
        with self.database.write() as connection:
            asked = update(jobs).where(left, jobs.c.state == "running", jobs.c.cancel_error.is_(None))
            connection.execute(asked.values(cancel_error=gone))
            return [
                *self._end_queued(connection, left, Finish("cancelled", gone)),
                *self._end_queued(connection, jobs.c.deadline_at < now, Finish("failed", late)),
                *self._end_queued(connection, jobs.c.cancel_error.is_not(None), Finish("cancelled", cancelled)),
            ]

    @in_thread
    def end_unreadable(self, ids: Sequence[str]) -> list[Job]:
        """Fail queued jobs that no server here can read."""
        ended = list[Job]()
        with self.database.write() as connection:
            for some in _batches(ids):
                ended += self._end_queued(connection, jobs.c.id.in_(some), Finish("failed", UNREADABLE))
        return ended

    def _end_queued(self, connection: Connection, condition: ColumnElement[bool], finish: Finish) -> list[Job]:
        return list(self._ended(connection, update(jobs).where(condition, jobs.c.state == "queued"), finish))

    def _ended(self, connection: Connection, which: Update, finish: Finish) -> Iterator[Job]:
        ending = which.values(finish.values(self.database.now())).returning(jobs)
        return map(job_of, connection.execute(ending).mappings().all())

    # Clearing away.

    @in_thread
    def relabel(self, job_id: str, change: Callable[[Mapping[str, str]], Mapping[str, str]]) -> None:
        """Give a job the labels that `change` makes of its own; of two at once, the second sees what the first did."""
        with self.database.write(admission=True) as connection:
            own = connection.execute(select(jobs.c.labels).where(jobs.c.id == job_id)).scalar_one_or_none()
            if own is not None:
                connection.execute(update(jobs).where(jobs.c.id == job_id).values(labels=dict(change(own))))

    @in_thread
    def remove(self, ids: Sequence[str]) -> None:
        """Forget finished jobs, a few."""
        with self.database.write() as connection:
            connection.execute(jobs.delete().where(jobs.c.id.in_(ids), jobs.c.state.in_(FINAL)))

    @in_thread
    def drop_contents(self, ids: Sequence[str]) -> None:
        """Note that the files of a few jobs are gone."""
        gone = update(jobs).where(jobs.c.id.in_(ids)).values(result_key=None, result_bytes=0, input_bytes=0)
        with self.database.write() as connection:
            connection.execute(gone)

    @in_thread
    def expired(self, age_s: float, limit: int = 50) -> list[str]:
        """Jobs that were over so long ago, the oldest first, so many of them."""
        old = jobs.c.finished_at < self.database.now() - age_s
        wanted = select(jobs.c.id).where(jobs.c.state.in_(FINAL), old).order_by(jobs.c.finished_at).limit(limit)
        with self.database.read() as connection:
            return list(connection.execute(wanted).scalars())

    @in_thread
    def over(self, max_bytes: int, limit: int = 50) -> list[str]:
        """The oldest finished jobs without whose files all others fit into `max_bytes`, so many of them."""
        size = jobs.c.result_bytes + jobs.c.input_bytes
        with self.database.read() as connection:
            excess = int(connection.execute(select(func.coalesce(func.sum(size), 0))).scalar_one()) - max_bytes
            oldest = select(jobs.c.id, size.label("size")).where(jobs.c.state.in_(FINAL), size > 0)
            found = []
            for row in connection.execute(oldest.order_by(jobs.c.finished_at).limit(limit)):
                if excess <= 0:
                    break
                found.append(row.id)
                excess -= row.size
            return found

    @in_thread
    def results(self, ids: Collection[str]) -> Mapping[str, tuple[State, str | None]]:
        """State and the clip's key of some jobs; those that are gone are missing."""
        found: dict[str, tuple[State, str | None]] = {}
        with self.database.read() as connection:
            for some in _batches(ids):
                wanted = select(jobs.c.id, jobs.c.state, jobs.c.result_key).where(jobs.c.id.in_(some))
                found |= {row.id: (cast("State", row.state), row.result_key) for row in connection.execute(wanted)}
        return found

    # Webhooks.

    @in_thread
    def due_webhooks(self, limit: int = 256) -> list[Delivery]:
        """Webhooks that are due, so many of them.

        The first of each owner comes before the second of any, and of an owner the first to each address likewise.
        """
        columns, order = jobs.c, (jobs.c.webhook_due, jobs.c.seq)
        place = func.row_number().over(partition_by=(columns.owner, columns.webhook_url), order_by=order)
        names = ("id", "owner", "webhook_url", "webhook_attempts", "webhook_due", "seq")
        due = (
            select(*(columns[name] for name in names), place.label("place"))
            .where(columns.webhook_due <= self.database.now())
            .subquery()
        )
        turn = func.row_number().over(partition_by=due.c.owner, order_by=(due.c.place, due.c.webhook_due, due.c.seq))
        with self.database.read() as connection:
            rows = connection.execute(select(due).order_by(turn, due.c.place).limit(limit)).all()
        return [Delivery(row.id, row.webhook_url, row.webhook_attempts + 1, row.owner) for row in rows]

    @in_thread
    def take_webhook(self, due: Delivery, lease_s: float) -> bool:
        """Take one for delivery: nobody else gets it for so long. False if somebody else has it."""
        now = self.database.now()
        mine = (
            update(jobs)
            .where(jobs.c.id == due.job_id, jobs.c.webhook_due <= now, jobs.c.webhook_attempts == due.attempts - 1)
            .values(webhook_due=now + lease_s, webhook_attempts=due.attempts)
        )
        with self.database.write() as connection:
            return connection.execute(mine).rowcount == 1

    @in_thread
    def set_webhook(self, job_id: str, retry_in_s: float | None) -> None:
        """Try a webhook again later, or (None) no more."""
        due = None if retry_in_s is None else self.database.now() + retry_in_s
        with self.database.write() as connection:
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(webhook_due=due))

    @in_thread
    def give_back_webhooks(self, ids: Sequence[str]) -> None:
        """Have a few deliveries that were taken and cut off made by whoever comes next."""
        mine = update(jobs).where(jobs.c.id.in_(ids), jobs.c.webhook_due.is_not(None))
        with self.database.write() as connection:
            connection.execute(mine.values(webhook_due=self.database.now()))


def _unfinished(connection: Connection) -> Counter[str]:
    """How many jobs are in each state that is not the end."""
    count = select(jobs.c.state, func.count()).where(jobs.c.state.in_(_OPEN)).group_by(jobs.c.state)
    return Counter({row[0]: row[1] for row in connection.execute(count)})


def _admit(connection: Connection, unfinished: Counter[str], job: Job, limits: Limits, fingerprint: str) -> str | None:
    """The id of the job that was accepted before under the same key; None: this one can be accepted.

    Raises:
        QueueFullError, JobConflictError: it cannot.
    """
    if job.idempotency_key is not None:
        same = and_(jobs.c.owner == job.owner, jobs.c.idempotency_key == job.idempotency_key)
        found = connection.execute(select(jobs.c.id, jobs.c.fingerprint).where(same)).first()
        if found is not None and found.fingerprint != fingerprint:
            raise JobConflictError(f"the Idempotency-Key was used for another request, job {found.id}")
        if found is not None:
            return str(found.id)
    waiting = unfinished["queued"]
    if waiting >= limits.queue + max(limits.running - unfinished["running"], 0):
        raise QueueFullError(
            f"{waiting} jobs wait already, as many as this server lets wait; this one would be number {waiting + 1}"
        )
    if limits.per_owner is not None:
        own = select(func.count()).where(jobs.c.owner == job.owner, jobs.c.state.in_(_OPEN))
        theirs = connection.execute(own).scalar_one()
        if theirs >= limits.per_owner:
            raise QueueFullError(
                f"{theirs} jobs of this key are unfinished, and no more than {limits.per_owner} may be"
            )
    return None


def _place(connection: Connection, cursor: str, owner: str | None) -> tuple[Column[Any], float]:
    """The column and the value in it that a cursor stands for.

    Raises:
        JobNotFoundError: it stands for nothing.
    """
    if named := _CURSOR.fullmatch(cursor):
        return jobs.c.seq, int(named[1])
    if _ID.fullmatch(cursor):
        found = connection.execute(select(jobs.c.seq, jobs.c.owner).where(jobs.c.id == cursor)).first()
        if found is not None and owner in (None, found.owner):
            return jobs.c.seq, found.seq
        if found is None and (timed := _TIMED_ID.fullmatch(cursor)):
            return jobs.c.created_at, int(timed[1], 16) / 1e6  # it was removed; its id says when it came
    raise JobNotFoundError(f"there is no job {cursor[:80]}")


def _progress(row: RowMapping) -> Progress:
    # Of a release that has more stages: it is at something.
    stage: Stage = row["stage"] if row["stage"] in get_args(Stage) else "prepare"
    return Progress(stage, row["step"], row["total"], remaining_s=row["remaining_s"])


def _reached(at: Any) -> int:
    """How far a job is, as a number, by the `stage` and the `step` that it is at."""
    stages = get_args(Stage)
    return (stages.index(at.stage) if at.stage in stages else 0) * 100_000 + min(int(at.step), 99_999)


def _priority(number: int) -> Priority:
    return PRIORITIES[min(max(number, 0), len(PRIORITIES) - 1)]


def _free(columns: ReadOnlyColumnCollection[str, Column[Any]], now: ColumnElement[float]) -> ColumnElement[bool]:
    """The condition that a job may be begun: it is queued, and whoever is to wait for it is not known to be gone."""
    awaited = or_(columns.waiter_until.is_(None), columns.waiter_until >= now)
    return and_(columns.state == "queued", columns.cancel_error.is_(None), awaited)


def _owned(owner: str | None) -> ColumnElement[bool]:
    return true() if owner is None else jobs.c.owner == owner


def _batches(ids: Iterable[str], size: int = 500) -> Iterator[list[str]]:
    """Ids in lists that a statement can have as parameters."""
    listed = list(ids)
    return (listed[i : i + size] for i in range(0, len(listed), size))
