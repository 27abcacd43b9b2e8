"""The job store: its tables, and every transition of a job as one conditional UPDATE, so that of two servers one wins.

    accept -> queued -claim-> running -finish-> succeeded | failed | cancelled
                 ^--- release ---'

Requests, outcomes and errors stand in it as JSON that a later release can still read: a document says its version.
Blocking; `service` calls it from threads of its own.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

from pydantic import TypeAdapter
from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Engine,
    Float,
    Index,
    Integer,
    MetaData,
    RowMapping,
    String,
    Table,
    Text,
    UniqueConstraint,
    and_,
    bindparam,
    case,
    create_engine,
    event,
    extract,
    func,
    literal,
    or_,
    select,
    true,
    update,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    NoSuchModuleError,
    NotSupportedError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from cosmorama.engine.outcome import Outcome
from cosmorama.engine.scheduler import PRIORITIES, Priority
from cosmorama.errors import CosmoramaError, InvalidRequestError, Problem, QueueFullError, WorkerError
from cosmorama.jobs.model import (
    FINAL,
    Job,
    JobConflictError,
    JobError,
    JobNotFoundError,
    JobResult,
    State,
    StoreUnavailableError,
)
from cosmorama.progress import Progress, Stage
from cosmorama.request import ResolvedRequest

SCHEMA_VERSION = 2
MIGRATIONS: dict[int, tuple[str, ...]] = {
    2: ("ALTER TABLE cosmorama_jobs ADD COLUMN blamed_at INTEGER NOT NULL DEFAULT 0",),
}
"""What brings a store of the version before to this one."""
UNREADABLE = JobError.of(
    WorkerError("the job was written by another release of the server, which said what this one cannot read")
)
_CURSOR = re.compile(r"after_([0-9]{1,18})")
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

metadata = MetaData()

version = Table("cosmorama_schema", metadata, Column("version", Integer, primary_key=True))

jobs = Table(
    "cosmorama_jobs",
    metadata,
    # The order of acceptance.
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("state", String(16), nullable=False),
    Column("owner", String(64), nullable=False),
    Column("dialect", String(64), nullable=False),
    Column("model", String(256), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("request", Text, nullable=False),
    Column("labels", Text, nullable=False),
    Column("idempotency_key", String(256)),
    Column("fingerprint", String(64), nullable=False),
    Column("created_at", Float(53), nullable=False),
    Column("started_at", Float(53)),
    Column("finished_at", Float(53)),
    Column("deadline_at", Float(53)),
    # Which server runs it, until when that may be believed, and how often one began to.
    Column("holder", String(64)),
    Column("lease_until", Float(53)),
    Column("attempts", Integer, nullable=False, default=0),
    # How much it is suspected of the deaths of processes that held it.
    Column("blamed", Integer, nullable=False, default=0),
    # How far it was at the last of them, see `_reached`.
    Column("blamed_at", Integer, nullable=False, default=0, server_default="0"),
    # Which server a client waits at, for jobs that are for nobody else, and until when that may be believed.
    Column("waiter", String(64)),
    Column("waiter_until", Float(53)),
    # The error to end with, once its holder has seen that a running job is to be cancelled.
    Column("cancel_error", Text),
    Column("stage", String(16), nullable=False, default="queued"),
    Column("step", Integer, nullable=False, default=0),
    Column("total", Integer, nullable=False, default=0),
    Column("remaining_s", Float(53)),
    Column("error", Text),
    Column("outcome", Text),
    Column("media_type", String(64)),
    # Key in the artifact store; null once the file was removed.
    Column("result_key", String(256)),
    Column("result_bytes", BigInteger, nullable=False, default=0),
    Column("input_bytes", BigInteger, nullable=False, default=0),
    Column("webhook_url", Text),
    # When to try the webhook next; null when there is nothing (more) to send.
    Column("webhook_due", Float(53)),
    Column("webhook_attempts", Integer, nullable=False, default=0),
    UniqueConstraint("owner", "idempotency_key"),
    Index("cosmorama_jobs_by_state", "state", "seq"),
    Index("cosmorama_jobs_by_webhook", "webhook_due"),
    sqlite_autoincrement=True,
)


_T = TypeVar("_T")


def _read(unpack: Callable[[str], _T], text: str) -> _T | None:
    """A document of a row; None where it is damaged, or written by a release that says more than this one knows."""
    try:
        return unpack(text)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def job_of(row: RowMapping | dict[str, Any]) -> Job:
    """The job in a row, without what depends on other rows (queue position, ETA). What cannot be read is left out."""
    request = _read(unpack_request, row["request"])
    outcome = None if row["outcome"] is None else _read(unpack_outcome, row["outcome"])
    error = None if row["error"] is None else _read(unpack_error, row["error"]) or UNREADABLE
    return Job(
        readable=request is not None and (outcome is None) == (row["outcome"] is None),
        id=row["id"],
        state=cast("State", row["state"]),
        dialect=row["dialect"],
        model=row["model"],
        owner=row["owner"],
        request=request or ResolvedRequest(),
        priority=_priority(row["priority"]),
        created_at=row["created_at"],
        metadata=_read(json.loads, row["labels"]) or {},
        progress=Progress(cast("Stage", row["stage"]), row["step"], row["total"], remaining_s=row["remaining_s"]),
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        deadline_at=row["deadline_at"],
        attempts=row["attempts"],
        error=error,
        result=None
        if outcome is None
        else JobResult(outcome, row["media_type"], row["result_bytes"], row["result_key"]),
        idempotency_key=row["idempotency_key"],
        webhook_url=row["webhook_url"],
        attached=row["waiter"] is not None,
    )


VERSION = 1

_KEY = "$artifact"


def fingerprint(dialect: str, request: ResolvedRequest, blobs: Mapping[str, bytes]) -> str:
    """Equal for requests that ask for the same: of a request before `resolve`, so that an undrawn seed stays equal."""
    digests = {where: sha256(blob).hexdigest() for where, blob in blobs.items()}
    return sha256(json.dumps([dialect, pack_request(request), digests], sort_keys=True).encode()).hexdigest()


def pack_request(request: ResolvedRequest) -> str:
    """A request without inline media, as JSON text."""
    body = _adapter(ResolvedRequest).dump_python(request, mode="python")
    return json.dumps({"version": VERSION, "request": body}, default=_as_json, separators=(",", ":"))


def unpack_request(text: str) -> ResolvedRequest:
    """The request of `pack_request`.

    Raises:
        ValueError: the document is of a later version, or no request.
    """
    document = json.loads(text, object_hook=_from_json)
    if document["version"] != VERSION:
        raise ValueError(f"a request of version {document['version']}; this server reads version {VERSION}")
    request: ResolvedRequest = _adapter(ResolvedRequest).validate_python(document["request"])
    return request


def pack_outcome(outcome: Outcome) -> str:
    """An outcome as JSON text; of its path, the name."""
    return _adapter(Outcome).dump_json(replace(outcome, path=Path(outcome.path.name))).decode()


def unpack_outcome(text: str) -> Outcome:
    """The outcome of `pack_outcome`."""
    outcome: Outcome = _adapter(Outcome).validate_json(text)
    return outcome


def pack_error(error: JobError) -> str:
    """An error as JSON text; values of problems that JSON has no words for become text."""
    return json.dumps(_adapter(JobError).dump_python(error, mode="python"), default=repr)


def unpack_error(text: str) -> JobError:
    """The error of `pack_error`."""
    error: JobError = _adapter(JobError).validate_json(text)
    return error


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _as_json(value: object) -> object:
    if isinstance(value, Path):
        return {_KEY: value.as_posix()}
    raise TypeError(f"{type(value).__name__} has no place in a stored request")


def _from_json(value: dict[str, Any]) -> Any:
    return Path(value[_KEY]) if value.keys() == {_KEY} else value


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """What is known of a job before it is accepted.

    `fingerprint` is compared where there is an `idempotency_key`; `blob_bytes` is the size of its inline media.
    """

    id: str
    request: ResolvedRequest
    dialect: str
    model: str
    owner: str
    priority: Priority
    fingerprint: str
    created_at: float
    labels: Mapping[str, str]
    idempotency_key: str | None = None
    deadline_s: float | None = None
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
            deadline_at=None if self.deadline_s is None else self.created_at + self.deadline_s,
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


BUSY_TIMEOUT_S = 10

CONNECT_TIMEOUT_S = 5

_ADMISSION_LOCK = 0x636F736D

"""Any number, the same in every server: Postgres's advisory lock around counting the queue and adding to it."""


