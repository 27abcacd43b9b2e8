"""What a client is told when a generation takes too long, or when there is a bug."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx

from cosmorama.api.app import create_app
from cosmorama.api.metrics import Metrics
from cosmorama.api.services import Services
from cosmorama.engine.outcome import Outcome
from cosmorama.engine.supervisor import Supervisor
from cosmorama.progress import ProgressCallback
from cosmorama.request import GenerationRequest
from cosmorama.settings import Settings
from tests.api.conftest import BODY


class Endless(Supervisor):
    """Never finishes; notes that it was cancelled."""

    cancelled = False

    async def generate(
        self, request: GenerationRequest, *, output: Path, on_progress: ProgressCallback | None = None
    ) -> Outcome:
        output.write_bytes(b"half a clip")
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled = True
        raise AssertionError


class Broken(Supervisor):
    """Has a bug."""

    async def generate(
        self, request: GenerationRequest, *, output: Path, on_progress: ProgressCallback | None = None
    ) -> Outcome:
        raise ZeroDivisionError("secret of the inside")


def ask(supervisor: Supervisor, settings: Settings, folder: Path) -> httpx.Response:
    async def post() -> httpx.Response:
        app = create_app(settings)
        app.state.services = Services(settings, supervisor, Metrics(supervisor), folder)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post("/v1/infer", json=BODY)

    return asyncio.run(post())


def test_generation_that_takes_too_long_is_cancelled(tmp_path: Path) -> None:
    settings = Settings(request_timeout_s=0.05)
    supervisor = Endless(settings)
    answer = ask(supervisor, settings, tmp_path)
    assert answer.status_code == 504
    assert answer.json()["error"]["type"] == "timeout_error"
    assert "0.05 s" in answer.json()["error"]["message"]
    assert supervisor.cancelled
    assert list(tmp_path.iterdir()) == []


def test_bug_is_a_500_that_tells_nothing_of_the_inside(tmp_path: Path) -> None:
    settings = Settings()
    answer = ask(Broken(settings), settings, tmp_path)
    assert answer.status_code == 500
    assert answer.json()["error"].keys() == {"message", "type", "code"}
    assert "secret" not in answer.text
    assert list(tmp_path.iterdir()) == []
