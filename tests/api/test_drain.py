"""The end of a server: what runs is finished, what waits stays, and nothing new comes in."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import httpx
import psutil
import pytest

import cosmorama
from cosmorama.errors import NotReadyError
from cosmorama.jobs.service import Jobs
from cosmorama.request import GenerationRequest
from cosmorama.settings import Settings
from tests.jobs.fake import REQUEST, FakeSupervisor, pool_of
from tests.serving import Running, running_server

SHORT = GenerationRequest(prompt="a red ball", width=960, height=704, frames=25, steps=20, seed=1)
LONG = GenerationRequest(prompt="a red ball", width=960, height=704, frames=121, steps=50, seed=1)
ACTIVE = "cosmorama_active_generations"


def wait_until_drained(server: Running, client: httpx.Client) -> None:
    deadline = time.monotonic() + 120
    while client.get("/v1/health/ready").status_code == 200:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_sigterm_lets_what_runs_finish_and_keeps_what_waits(tiny_checkpoint: Path, tmp_path: Path) -> None:
    one = {"COSMORAMA_MAX_ACTIVE": "1", "COSMORAMA_DRAIN_S": "600"}
    with (
        running_server(tiny_checkpoint, tmp_path, **one) as server,
        cosmorama.Client(server.url) as client,
        httpx.Client(base_url=server.url, timeout=60) as http,
    ):
        running = client.submit(SHORT)
        server.wait_until(ACTIVE, 1)
        # Longer than what runs, so that it is not taken in beside it.
        waiting = client.submit(LONG)
        # As supervisors do it that end a whole group.
        for process in (*psutil.Process(server.process.pid).children(recursive=True), server.process):
            process.send_signal(signal.SIGTERM)
        wait_until_drained(server, http)
        assert http.get("/v1/health/live").status_code == 200
        refused = http.post("/v1/infer", json={"prompt": "a ball"})
        assert refused.status_code == 503
        assert refused.json()["error"]["type"] == "not_ready"
        assert int(refused.headers["retry-after"]) >= 1
        assert running.wait().state == "succeeded"
        assert server.process.wait(60) == 0
        said = server.log.read_text()
        assert "1 jobs stay in the queue" in said
        assert "died" not in said
        assert "ERROR" not in said
    with running_server(tiny_checkpoint, tmp_path, **one) as server, cosmorama.Client(server.url) as client:
        assert client.job(running.id).status.state == "succeeded"
        assert len(client.job(running.id).clip().data) > 0
        # What waited is begun now; a second signal does not wait for it.
        server.wait_until(ACTIVE, 1)
        assert client.job(waiting.id).status.state == "running"
        server.process.send_signal(signal.SIGTERM)
        with httpx.Client(base_url=server.url, timeout=60) as http:
            wait_until_drained(server, http)
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(60)


def test_the_wait_for_what_runs_has_a_limit(tmp_path: Path) -> None:
    async def main() -> None:
        settings = Settings(state_dir=tmp_path, max_active=1)
        supervisor = FakeSupervisor(settings)
        supervisor.gate.clear()
        jobs = Jobs(settings, pool_of(supervisor))
        await jobs.start()
        try:
            first, second = [await jobs.submit(REQUEST, dialect="predict1") for _ in range(2)]
            while not supervisor.started:
                await asyncio.sleep(0.01)
            assert await jobs.drain(0.1) == 2
            assert jobs.draining
            with pytest.raises(NotReadyError):
                await jobs.submit(REQUEST, dialect="predict1")
            supervisor.gate.set()
            assert (await jobs.wait(first.id, timeout_s=30)).state == "succeeded"
            assert await jobs.drain(30) == 1
            assert (await jobs.get(second.id)).state == "queued"
        finally:
            await jobs.stop()
            jobs.close()

    asyncio.run(main())