class Database:
    """Transactions on the job store. Blocking; for one thread with SQLite, for several with Postgres."""

    def __init__(self, url: str) -> None:
        try:
            parsed = make_url(url)
        except ArgumentError:
            raise InvalidRequestError(Problem("database_url", "...", "an SQLAlchemy URL")) from None
        if parsed.drivername in ("postgres", "postgresql"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        self.conninfo = parsed.set(drivername="postgresql").render_as_string(hide_password=False)
        """Where Postgres is, for a connection beside those for transactions."""
        self._file: Path | None = None
        self._inode: int | None = None
        if self.is_sqlite and parsed.database and parsed.database != ":memory:":
            self._file = Path(parsed.database)
            self._file.parent.mkdir(parents=True, exist_ok=True)
        arguments: dict[str, Any] = (
            {"timeout": BUSY_TIMEOUT_S, "check_same_thread": False}
            if self.is_sqlite
            else {"connect_timeout": CONNECT_TIMEOUT_S, "application_name": "cosmorama"}
        )
        try:
            self._engine = create_engine(parsed, connect_args=arguments, pool_pre_ping=not self.is_sqlite)
        except (NoSuchModuleError, ModuleNotFoundError) as error:
            problem = Problem("database_url", parsed.drivername, f"an installed driver ({error})")
            raise InvalidRequestError(problem) from None
        if self.is_sqlite:
            _prepare_sqlite(self._engine)

    def create(self) -> None:
        """Make the tables if they are not there.

        Raises:
            StoreUnavailableError: the database cannot be reached, or was made by another version.
        """
        with self.write() as connection:
            if not self.is_sqlite:
                # Two servers that start at once would both find nothing and both create.
                connection.execute(select(func.pg_advisory_xact_lock(_ADMISSION_LOCK)))
            metadata.create_all(connection)
            found = connection.execute(select(version.c.version)).scalar()
            if found is None:
                connection.execute(version.insert().values(version=SCHEMA_VERSION))
            elif found > SCHEMA_VERSION:
                raise StoreUnavailableError(
                    f"the job store has version {found}, of a later release; this one reads up to {SCHEMA_VERSION}"
                )
            else:
                for step in range(found + 1, SCHEMA_VERSION + 1):
                    for statement in MIGRATIONS[step]:
                        connection.exec_driver_sql(statement)
                connection.execute(version.update().values(version=SCHEMA_VERSION))
        if self._file is not None:
            self._inode = self._file.stat().st_ino

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads.

        Raises:
            StoreUnavailableError: here and in `write`, for whatever goes wrong between us and the database.
        """
        with _translated(), self._engine.connect() as connection:
            yield connection.execution_options(cosmorama_begin="BEGIN")

    @contextmanager
    def write(self, *, admission: bool = False) -> Iterator[Connection]:
        """A transaction that writes.

        Args:
            admission: What it reads decides what it adds, so no other of these may run meanwhile; and its end is a
                promise, so it is on the disk then. (Losing the end of another transaction with the power is harmless:
                what it recorded is found out again.)
        """
        with _translated(), self._engine.connect() as connection:
            if self.is_sqlite:
                # Not through SQLAlchemy, which would begin a transaction first; within one this cannot be set.
                level = "FULL" if admission else "NORMAL"
                connection.connection.driver_connection.execute(f"PRAGMA synchronous={level}")  # type: ignore[union-attr]
            with connection.begin():
                if admission and not self.is_sqlite:
                    connection.execute(select(func.pg_advisory_xact_lock(_ADMISSION_LOCK)))
                yield connection

    def now(self) -> ColumnElement[float]:
        """Seconds since the epoch on the one clock that all servers of this store share."""
        if self.is_sqlite:
            return literal(time.time())
        return sql_cast(extract("epoch", func.clock_timestamp()), Float(53))

    def check(self) -> None:
        """See whether what is written is still where the next start will look for it.

        Raises:
            StoreUnavailableError: the file of the job store is gone, or another one is in its place.
        """
        if self._file is not None and self._inode is not None:
            try:
                same = self._file.stat().st_ino == self._inode
            except OSError:
                same = False
            if not same:
                raise StoreUnavailableError(
                    "the job store's file was removed or replaced under the running server; its operator has to look",
                    str(self._file),
                )

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def connected(connection: Any, record: Any) -> None:
        # SQLAlchemy's own BEGIN, below, instead of the driver's.
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode=WAL")

    @event.listens_for(engine, "begin")
    def began(connection: Connection) -> None:
        # A transaction that reads and then writes would fail if another process wrote in between.
        begin = connection.get_execution_options().get("cosmorama_begin", "BEGIN IMMEDIATE")
        connection.exec_driver_sql(begin)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (DataError, IntegrityError, ProgrammingError, NotSupportedError):
        raise  # a fault of ours, which does not get better by waiting
    except (DBAPIError, PoolTimeoutError) as error:
        cause = getattr(error, "orig", None) or error
        detail = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
        full = " (its disk is full)" if "disk is full" in detail or "No space left" in detail else ""
        raise StoreUnavailableError(f"the job store cannot be used now{full}; try again later", detail) from error


@dataclass(frozen=True, slots=True)
class Hold:
    """A claim on a job: only who has it may finish it, and only once."""

    job_id: str
    holder: str
    attempt: int
    left_s: float | None = field(default=None, compare=False)
    """How much of the job's time was left when it was claimed, by the clock of the store."""

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
            # What was sent with a job that made nothing goes with it.
            **({"stage": "done", "step": jobs.c.total} if self.state == "succeeded" else {"input_bytes": 0}),
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
            now = self.database.now()
            insert = jobs.insert().values(
                waiter_until=now + bindparam("waits_s", type_=Float),
                deadline_at=now + bindparam("deadline_s", type_=Float),
            )
            answers: list[str | CosmoramaError] = []
            for job in new:
                answer = decided(connection, job, limits, left)
                if answer is None:
                    waits_s = None if job.waiter is None else self.lease_s  # now plus null is null
                    connection.execute(insert, job.values() | {"waits_s": waits_s, "deadline_s": job.deadline_s})
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
        row = None
        if _ID.fullmatch(job_id):  # Postgres refuses what it cannot have stored, NUL for example
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
    ) -> tuple[list[Job], str | None]:
        """Jobs before (after, if `ascending`) the one that `cursor` names, in the order of acceptance.

        Args:
            cursor: What this gave for the page before, or the id of a job.
            limit: How many.
            state, owner, dialect: Only of these.
            ascending: Oldest first.

        Returns:
            The jobs, and the cursor of the page after them, which stands whatever becomes of them; None at the end.

        Raises:
            JobNotFoundError: there is no such job.
        """
        # One more than asked for tells whether there are more.
        wanted = select(jobs).where(_owned(owner)).limit(limit + 1)
        if state is not None:
            wanted = wanted.where(jobs.c.state == state)
        if dialect is not None:
            wanted = wanted.where(jobs.c.dialect == dialect)
        with self.database.read() as connection:
            if cursor is not None:
                seq: int | None = None
                if named := _CURSOR.fullmatch(cursor):
                    seq = int(named[1])
                elif _ID.fullmatch(cursor):
                    seq = connection.execute(select(jobs.c.seq).where(jobs.c.id == cursor, _owned(owner))).scalar()
                if seq is None:
                    raise JobNotFoundError(f"there is no job {cursor[:80]}")
                wanted = wanted.where(jobs.c.seq > seq if ascending else jobs.c.seq < seq)
            rows = connection.execute(wanted.order_by(jobs.c.seq if ascending else jobs.c.seq.desc())).mappings().all()
        more = len(rows) > limit
        return [job_of(row) for row in rows[:limit]], f"after_{rows[limit - 1]['seq']}" if more else None

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
            .returning(jobs, (jobs.c.deadline_at - now).label("left_s"))
        )
        with self.database.write() as connection:
            row = connection.execute(taken).mappings().first()
        return None if row is None else (Hold(job_id, holder, row["attempts"], row["left_s"]), job_of(row))

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

    def release(self, hold: Hold, weight: int = 0, most: int | None = None, finish: Finish | None = None) -> Job | None:
        """Put a running job back into the queue.

        In one transaction, so that it can be said again when its answer was lost.

        Args:
            hold: The claim.
            weight: How much the job is suspected of the death of a process. A job that got further than at the last
                death did not die of what killed it then: only this one counts.
            most: What the sum of weights may not reach.
            finish: How the job ends where it does.

        Returns:
            The job if it ended; None if it is in the queue, or is not ours any more.
        """
        with self.database.write() as connection:
            row = connection.execute(
                select(jobs.c.blamed, jobs.c.blamed_at, jobs.c.stage, jobs.c.step).where(hold.where)
            ).first()
            if row is None:
                return None
            blamed, values = row.blamed, dict[str, Any]()
            if weight:
                reached = _reached(row.stage, row.step)
                blamed = weight + (0 if reached > row.blamed_at else row.blamed)
                values = {"blamed": blamed, "blamed_at": max(reached, row.blamed_at)}
            if most is not None and finish is not None and weight and blamed >= most:
                values |= finish.values(self.database.now())
                ended = connection.execute(update(jobs).where(hold.where).values(values).returning(jobs)).mappings()
                return next(map(job_of, ended), None)
            connection.execute(update(jobs).where(hold.where).values(state="queued", **_UNHELD, **values))
        return None

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


