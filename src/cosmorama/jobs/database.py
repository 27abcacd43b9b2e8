"""The database of the job store: its tables, what their JSON columns hold, transactions, migrations.

Requests, outcomes and errors stand in it as JSON that a later release can still read: a document says its version.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache, partial, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from pydantic import TypeAdapter
from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Dialect,
    Engine,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    bindparam,
    column,
    create_engine,
    event,
    extract,
    func,
    inspect,
    literal,
    select,
    table,
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
from cosmorama.errors import InvalidRequestError, Problem, StoreUnavailableError, WorkerError
from cosmorama.jobs.model import JobError
from cosmorama.request import ResolvedRequest

log = logging.getLogger(__name__)

MIGRATIONS = Path(__file__).parent / "migrations"
REVISION = {"version_table": "cosmorama_alembic"}
"""Where alembic notes which of them a store has."""
REQUEST_VERSION = 1
BUSY_TIMEOUT_S = 10
CONNECT_TIMEOUT_S = 5
_ADMISSION_LOCK = 0x636F736D
"""Any number, the same in every server: Postgres's advisory lock around counting the queue and adding to it."""

UNREADABLE = JobError.of(
    WorkerError("the job was written by another release of the server, which said what this one cannot read")
)
"""The error of a job whose row cannot be read, or whose own error cannot."""


class Document(TypeDecorator[Any]):
    """A column of JSON text that holds one value of a type.

    Args:
        kind: The type, a dataclass or anything else that pydantic knows.
        unreadable: What a text is read as that is damaged, or that a later release wrote in words of its own.
    """

    impl = Text
    cache_ok = True

    def __init__(self, kind: Any, unreadable: Any = None) -> None:
        super().__init__()
        # SQLAlchemy tells statements apart by a type's public attributes, which have to be hashable.
        self.kind, self._unreadable = kind, unreadable

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """The text; values that JSON has no words for become text of their own."""
        if value is None:
            return None
        return json.dumps(_adapter(self.kind).dump_python(value, mode="python"), default=_as_text)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        """The value, or `unreadable`."""
        try:
            return None if value is None else self.read(value)
        except (ValueError, TypeError, KeyError, RecursionError):
            return self._unreadable

    def read(self, text: str) -> Any:
        """The value; raises whatever is wrong with the text."""
        return _adapter(self.kind).validate_json(text)


class RequestDocument(Document):
    """A request without inline media: of what came inline, the key in the artifact store stands there, a `Path`."""

    cache_ok = True

    def __init__(self) -> None:
        super().__init__(ResolvedRequest)

    def process_bind_param(self, value: Any, dialect: Dialect) -> str:
        """The text."""
        body = _adapter(ResolvedRequest).dump_python(value, mode="python")
        if not body["names"]:  # as releases before it was there wrote it, whose fingerprints still count
            del body["names"]
        return json.dumps({"version": REQUEST_VERSION, "request": body}, default=_as_key, separators=(",", ":"))

    def read(self, text: str) -> ResolvedRequest:
        """The request; raises whatever is wrong with the text."""
        document = json.loads(text, object_hook=_from_key if "$artifact" in text else None)
        if document["version"] != REQUEST_VERSION:
            raise ValueError(f"version {document['version']}; this server reads version {REQUEST_VERSION}")
        request: ResolvedRequest = _adapter(ResolvedRequest).validate_python(document["request"])
        return request


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _as_text(value: object) -> str:
    return value.name if isinstance(value, Path) else repr(value)


def _as_key(value: object) -> dict[str, str]:
    if isinstance(value, Path):
        return {"$artifact": value.as_posix()}
    raise TypeError(f"{type(value).__name__} has no place in a stored request")


def _from_key(value: dict[str, Any]) -> Any:
    return Path(value["$artifact"]) if value.keys() == {"$artifact"} else value


UNREADABLE_OUTCOME = object()
_ERROR = Document(JobError, UNREADABLE)
metadata = MetaData()
schema = Table("cosmorama_schema", metadata, Column("version", Integer, primary_key=True))
"""How new the tables are, for releases that knew no alembic."""
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
    Column("request", RequestDocument(), nullable=False),
    Column("labels", Document(dict[str, str], {}), nullable=False),
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
    # How much it is suspected of the deaths of processes that held it, and how far it was at the last of them.
    Column("blamed", Integer, nullable=False, default=0),
    Column("blamed_at", Integer, nullable=False, default=0, server_default="0"),
    # Which server a client waits at, for jobs that are for nobody else, and until when that may be believed.
    Column("waiter", String(64)),
    Column("waiter_until", Float(53)),
    # The error to end with, once its holder has seen that a running job is to be cancelled.
    Column("cancel_error", _ERROR),
    Column("stage", String(16), nullable=False, default="queued"),
    Column("step", Integer, nullable=False, default=0),
    Column("total", Integer, nullable=False, default=0),
    Column("remaining_s", Float(53)),
    Column("error", _ERROR),
    Column("outcome", Document(Outcome, UNREADABLE_OUTCOME)),
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


