"""Servers that share a job store: who is there, with which models, and what one has to tell the others.

A server announces itself in a table. One without a model of its own (`--role api`) knows from there what the others'
models take (`RemotePool`). News of jobs comes by Postgres's NOTIFY: triggers send it, so that no change of a row can
be forgotten. With SQLite, whose servers share one machine, there is no such thing, and everybody looks once a second.

All servers are told that a job waits, begins or ends. Steps and previews are told to those alone where somebody follows
the job: progress is written down once a second, and previews not at all, unless such a server asks for both at once
(`watchers`), and they come on a channel of its own. So what a server hears does not grow with the steps of all others.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    delete,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite

from cosmorama.engine.pool import ModelPool, ServedModel
from cosmorama.errors import ModelNotFoundError, NotReadyError, StoreUnavailableError
from cosmorama.jobs.channel import Channels, JobEvent
from cosmorama.jobs.database import Document, in_thread, metadata
from cosmorama.jobs.loops import Dispatcher
from cosmorama.jobs.store import Store
from cosmorama.jobs.worker import Runner
from cosmorama.request import Capabilities
from cosmorama.settings import Settings

log = logging.getLogger(__name__)

Role = Literal["all", "api", "worker", "fleet"]

REMEMBERED_S = 7 * 86400.0
"""For how long it is remembered what a server's models take, after its last sign of life."""
WATCHED_S = 10.0
"""For how long a wish to follow a job stands; it is renewed in half the time."""
RELAY_EVERY_S = 0.1
"""At most so often a job's progress is written down for those who watch it elsewhere."""
RECONNECT_S = 1.0

servers = Table(
    "cosmorama_servers",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("role", String(16), nullable=False),
    # [name, capabilities] of each model that it has loaded once; the default one first.
    Column("models", Document(list[Any], []), nullable=False),
    Column("ready", Boolean, nullable=False),
    Column("places", Integer, nullable=False),
    Column("active", Integer, nullable=False),
    Column("started_at", Float(53), nullable=False),
    Column("seen_at", Float(53), nullable=False),
)
known_models = Table(
    "cosmorama_models",
    metadata,
    # Where a model is from, as the setting says, and what it took when it was loaded last.
    Column("source", Text, primary_key=True),
    Column("capabilities", Document(Capabilities), nullable=False),
)
watchers = Table(
    "cosmorama_watchers",
    metadata,
    Column("job_id", String(64), primary_key=True),
    # Where somebody follows the job.
    Column("server", String(64), primary_key=True),
    Column("until", Float(53), nullable=False),
)
previews = Table(
    "cosmorama_previews",
    metadata,
    Column("job_id", String(64), primary_key=True),
    # Of the event that shows it: it grows with the job's progress.
    Column("number", BigInteger, nullable=False),
    Column("jpeg", LargeBinary, nullable=False),
)

_CAPABILITIES: TypeAdapter[Capabilities] = TypeAdapter(Capabilities)


@dataclass(frozen=True, slots=True)
class Member:
    """A server that shares the store.

    Attributes:
        models: What each of its models takes, the default one first, as far as they were loaded once.
        ready: Whether it generates now.
        places: Jobs that it works on at a time; 0 where it has no model.
        alive: Whether it gave a sign of life within a lease.
    """

    id: str
    role: Role
    models: dict[str, Capabilities]
    ready: bool
    places: int
    alive: bool


