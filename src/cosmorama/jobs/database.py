"""Connections to the job store's database, SQLite or Postgres, and what differs between the two."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Float,
    cast,
    create_engine,
    event,
    extract,
    func,
    literal,
    select,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from cosmorama.errors import InvalidRequestError, Problem
from cosmorama.jobs.record import StoreUnavailableError
from cosmorama.jobs.schema import SCHEMA_VERSION, metadata, version

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
        if self.is_sqlite and parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
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
            elif found != SCHEMA_VERSION:
                raise StoreUnavailableError(f"the job store has version {found}; this server needs {SCHEMA_VERSION}")

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
        return cast(extract("epoch", func.clock_timestamp()), Float(53))

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
    except (DBAPIError, PoolTimeoutError) as error:
        cause = getattr(error, "orig", None) or error
        reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
        raise StoreUnavailableError(f"the job store cannot be used now ({reason}); try again later") from error