def _reached(stage: str, step: int) -> int:
    """How far a job is, as a number."""
    stages = get_args(Stage)
    return (stages.index(stage) if stage in stages else 0) * 100_000 + min(step, 99_999)


def _priority(number: int) -> Priority:
    return PRIORITIES[min(max(number, 0), len(PRIORITIES) - 1)]


def _owned(owner: str | None) -> ColumnElement[bool]:
    return true() if owner is None else jobs.c.owner == owner


def _webhook_due(now: ColumnElement[float]) -> ColumnElement[float | None]:
    return case((jobs.c.webhook_url.is_not(None), now), else_=None)


_OPEN = ("queued", "running")


def _batches(ids: Iterable[str], size: int = 500) -> Iterator[list[str]]:
    """Ids in lists that a statement can have as parameters."""
    listed = list(ids)
    return (listed[i : i + size] for i in range(0, len(listed), size))


@dataclass(frozen=True, slots=True)
class Unfinished:
    """What scheduling needs to know of a job that is not over; `suspect`: whether a process may have died of it.

    `owner` is the key that it belongs to.
    """

    id: str
    state: State
    priority: Priority
    created_at: float
    progress: Progress
    suspect: bool = False
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a server's sign of life found: the claims that stand, and the errors to end some of them with."""

    held: frozenset[Hold]
    cancelled: Mapping[Hold, JobError]


