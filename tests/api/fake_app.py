"""The server over real HTTP around a supervisor that makes clips in milliseconds, all in the test's own event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from cosmorama.api import app as application
from cosmorama.api.services import Services
from cosmorama.jobs.service import Jobs
from cosmorama.settings import Settings
from tests.jobs.fake import FakeSupervisor


@dataclass(frozen=True, slots=True)
class Fake:
    """A running server: a client of it, and its insides."""

    client: httpx.AsyncClient
    supervisor: FakeSupervisor
    jobs: Jobs


@asynccontextmanager
async def serving(folder: Path, **settings: Any) -> AsyncIterator[Fake]:
    """A server with its state in `folder`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(application, "Supervisor", FakeSupervisor)
        app = application.create_app(Settings(state_dir=folder, lease_s=1, **settings))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=5))
    task = asyncio.create_task(server.serve())
    try:
        while not server.started:
            assert not task.done(), "the server did not start"
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        services: Services = app.state.services
        (supervisor,) = services.supervisor.workers
        assert isinstance(supervisor, FakeSupervisor)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield Fake(client, supervisor, services.jobs)
    finally:
        server.should_exit = True
        await task


def run(test: Callable[[], Awaitable[None]], limit_s: float = 240) -> None:
    """Run an asynchronous test."""

    async def bounded() -> None:
        async with asyncio.timeout(limit_s):
            await test()

    asyncio.run(bounded())


def clips(folder: Path) -> list[Path]:
    """What is on the disk of clips, finished or not."""
    return [path for path in folder.rglob("*clip*") if path.is_file()]
