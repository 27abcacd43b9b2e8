"""The HTTP server around the application, and how it ends: SIGTERM lets what runs finish, anything more ends it now."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from contextlib import suppress
from types import FrameType

import uvicorn
from fastapi import FastAPI

from cosmorama import logs
from cosmorama.api.app import create_app
from cosmorama.api.services import Services
from cosmorama.settings import Settings
from cosmorama.upstream import warn_of_settings_without_effect

log = logging.getLogger(__name__)

STARTUP_FAILED = 3
"""Exit status of a server that could not start, as uvicorn has it."""


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
    """Serve until a signal ends it."""
    logs.configure(settings, "server")
    warn_of_settings_without_effect(os.environ)
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        # The other parser that is used where it is installed lets headers grow without limit.
        http="h11",
        log_config=None,
        access_log=False,  # health probes would drown everything else
        timeout_graceful_shutdown=5,  # what is in flight now goes back to the queue, or its client has left
    )
    server = DrainingServer(config, app, settings.drain_s)
    with suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        sys.exit(STARTUP_FAILED)