class Register:
    """The tables of servers and of what they tell each other.

    All methods raise `StoreUnavailableError` while the database is away.
    """

    def __init__(self, store: Store) -> None:
        self.database = store.database
        self._lease_s = store.lease_s

    @in_thread
    def announce(
        self, server: str, role: Role, supervisor: ModelPool, models: dict[str, Capabilities], places: int
    ) -> None:
        """Say that a server is there, and with what."""
        now = self.database.now()
        row = {
            "role": role,
            "models": [[name, _CAPABILITIES.dump_python(c, mode="json")] for name, c in models.items()],
            "ready": supervisor.ready and role != "api",
            "places": 0 if role == "api" else places,
            "active": supervisor.active,
            "seen_at": now,
        }
        with self.database.write() as connection:
            self._put(connection, servers, {"id": server, "started_at": now, **row}, row)
            connection.execute(delete(servers).where(servers.c.seen_at < now - REMEMBERED_S))
            connection.execute(delete(watchers).where(watchers.c.until < now))

    @in_thread
    def remember(self, models: dict[str, Capabilities]) -> None:
        """Write down what models take, by source."""
        with self.database.write() as connection:
            for source, capabilities in models.items():
                row = {"capabilities": capabilities}
                self._put(connection, known_models, {"source": source, **row}, row)

    @in_thread
    def remembered(self) -> dict[str, Capabilities]:
        """What models took when any server loaded them last, by source."""
        with self.database.read() as connection:
            rows = connection.execute(select(known_models)).all()
        return {row.source: row.capabilities for row in rows if row.capabilities is not None}

    @in_thread
    def withdraw(self, server: str) -> None:
        """Say that a server has gone: it is not waited for, and what its models take stays known."""
        with self.database.write() as connection:
            gone = {"seen_at": self.database.now() - 2 * self._lease_s, "ready": False, "active": 0}
            connection.execute(servers.update().where(servers.c.id == server).values(**gone))

    @in_thread
    def members(self) -> list[Member]:
        """All servers that are remembered, those that came first first."""
        living = (servers.c.seen_at > self.database.now() - self._lease_s).label("alive")
        with self.database.read() as connection:
            rows = connection.execute(select(servers, living).order_by(servers.c.started_at, servers.c.id)).all()
        return [
            Member(row.id, row.role, _models(row.models), bool(row.ready and row.alive), row.places, bool(row.alive))
            for row in rows
        ]

    @in_thread
    def watch(self, job_id: str, server: str) -> None:
        """Ask whoever runs a job to tell a server of every step, for a while."""
        until = {"until": self.database.now() + WATCHED_S}
        with self.database.write() as connection:
            self._put(connection, watchers, {"job_id": job_id, "server": server, **until}, until)

    @in_thread
    def watched(self, ids: Sequence[str]) -> set[str]:
        """Those of some jobs that somebody wants to follow."""
        wanted = select(watchers.c.job_id).where(watchers.c.job_id.in_(ids), watchers.c.until > self.database.now())
        with self.database.read() as connection:
            return {row.job_id for row in connection.execute(wanted)}

    @in_thread
    def show(self, job_id: str, number: int, jpeg: bytes) -> None:
        """Write a job's preview down for those who watch it elsewhere; only the newest is kept."""
        row = {"number": number, "jpeg": jpeg}
        with self.database.write() as connection:
            self._put(connection, previews, {"job_id": job_id, **row}, row)

    @in_thread
    def preview(self, job_id: str) -> tuple[int, bytes] | None:
        """A job's newest preview, with its event's number."""
        with self.database.read() as connection:
            row = connection.execute(select(previews).where(previews.c.job_id == job_id)).first()
        return None if row is None else (row.number, row.jpeg)

    @in_thread
    def forget(self, job_id: str) -> None:
        """Remove a job's preview and the wish for it: it is over."""
        with self.database.write() as connection:
            for table in (previews, watchers):
                connection.execute(delete(table).where(table.c.job_id == job_id))

    def _put(self, connection: Connection, table: Table, row: dict[str, Any], changes: dict[str, Any]) -> None:
        insert = sqlite.insert if self.database.is_sqlite else postgresql.insert
        key = list(table.primary_key.columns)
        connection.execute(insert(table).values(**row).on_conflict_do_update(index_elements=key, set_=changes))


def _models(said: list[Any]) -> dict[str, Capabilities]:
    """What a server says of its models; one that a later release described in words of its own is left out."""
    found = {}
    for name, capabilities in said:
        with suppress(ValueError):
            found[name] = _CAPABILITIES.validate_python(capabilities)
    return found