class Database:
    """Transactions on the job store, and the threads that wait for them.

    Raises:
        InvalidRequestError: the URL is none, or its driver is not installed.
    """

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
        # SQLite has one writer at a time anyway; queueing for it here is fairer than its own waiting.
        self.threads = ThreadPoolExecutor(1 if self.is_sqlite else 4, thread_name_prefix="jobs")
        self._ahead_s = 0.0
        self._file: Path | None = None
        self._inode: int | None = None
        if self.is_sqlite and parsed.database and parsed.database != ":memory:":
            self._file = Path(parsed.database)
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with suppress(OSError):  # whose prompts and URLs are in it; what SQLite lays beside it is as private
                os.close(os.open(self._file, os.O_RDWR | os.O_CREAT, 0o600))
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
        """Make the tables if they are not there, and bring those of an earlier release up to date.

        Raises:
            StoreUnavailableError: the database cannot be reached, or was made by a later release.
        """
        with self.write() as connection:
            if not self.is_sqlite:
                # Two servers that start at once would both find nothing and both create.
                connection.execute(select(func.pg_advisory_xact_lock(_ADMISSION_LOCK)))
            upgrade(connection)
            self.hear_time(connection)
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
        """Seconds since the epoch, when it is executed, on the one clock that all servers of this store share."""
        if self.is_sqlite:
            return bindparam(None, type_=Float(53), callable_=lambda: time.time())
        return sql_cast(extract("epoch", func.clock_timestamp()), Float(53))

    def place(self, wanted: ColumnElement[str], among: Sequence[str]) -> ColumnElement[int]:
        """A number by which ids have the order of a list; as a text, for a CASE of a hundred takes milliseconds."""
        find = func.instr if self.is_sqlite else func.strpos
        return find(f",{','.join(among)},", literal(",") + wanted + ",")

    def hear_time(self, connection: Connection) -> None:
        """Set the clock of this process by the one that all servers share."""
        if not self.is_sqlite:
            asked_at = time.monotonic()
            now = connection.execute(select(self.now())).scalar_one()
            self._ahead_s = now - (asked_at + time.monotonic()) / 2

    def time(self) -> float:
        """`now` as it was last heard and as much later as has passed since, for what is worth no question."""
        return time.time() if self.is_sqlite else time.monotonic() + self._ahead_s

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
        """Close all connections. What still waits for a thread is not done any more."""
        self.threads.shutdown(wait=False, cancel_futures=True)
        self._engine.dispose()


class HasDatabase(Protocol):
    """What has methods that are `in_thread`."""

    @property
    def database(self) -> Database:
        """Whose threads they run in."""
        ...


_Self = TypeVar("_Self", bound=HasDatabase)
_P = ParamSpec("_P")
_T = TypeVar("_T")


def in_thread(
    method: Callable[Concatenate[_Self, _P], _T],
) -> Callable[Concatenate[_Self, _P], Coroutine[Any, Any, _T]]:
    """Make a blocking method one that is awaited, and runs in a thread of its database."""

    @wraps(method)
    async def call(self: _Self, /, *arguments: _P.args, **named: _P.kwargs) -> _T:
        work = partial(method, self, *arguments, **named)
        return await asyncio.get_running_loop().run_in_executor(self.database.threads, work)

    return call


def upgrade(connection: Connection, to: str = "head") -> None:
    """Bring a store to one of the revisions in `migrations`, the last one: from an earlier one, or from nothing.

    Raises:
        StoreUnavailableError: it was made by a later release.
    """
    last = max(int(path.name.split("_")[0][1:]) for path in MIGRATIONS.glob("versions/v*.py"))
    found = noted = _noted(connection, REVISION["version_table"], "version_num")
    if noted is None:
        found = _noted(connection, schema.name, "version")  # of releases that knew no alembic
    if (found or 0) > last:
        raise StoreUnavailableError(
            f"the job store has version {found}, of a later release; this one reads up to {last}"
        )
    if noted == last:
        return
    # Only now, because it is large, and a store is rarely brought up to date.
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it would tell which plugins it has
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection} | REVISION)
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    if found != noted:
        command.stamp(config, str(found or "base"))
    command.upgrade(config, to)
    log.info("the job store was of version %s and is of version %s now", found or "none", last if to == "head" else to)


def _noted(connection: Connection, where: str, name: str) -> int | None:
    """The version that a table says; None where there is no such table, or nothing in it."""
    if not inspect(connection).has_table(where):
        return None
    said = connection.execute(select(column(name)).select_from(table(where))).scalar()
    return None if said is None else int(said)


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


def first_line(error: Exception) -> str:
    """What a driver says of an error, without the statement and all that SQLAlchemy adds to it."""
    cause = getattr(error, "orig", None) or error
    return next(iter(str(cause).strip().splitlines()), type(cause).__name__)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (DataError, IntegrityError, ProgrammingError, NotSupportedError):
        raise  # a fault of ours, which does not get better by waiting
    except (DBAPIError, PoolTimeoutError) as error:
        detail = first_line(error)
        full = " (its disk is full)" if re.search("disk is full|No space left", detail) else ""
        raise StoreUnavailableError(f"the job store cannot be used now{full}; try again later", detail) from error