@dataclass(frozen=True, slots=True)
class Due:
    """A webhook to send: to where, how often that was tried with this time, and for whom."""

    job_id: str
    url: str
    attempts: int
    owner: str = ""


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
                table.owner,
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
                _priority(row.priority),
                row.created_at,
                Progress(cast("Stage", row.stage), row.step, row.total, remaining_s=row.remaining_s),
                row.blamed > 0,
                row.owner,
            )
            for row in rows
        ]

    def requests(self, ids: Iterable[str]) -> tuple[dict[str, ResolvedRequest], list[str]]:
        """The requests of some jobs, and those of them whose request cannot be read."""
        found, unreadable = dict[str, ResolvedRequest](), list[str]()
        with self._database.read() as connection:
            for some in _batches(ids):
                for row in connection.execute(select(jobs.c.id, jobs.c.request).where(jobs.c.id.in_(some))):
                    request = _read(unpack_request, row.request)
                    if request is None:
                        unreadable.append(row.id)
                    else:
                        found[row.id] = request
        return found, unreadable

    def recent(self, model: str, limit: int = 50) -> list[tuple[ResolvedRequest, Outcome]]:
        """The newest successes of a model, oldest first, to learn from how long they took."""
        wanted = (
            select(jobs.c.request, jobs.c.outcome)
            .where(jobs.c.state == "succeeded", jobs.c.model == model)
            .order_by(jobs.c.seq.desc())
            .limit(limit)
        )
        with self._database.read() as connection:
            rows = connection.execute(wanted).all()
        pairs = [(_read(unpack_request, row.request), _read(unpack_outcome, row.outcome)) for row in reversed(rows)]
        return [(request, outcome) for request, outcome in pairs if request is not None and outcome is not None]

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
        cancelled = {h: _read(unpack_error, error) or UNREADABLE for h, error in holds.items() if error is not None}
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
                    error = None if row.cancel_error is None else _read(unpack_error, row.cancel_error) or UNREADABLE
                    taken.append((Hold(row.id, server, row.attempts), error))
        return taken

    def end_abandoned(self, server: str, error: JobError) -> list[Job]:
        """Cancel what nobody waits for any more, as a server finds it."""
        # Not what is waited for at this one: that it is late itself does not mean that its clients are gone.
        gone = and_(jobs.c.waiter_until < self._database.now(), jobs.c.waiter != server)
        return self._end(gone, Finish("cancelled", error))

    def end_cancelled(self, error: JobError) -> list[Job]:
        """Cancel what went back into the queue before its holder had seen that it was to be cancelled."""
        return self._end(jobs.c.cancel_error.is_not(None), Finish("cancelled", error))

    def end_unreadable(self, ids: Sequence[str]) -> list[Job]:
        """Fail queued jobs that no server here can read."""
        ended = list[Job]()
        for some in _batches(ids):
            ended += self._end(and_(jobs.c.id.in_(some), jobs.c.state == "queued"), Finish("failed", UNREADABLE))
        return ended

    def end_overdue(self, error: JobError) -> list[Job]:
        """Fail what passed its deadline in the queue; who runs a job looks after its deadline himself."""
        return self._end(
            and_(jobs.c.deadline_at < self._database.now(), jobs.c.state == "queued"), Finish("failed", error)
        )

    def expired(self, age_s: float, limit: int = 50) -> list[str]:
        """Jobs that were over so long ago, the oldest first, so many of them."""
        with self._database.read() as connection:
            old = jobs.c.finished_at < self._database.now() - age_s
            wanted = select(jobs.c.id).where(jobs.c.state.in_(FINAL), old).order_by(jobs.c.finished_at).limit(limit)
            return list(connection.execute(wanted).scalars())

    def remove(self, ids: Sequence[str]) -> None:
        """Forget finished jobs."""
        with self._database.write() as connection:
            for some in _batches(ids):
                connection.execute(jobs.delete().where(jobs.c.id.in_(some), jobs.c.state.in_(FINAL)))

    def drop_contents(self, ids: Sequence[str]) -> None:
        """Note that the files of jobs are gone."""
        gone = {"result_key": None, "result_bytes": 0, "input_bytes": 0}
        with self._database.write() as connection:
            for some in _batches(ids):
                connection.execute(update(jobs).where(jobs.c.id.in_(some)).values(**gone))

    def over(self, max_bytes: int, limit: int = 50) -> list[str]:
        """The oldest finished jobs without whose files all others fit into `max_bytes`, so many of them."""
        size = jobs.c.result_bytes + jobs.c.input_bytes
        with self._database.read() as connection:
            excess = int(connection.execute(select(func.coalesce(func.sum(size), 0))).scalar_one()) - max_bytes
            if excess <= 0:
                return []
            oldest = select(jobs.c.id, size.label("size")).where(jobs.c.state.in_(FINAL), size > 0)
            found = []
            for row in connection.execute(oldest.order_by(jobs.c.finished_at).limit(limit)):
                found.append(row.id)
                excess -= row.size
                if excess <= 0:
                    break
            return found

    def results(self, ids: Sequence[str]) -> Mapping[str, tuple[State, str | None]]:
        """State and the clip's key of some jobs; those that are gone are missing."""
        found: dict[str, tuple[State, str | None]] = {}
        with self._database.read() as connection:
            for some in _batches(ids):
                wanted = select(jobs.c.id, jobs.c.state, jobs.c.result_key).where(jobs.c.id.in_(some))
                found |= {row.id: (cast("State", row.state), row.result_key) for row in connection.execute(wanted)}
        return found

    def due_webhooks(self, limit: int = 256) -> list[Due]:
        """Webhooks that are due, so many of them: the first of each owner and address before the second of any."""
        place = func.row_number().over(
            partition_by=(jobs.c.owner, jobs.c.webhook_url), order_by=(jobs.c.webhook_due, jobs.c.seq)
        )
        fields = (jobs.c.id, jobs.c.owner, jobs.c.webhook_url, jobs.c.webhook_attempts, place.label("place"))
        due = select(*fields).where(jobs.c.webhook_due <= self._database.now()).subquery()
        with self._database.read() as connection:
            rows = connection.execute(select(due).order_by(due.c.place).limit(limit)).all()
        return [Due(row.id, row.webhook_url, row.webhook_attempts + 1, row.owner) for row in rows]

    def take_webhook(self, due: Due, lease_s: float) -> bool:
        """Take one for delivery: nobody else gets it for so long. False if somebody else has it."""
        now = self._database.now()
        mine = (
            update(jobs)
            .where(jobs.c.id == due.job_id, jobs.c.webhook_due <= now, jobs.c.webhook_attempts == due.attempts - 1)
            .values(webhook_due=now + lease_s, webhook_attempts=due.attempts)
        )
        with self._database.write() as connection:
            return connection.execute(mine).rowcount == 1

    def set_webhook(self, job_id: str, retry_in_s: float | None) -> None:
        """Try a webhook again later, or (None) no more."""
        due = None if retry_in_s is None else self._database.now() + retry_in_s
        with self._database.write() as connection:
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(webhook_due=due))

    def give_back_webhooks(self, ids: Sequence[str]) -> None:
        """Have deliveries that were taken and cut off made by whoever comes next."""
        with self._database.write() as connection:
            for some in _batches(ids):
                mine = update(jobs).where(jobs.c.id.in_(some), jobs.c.webhook_due.is_not(None))
                connection.execute(mine.values(webhook_due=self._database.now()))

    def _end(self, condition: ColumnElement[bool], finish: Finish) -> list[Job]:
        with self._database.write() as connection:
            ended = connection.execute(
                update(jobs)
                .where(condition, jobs.c.state == "queued")
                .values(finish.values(self._database.now()))
                .returning(jobs)
            ).mappings()
            found = list(map(job_of, ended))
            connection.execute(
                update(jobs)
                .where(condition, jobs.c.state == "running", jobs.c.cancel_error.is_(None))
                .values(cancel_error=None if finish.error is None else pack_error(finish.error))
            )
        return found
