"""The HTTP server around the application, and how it ends: SIGTERM lets what runs finish, anything more ends it now."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import signal
import socket
import sys
from contextlib import suppress
from types import FrameType
from typing import ClassVar

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from cosmorama import logs
from cosmorama.api.app import create_app
from cosmorama.api.errors import envelope
from cosmorama.api.services import Services
from cosmorama.errors import CosmoramaError
from cosmorama.settings import Settings, SettingsError, notices

log = logging.getLogger(__name__)

HEADERS_S = 20.0
"""Longest time that a client may take for the headers of a request."""
MAX_FILES = 1 << 16
"""Connections and files that a server may have open, where the system's own limit is not lower."""
STARTUP_FAILED = 3
"""Exit status of a server that could not start, as uvicorn has it."""


class BoundedHeaders(H11Protocol):
    """HTTP/1.1 whose clients have `HEADERS_S` for the headers of a request, however slowly they send them, and are told
    in the envelope of all errors what is wrong with it."""

    _deadline: asyncio.TimerHandle | None = None
    _waiting: ClassVar[dict[BoundedHeaders, None]] = {}
    """The connections whose headers are not there yet, the oldest first."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._received()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came; while it is less than a request's headers, the time goes on."""
        if self.conn.their_state is h11.IDLE and self._deadline is None:
            self._expect()
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._received()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or more of it than there may be: as all errors are answered, and with the reason."""
        answer = envelope(400, "invalid_request_error", f"this is no valid HTTP request: {sys.exception()}")
        head = h11.Response(status_code=400, headers=[*answer.raw_headers, (b"connection", b"close")])
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # otherwise an answer is under way already
            for event in (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
        self.transport.close()

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
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
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
    _check_address(settings.host, settings.port)
    logs.configure(settings, "server")
    for level, text in notices(settings, os.environ):
        log.log(level, "%s", text)
    try:
        app = create_app(settings)
    except CosmoramaError as error:
        log.error("the server cannot start: %s", error)
        sys.exit(STARTUP_FAILED)
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 < files < MAX_FILES:  # the usual 1024 are fewer than may follow jobs
        resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_FILES if most < 0 else min(MAX_FILES, most), most))
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        # The other parser that is used where it is installed lets headers grow without limit.
        http=BoundedHeaders,
        ws="none",  # nothing here speaks it, and its library logs every header, keys too
        log_config=None,
        access_log=False,  # health probes would drown everything else
        timeout_graceful_shutdown=5,  # what is in flight now goes back to the queue, or its client has left
    )
    server = DrainingServer(config, app, settings.drain_s)
    with suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        sys.exit(STARTUP_FAILED)


def _check_address(host: str, port: int) -> None:
    """Find out before a model is loaded for nothing."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        why = {
            errno.EADDRINUSE: "another program listens there; choose another port with --port or COSMORAMA_PORT",
            errno.EACCES: "this user may not; ports below 1024 are the system's",
        }.get(error.errno or 0, error.strerror or str(error))
        raise SettingsError(f"port {port} of {host} cannot be listened on: {why}") from None
