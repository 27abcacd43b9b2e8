"""The server application, put together; and the HTTP server around it.

SIGTERM lets what runs finish, anything more ends it now.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import gc
import logging
import os
import resource
import signal
import socket
import sys
import termios
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from types import FrameType
from typing import Any, ClassVar

import h11
import uvicorn
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from cosmorama import __version__, logs
from cosmorama.api import compatible, infer, info, videos
from cosmorama.api import jobs as jobs_routes
from cosmorama.api.body import body_limit
from cosmorama.api.errors import add_error_handlers, envelope
from cosmorama.api.metrics import Metrics
from cosmorama.api.middleware import (
    QUIET_PATHS,
    CountInference,
    LimitBodies,
    LocalOnly,
    RequireKey,
    TakeTurns,
    Trace,
    named_keys,
)
from cosmorama.api.openapi import complete
from cosmorama.api.services import Services
from cosmorama.engine.pool import ModelPool
from cosmorama.engine.supervisor import Supervisor
from cosmorama.errors import CosmoramaError, StoreUnavailableError
from cosmorama.jobs.channel import Observers
from cosmorama.jobs.fleet import RemotePool
from cosmorama.jobs.service import Jobs
from cosmorama.settings import Settings, SettingsError, notices
from cosmorama.studio import mount
from cosmorama.telemetry import Tracing, requests_telemetry, tracer_provider
from cosmorama.text.local import with_local_chats

log = logging.getLogger(__name__)

BODIES_AT_ONCE = 4
"""Bodies of the largest size that are held at a time; smaller ones count for what they are."""
HEADERS_S = 20.0
"""Longest time that a client may take for the headers of a request."""
READ_S = 60.0
"""Longest time in which a client may take nothing of its answer, however little it takes otherwise."""
FREE_PIECES, PIECE_BYTES = 128, 256
"""Pieces of a chunked body that may be of any size; of more, what they must have on average."""
ACCEPTED_AT_ONCE = 16
"""Connections that one turn of the event loop accepts. By itself it accepts one of each socket, and who is new would
wait for as many turns as others connect again and again."""
MAX_FILES = 1 << 16
"""Connections and files that a server may have open, where the system's own limit is not lower."""
SWITCH_S = 0.001
"""For how long a thread that computes keeps the others of this process waiting; Python's own 5 ms add up."""
STARTUP_FAILED = 3
"""Exit status of a server that could not start, as uvicorn has it."""


def create_app(settings: Settings | None = None) -> FastAPI:
    """The ASGI application. Its lifespan starts and stops the worker process that holds the model.

    Args:
        settings: None reads them from the environment.

    Raises:
        ModelNotFoundError: a checkpoint that is to write texts cannot be started.
    """
    settings, chats = with_local_chats(settings or Settings())
    keys = named_keys(settings.api_keys)
    supervisor = pool_of(settings)
    metrics = Metrics(supervisor)
    tracing = Tracing(tracer_provider()) if settings.otel else None

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        observers = Observers(metrics) if tracing is None else Observers(metrics, tracing)
        with _told(app):
            jobs = Jobs(settings, supervisor, observer=observers)
        metrics.queued = lambda: jobs.queued
        app.state.services = services = Services(settings, supervisor, metrics, jobs)
        app.state.writers = writers = infer.Writers(settings)
        try:
            with _told(app):
                await jobs.start()
            supervisor.on_ready = _announced(supervisor, settings)
            await supervisor.start()
            yield
        finally:
            writers.close()
            services.close()
            for chat in chats:
                chat.close()
            await jobs.stop()
            await supervisor.stop()
            jobs.close()
            if tracing is not None:
                tracing.close()

    # Its documentation page brings its own scripts instead of loading them from elsewhere.
    app = FastAPIOffline(
        title="Cosmorama",
        summary="An open, self-hosted inference server for world foundation models.",
        version=__version__,
        lifespan=lifespan,
        redoc_url=None,
        telemetry=requests_telemetry(None if tracing is None else tracing.provider, QUIET_PATHS),
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    # They are asked in this order which of them has a path.
    parts = () if settings.role == "worker" else (infer, compatible, jobs_routes, videos, info)
    for router in (info.health_router, info.metrics_router, *(part.router for part in parts)):
        app.include_router(router)
    if settings.role != "worker":  # whose answers the page would need
        mount(app, settings.studio_servers)
    add_error_handlers(app)
    # The last one added is the outermost.
    largest = body_limit(settings.max_input_bytes)
    app.add_middleware(LimitBodies, most_bytes=BODIES_AT_ONCE * largest, largest_bytes=largest)
    app.add_middleware(CountInference, metrics=metrics)
    app.add_middleware(TakeTurns)
    if settings.api_keys:
        app.add_middleware(RequireKey, keys=keys)
    else:
        hosts = (*settings.allowed_hosts, settings.host)
        app.add_middleware(LocalOnly, hosts=hosts, origins=settings.cors_origins)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["*"],
        )
    app.add_middleware(Trace)
    app.openapi = complete(app.openapi, keys=bool(settings.api_keys))  # type: ignore[method-assign]
    return app


