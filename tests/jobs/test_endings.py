"""Jobs that end while a real worker process is at them: the worker lives, neighbours go on, and nothing is left."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from cosmorama.api.app import create_app
from cosmorama.api.services import Services
from cosmorama.settings import Settings

CONTAINERS = ("mp4", "webm", "gif", "png")
LONG: dict[str, Any] = {
    "dialect": "cosmorama",
    "prompt": "a red ball",
    "prompt_upsampling": False,
    "seed": 1,
    "steps": 1,
    "width": 960,
    "height": 704,
    "frames": 65,
}
"""Seconds of decoding and writing."""
SHORT = LONG | {"frames": 33}
NEIGHBOUR = LONG | {"frames": 9, "steps": 40}


class Server:
    """A server in this process with a real worker, and a client of it."""

    def __init__(self, client: httpx.AsyncClient, services: Services, state: Path) -> None:
        self.client = client
        self.services = services
        self.state = state

    async def submit(self, container: str = "mp4", body: dict[str, Any] = LONG, **headers: str) -> str:
        answer = await self.client.post("/v1/jobs", json=body | {"output": {"container": container}}, headers=headers)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    async def get(self, job_id: str) -> dict[str, Any]:
        job: dict[str, Any] = (await self.client.get(f"/v1/jobs/{job_id}")).json()
        return job

    async def until(self, job_id: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        while not condition(job := await self.get(job_id)):
            assert job["state"] in ("queued", "running"), job
            await asyncio.sleep(0.01)
        return job

    async def decoding(self, dialect: str) -> str:
        """The id of a job in that wire format, once it is being decoded and written."""
        while True:
            for job in (await self.client.get("/v1/jobs")).json()["data"]:
                at_it = job["state"] == "running" and job["stage"] == "decode" and job["step"]
                if job["dialect"] == dialect and at_it:
                    return str(job["id"])
            await asyncio.sleep(0.01)

    async def over(self, job_id: str) -> dict[str, Any]:
        while (job := await self.get(job_id))["state"] in ("queued", "running"):
            await asyncio.sleep(0.02)
        return job

    async def nothing_is_left(self) -> None:
        while list((self.state / "scratch").rglob("*clip*")):
            await asyncio.sleep(0.02)


def serve(tiny: Path, state: Path, test: Callable[[Server], Coroutine[Any, Any, None]], **settings: Any) -> None:
    """Run a test on a server that is ready, and check that its first worker lived through it."""

    async def life() -> None:
        app = create_app(Settings(model=str(tiny), state_dir=state, threads=1, max_queue=100, **settings))
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=5))
        task = asyncio.create_task(server.serve())
        try:
            while not server.started:
                assert not task.done()
                await asyncio.sleep(0.01)
            port = server.servers[0].sockets[0].getsockname()[1]
            services: Services = app.state.services
            async with (
                asyncio.timeout(150),
                httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=120) as client,
            ):
                while not services.supervisor.ready:
                    await asyncio.sleep(0.05)
                worker = services.supervisor.worker_pid
                await test(Server(client, services, state))
                assert services.supervisor.worker_pid == worker
                assert services.supervisor.restarts == 0
        finally:
            server.should_exit = True
            await task

    asyncio.run(life())


async def cancel(server: Server, container: str) -> None:
    job = await server.submit(container)
    await server.until(job, lambda job: job["stage"] == "decode" and job["step"] > 0)
    assert (await server.client.post(f"/v1/jobs/{job}/cancel")).json()["state"] == "cancelled"


async def hang_up(server: Server, container: str) -> None:
    waiting = asyncio.create_task(server.client.post("/v1/infer", json=_predict1(container)))
    job = await server.decoding("predict1")
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert (await server.over(job))["state"] == "cancelled"


async def deadline(server: Server, container: str) -> None:
    """How long a clip takes is found by making one; the next one's deadline is in the middle of its writing."""
    job = await server.submit(container, SHORT)
    await server.until(job, lambda job: job["stage"] == "decode" and job["step"] > 0)
    begun = time.monotonic()
    created = (await server.over(job))["created_at"]
    left_s = time.time() - created - (time.monotonic() - begun) / 2
    for _ in range(10):
        job = await server.submit(container, SHORT, **{"X-Cosmorama-Deadline-S": str(left_s)})
        ended = await server.over(job)
        if ended["stage"] == "decode":
            assert ended["state"] == "failed"
            assert ended["error"]["code"] == 504
            return
        # The machine has become slower or faster.
        left_s *= 0.8 if ended["state"] == "succeeded" else 1.3
    raise AssertionError("no deadline passed while a clip was written")


def _predict1(container: str) -> dict[str, Any]:
    video = {"width": 960, "height": 704, "frames_count": 65, "frames_per_sec": 24}
    return {"prompt": "a ball", "seed": 1, "steps": 1, "video_params": video, "output": {"container": container}}


@pytest.mark.parametrize("end", [cancel, hang_up, deadline])
def test_whoever_ends_a_job_while_it_is_written_ends_that_job_alone(
    tiny_checkpoint: Path, tmp_path: Path, end: Callable[[Server, str], Coroutine[Any, Any, None]]
) -> None:
    async def test(server: Server) -> None:
        neighbour = await server.submit(body=NEIGHBOUR)
        for container in CONTAINERS:
            await end(server, container)
        job = await server.over(neighbour)
        assert job["state"] == "succeeded", job
        assert job["attempts"] == 1
        await server.nothing_is_left()

    serve(tiny_checkpoint, tmp_path, test)


def test_a_full_disk_ends_the_job_that_met_it_and_tells_no_path(tiny_checkpoint: Path, tmp_path: Path) -> None:
    async def test(server: Server) -> None:
        worker = server.services.supervisor.worker_pid
        assert worker is not None
        # No file may become larger, which looks to a program as a full disk does.
        _, most = resource.prlimit(worker, resource.RLIMIT_FSIZE)
        resource.prlimit(worker, resource.RLIMIT_FSIZE, (40_000, most))
        for container in CONTAINERS:
            job = await server.over(await server.submit(container))
            assert job["state"] == "failed", job
            assert job["error"]["code"] == 507, job
            assert "no room" in job["error"]["message"]
            assert str(tmp_path) not in str(job)
        resource.prlimit(worker, resource.RLIMIT_FSIZE, (most, most))
        job = await server.over(await server.submit(body=LONG | {"frames": 9}))
        assert job["state"] == "succeeded", job
        await server.nothing_is_left()

    serve(tiny_checkpoint, tmp_path, test)