class RemotePool(ModelPool):
    """The models of other servers, as a server without one sees them. It accepts for them, and generates nothing."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._servers: list[Member] = []

    def see(self, servers: Sequence[Member]) -> None:
        """Who is there now. Calls `on_ready` when the first of them is."""
        was_ready = self.ready
        # A server that has gone is asked last: another one may serve the same name anew by now.
        self._servers = sorted((s for s in servers if s.role != "api"), key=lambda s: not s.alive)
        self._models = {}
        for server in self._servers:
            for name, capabilities in server.models.items():
                self._models.setdefault(name, ServedModel(name, name, last=capabilities))
        if self.ready and not was_ready:
            self.on_ready()

    @property
    def places(self) -> int:
        """Jobs that all of them together work on at a time."""
        return sum(server.places for server in self._servers if server.alive)

    @property
    def ready(self) -> bool:
        """Whether anybody generates, and has said with which models."""
        return any(server.ready and server.models for server in self._servers)

    @property
    def reason(self) -> str:
        """In words, why not."""
        if any(server.alive for server in self._servers):
            return "the workers load their models"
        return "no worker is there; start one with 'cosmorama worker' and the same database"

    def takes(self, name: str) -> bool:
        """Never: others generate."""
        return False

    def _sources(self) -> dict[str, str]:
        return {}


_T = TypeVar("_T")


class Fleet:
    """This server among those that share its store. For one event loop.

    Args:
        store: What they share.
        server: The name of this one.
        settings: What it does, and how many jobs it works on at a time.
        supervisor: Its models; a `RemotePool` is told of the others'.
        channels: Who watches jobs here.
        runner, dispatcher: What runs here, and who is told that the queue changed.
        follow: What happens to a job that runs here, previews too.
    """

    def __init__(
        self,
        store: Store,
        *,
        server: str,
        settings: Settings,
        supervisor: ModelPool,
        channels: Channels,
        runner: Runner,
        dispatcher: Dispatcher,
        follow: Callable[[str], AsyncIterator[JobEvent]],
    ) -> None:
        self.register = Register(store)
        self._store = store
        self._server, self._role, self._places = server, settings.role, settings.places
        self._supervisor, self._channels, self._runner = supervisor, channels, runner
        self._dispatcher, self._follow = dispatcher, follow
        self._models: dict[str, Capabilities] = {}
        self._remembered: dict[str, Capabilities] = {}
        self._relays: dict[str, asyncio.Task[None]] = {}
        self._watching: dict[str, float] = {}

    @property
    def tells(self) -> bool:
        """Whether servers tell each other at once: with Postgres."""
        return not self._store.database.is_sqlite

    async def run(self) -> None:
        """Go on until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._repeat(self._announce))
            if self._role != "api":
                # Apart from the other, since it may wait until a model is loaded.
                tasks.create_task(self._repeat(self._learn))
            if self.tells:
                tasks.create_task(self._listen())

    async def leave(self) -> None:
        """Say good-bye, if anybody hears it."""
        for relay in self._relays.values():
            relay.cancel()
        await asyncio.gather(*self._relays.values(), return_exceptions=True)
        with suppress(StoreUnavailableError):
            await self.register.withdraw(self._server)

    def watch(self, job_id: str) -> None:
        """Somebody here follows a job; if it runs elsewhere, its server is asked to tell of every step."""
        now = time.monotonic()
        if not self.tells or job_id in self._runner.running or self._watching.get(job_id, 0) > now:
            return
        self._watching = {known: until for known, until in self._watching.items() if until > now}
        self._watching[job_id] = now + WATCHED_S / 2
        asyncio.get_running_loop().create_task(_tried(self.register.watch(job_id, self._server)))

    async def start(self) -> None:
        """Take in what is known of this server's models from before they are loaded.

        Raises:
            StoreUnavailableError: the database is away.
        """
        self._remembered = await self.register.remembered()
        self._supervisor.remember(self._remembered)

    async def _repeat(self, turn: Callable[[], Awaitable[None]]) -> None:
        """Take turns several times in a lease; an error is one turn's."""
        while True:
            try:
                await turn()
            except StoreUnavailableError:
                pass  # the heartbeat has said so in the log
            except Exception:
                log.exception("what the servers of this store tell each other failed")
            await asyncio.sleep(min(self._store.lease_s / 4, 2.0))

    async def _announce(self) -> None:
        """Announce this server, see who else is there, and who wants to follow what runs here."""
        await self.register.announce(self._server, self._role, self._supervisor, dict(self._models), self._places)
        if isinstance(self._supervisor, RemotePool):
            self._supervisor.see(await self.register.members())
        if self.tells and (running := list(self._runner.running)):
            for job_id in await self.register.watched(running):
                self._relay(job_id)

    async def _learn(self) -> None:
        """Learn what the models here take, and write it down for the next life of this server."""
        for name in self._supervisor.names:
            with suppress(NotReadyError, ModelNotFoundError):
                if self._supervisor.ready:
                    self._models[name] = await self._supervisor.capabilities_of(name)
        loaded = self._supervisor.loaded()
        news = {source: found for source, found in loaded.items() if self._remembered.get(source) != found}
        if news:
            await self.register.remember(news)
            self._remembered |= news

    async def _listen(self) -> None:
        """Take in what Postgres tells; after a lost connection everything may have changed."""
        import psycopg

        channel = f"cosmorama_{hashlib.md5(self._server.encode(), usedforsecurity=False).hexdigest()}"
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(
                    self._store.database.conninfo, autocommit=True, application_name="cosmorama news"
                ) as connection:
                    await connection.execute("LISTEN cosmorama")
                    await connection.execute(f"LISTEN {channel}")
                    self._dispatcher.wake()
                    async for news in connection.notifies():
                        word, _, job_id = news.payload.partition(" ")
                        await self._heard(word, job_id)
            except psycopg.Error as error:
                log.warning("no news of other servers for now (%s); looking once a second", type(error).__name__)
            await asyncio.sleep(RECONNECT_S)

    async def _heard(self, word: str, job_id: str) -> None:
        match word:
            case "queued":
                self._dispatcher.wake()
                self._channels.touch(job_id)
            case "moved":
                self._channels.touch(job_id)
            case "cancel":
                if job_id in self._runner.running:
                    self._dispatcher.beat_now()
                self._channels.touch(job_id)
            case "watched":
                self._relay(job_id)
            case "preview":
                await self._show(job_id)

    async def _show(self, job_id: str) -> None:
        channel = self._channels.find(job_id)
        if channel is None or not channel.previewing or job_id in self._runner.running:
            return
        found = await _tried(self.register.preview(job_id))
        if found is not None:
            number, jpeg = found
            channel.preview = JobEvent(number, "preview", preview=jpeg)
            channel.touch()

    def _relay(self, job_id: str) -> None:
        """Write a job's steps and previews down as they come, while somebody wants to follow it elsewhere."""
        if job_id in self._runner.running and job_id not in self._relays:
            task = asyncio.get_running_loop().create_task(self._relayed(job_id))
            self._relays[job_id] = task
            task.add_done_callback(lambda _: self._relays.pop(job_id, None))

    async def _relayed(self, job_id: str) -> None:
        asked_at = time.monotonic()
        async for news in self._follow(job_id):
            here = self._runner.running.get(job_id)
            if here is None:
                break
            try:
                if news.preview is not None:
                    await self.register.show(job_id, news.number, news.preview)
                else:
                    await self._store.advance({here.claim: here.job.progress})
                if time.monotonic() - asked_at > WATCHED_S / 2:
                    asked_at = time.monotonic()
                    if not await self.register.watched([job_id]):
                        return
            except StoreUnavailableError:
                return
            await asyncio.sleep(RELAY_EVERY_S)
        await _tried(self.register.forget(job_id))


async def _tried(work: Coroutine[Any, Any, _T]) -> _T | None:
    with suppress(StoreUnavailableError):
        return await work
    return None