@contextmanager
def _told(app: FastAPI) -> Iterator[None]:
    """Note why the server cannot start, where an operator can mend it: `_in_a_sentence` tells of that alone."""
    try:
        yield
    except (CosmoramaError, OSError) as error:
        app.state.cannot_start = error.logged if isinstance(error, StoreUnavailableError) else str(error)
        raise


def _in_a_sentence(app: FastAPI) -> ASGIApp:
    """The application; of a start that fails for a known reason the log has that reason instead of a traceback."""

    async def told(scope: Scope, receive: Receive, send: Send) -> None:
        async def shortened(message: Message) -> None:
            why = getattr(app.state, "cannot_start", None)
            if message["type"] == "lifespan.startup.failed" and why is not None:
                message = {**message, "message": f"the server cannot start: {why}"}
            await send(message)

        await app(scope, receive, shortened if scope["type"] == "lifespan" else send)

    return told


def pool_of(settings: Settings) -> ModelPool:
    """Who generates: a worker of this server's for each of its models, or other servers."""
    if settings.role == "api":
        return RemotePool(settings)
    if settings.role == "fleet":
        try:
            from cosmorama.engine.cluster import Replicas
        except ModuleNotFoundError as error:
            raise CosmoramaError(f"{error.name} is not installed: pip install '.[ray]'") from None
        return ModelPool(settings, Replicas)
    return ModelPool(settings, Supervisor)


def _announced(supervisor: ModelPool, settings: Settings) -> Callable[[], None]:
    """What is to be called when a model is loaded: what was to be called until now, and a line for people."""
    call = supervisor.on_ready
    host = "localhost" if settings.host in ("0.0.0.0", "::", "") else settings.host  # noqa: S104  # compared, not bound

    def ready() -> None:
        call()
        log.info("model %s loaded, open http://%s:%d", ", ".join(supervisor.names), host, settings.port)

    return ready


class _Bounded(h11.Connection):
    """HTTP/1.1 whose bodies come in no more pieces than a program sends: each piece, however small, takes the event
    loop some hundredths of a millisecond, and what the system gives at once may hold forty thousand."""

    _pieces = _bytes = 0

    def next_event(self) -> Any:
        """The next part of a request.

        Raises:
            h11.RemoteProtocolError: it is none, or one piece too many.
        """
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._pieces = self._bytes = 0
        elif isinstance(event, h11.Data):
            self._pieces += 1
            self._bytes += len(event.data)
            if self._pieces > FREE_PIECES and self._bytes < self._pieces * PIECE_BYTES:
                said = f"{self._pieces} pieces of a body with {self._bytes} bytes in all"
                raise h11.RemoteProtocolError(f"{said}; send at least {PIECE_BYTES} at a time, or a Content-Length")
        return event


class BoundedConnection(H11Protocol):
    """HTTP/1.1 whose clients have `HEADERS_S` for headers, however slowly they send them, and for the rest of a request
    that has its answer; have to read what they asked for; and are told in the usual envelope what is wrong with it."""

    _deadline: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None
    _waiting: ClassVar[dict[BoundedConnection, None]] = {}
    """The connections whose headers are not there yet, the oldest first."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.conn = _Bounded(h11.SERVER)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._expect()
        self._look((0, b""))

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._received()
        if self._reading is not None:
            self._reading.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came; while it is less than a request's headers, or a body that was answered, the time goes on."""
        if self._owes and self._deadline is None:
            self._expect()
        super().data_received(data)
        if not self._owes:
            self._received()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or more of it than there may be: as all errors are answered, and with the reason."""
        answer = envelope(400, "invalid_request_error", f"this is no valid HTTP request: {sys.exception()}")
        head = h11.Response(status_code=400, headers=[*answer.raw_headers, (b"connection", b"close")])
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # otherwise an answer is under way already
            for event in (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
        self.transport.close()

    def _look(self, before: tuple[int, bytes]) -> None:
        """End the connection if its client took nothing since the last look of what waits in here and in the system."""
        waits = bytes(4)
        with suppress(OSError):  # of a socket, not every system tells it
            waits = fcntl.ioctl(self.transport.get_extra_info("socket"), termios.TIOCOUTQ, waits)
        left = self.transport.get_write_buffer_size(), waits
        if left == before and left != (0, bytes(4)):
            self.transport.abort()
        else:
            self._reading = self.loop.call_later(READ_S / 2, self._look, left)

    @property
    def _owes(self) -> bool:
        """Whether what is to come is waited for by nobody in here: headers, or the rest of a body that was answered."""
        answered = self.conn.our_state in (h11.DONE, h11.MUST_CLOSE)
        return self.conn.their_state is h11.IDLE or (self.conn.their_state is h11.SEND_BODY and answered)

    def _expect(self) -> None:
        self._deadline = self.loop.call_later(HEADERS_S, self._late)
        self._waiting[self] = None
        if len(self._waiting) > resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2:
            next(iter(self._waiting))._late()  # or who has nothing to say would keep out who has

    def _received(self) -> None:
        self._waiting.pop(self, None)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        self._received()
        if self._owes and not self.transport.is_closing():
            self.transport.close()


class DrainingServer(uvicorn.Server):
    """On the first SIGTERM it goes on answering, refuses new work, and ends when what runs is finished."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, drain_s: float) -> None:
        super().__init__(config)
        self._app = app
        self._drain_s = drain_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until told to end."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by the interpreter when a signal has come."""
        if sig == signal.SIGTERM and self.started and self._draining is None and self._loop is not None:
            self._loop.call_soon_threadsafe(self._begin)
        else:
            super().handle_exit(sig, frame)

    def _begin(self) -> None:
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        services: Services = self._app.state.services
        log.info("told to end; what runs may go on for %g s", self._drain_s)
        try:
            left = await services.jobs.drain(self._drain_s)
            log.info("ending; %d jobs stay in the queue", left)
        finally:
            self.should_exit = True


def serve(settings: Settings) -> None:
    """Serve until a signal ends it.

    Raises:
        SettingsError: the address cannot be listened on.
    """
    listening = _listening(settings.host, settings.port)
    logs.configure(settings, "server")
    for level, text in notices(settings, os.environ):
        log.log(level, "%s", text)
    try:
        app = create_app(settings)
    except CosmoramaError as error:
        log.error("the server cannot start: %s", error)
        for each in listening:
            each.close()
        sys.exit(STARTUP_FAILED)
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 < files < MAX_FILES:  # the usual 1024 are fewer than may follow jobs
        resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_FILES if most < 0 else min(MAX_FILES, most), most))
    # What stays until the end is not looked through again and again for what can go, while everybody waits.
    gc.collect()
    gc.freeze()
    # Beside a thread that computes (a large body, a page), each step of the event loop waits for so long.
    sys.setswitchinterval(SWITCH_S)
    config = uvicorn.Config(
        _in_a_sentence(app),
        host=settings.host,
        port=settings.port,
        # The other parser that is used where it is installed lets headers grow without limit.
        http=BoundedConnection,
        ws="none",  # nothing here speaks it, and its library logs every header, keys too
        log_config=None,
        access_log=False,  # health probes would drown everything else
        timeout_graceful_shutdown=5,  # what is in flight now goes back to the queue, or its client has left
    )
    server = DrainingServer(config, app, settings.drain_s)
    with suppress(KeyboardInterrupt):
        server.run([*listening, *(each.dup() for each in listening for _ in range(ACCEPTED_AT_ONCE - 1))])
    if not server.started:
        sys.exit(STARTUP_FAILED)


def _listening(host: str, port: int) -> list[socket.socket]:
    """A socket for each address of a host: it is found out before a model is loaded for nothing.

    Raises:
        SettingsError: one of them cannot be listened on.
    """
    found = list[socket.socket]()
    try:
        for family, _, _, _, address in dict.fromkeys(
            socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        ):
            found.append(socket.create_server(address, family=family))
    except OSError as error:
        why = {
            errno.EADDRINUSE: "another program listens there; choose another port with --port or COSMORAMA_PORT",
            errno.EACCES: "this user may not; ports below 1024 are the system's",
        }.get(error.errno or 0, error.strerror or str(error))
        raise SettingsError(f"port {port} of {host} cannot be listened on: {why}") from None
    return found
