"""The worker process as its supervisor meets it, with the real model."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from cosmorama.engine.outcome import Outcome
from cosmorama.engine.supervisor import Supervisor
from cosmorama.errors import InvalidRequestError, MediaError, NotReadyError
from cosmorama.progress import Progress
from cosmorama.request import ResolvedRequest
from cosmorama.settings import Settings

SMALL = ResolvedRequest(prompt="a red ball rolls to the right", seed=1, steps=2, width=960, height=704, frames=1)
LONG = replace(SMALL, steps=50, frames=41)
SETTINGS = Settings(max_active=1, max_queue=1, log_level="critical")


@asynccontextmanager
async def running(settings: Settings = SETTINGS) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(settings)
    await supervisor.start()
    try:
        await until(lambda: supervisor.ready)
        yield supervisor
    finally:
        await supervisor.stop()


async def until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(120):
            await test()

    asyncio.run(bounded())


def test_one_life(tmp_path: Path) -> None:
    """Progress, errors that keep their shape, cancelling and the end; one start for all."""

    async def life() -> None:
        async with running() as supervisor:
            await makes_clip_and_tells_progress(supervisor, tmp_path)
            await errors_keep_their_shape(supervisor, tmp_path)
            await cancelling_leaves_no_file(supervisor, tmp_path)
            pid = supervisor.worker_pid
        assert pid is not None
        assert not Path(f"/proc/{pid}").exists()
        with pytest.raises(NotReadyError, match="stopping"):
            await supervisor.generate(SMALL, output=tmp_path / "late")

    run(life)


async def makes_clip_and_tells_progress(supervisor: Supervisor, folder: Path) -> None:
    seen: list[Progress] = []
    outcome = await supervisor.generate(SMALL, output=folder / "clip", on_progress=seen.append)
    assert isinstance(outcome, Outcome)
    assert outcome.path.stat().st_size > 0
    assert outcome.seed == 1
    assert [p.step for p in seen if p.stage == "denoise"][-2:] == [1, 2]
    assert seen[-1].stage == "done"


async def errors_keep_their_shape(supervisor: Supervisor, folder: Path) -> None:
    with pytest.raises(MediaError) as media:
        await supervisor.generate(replace(SMALL, image=b"no picture"), output=folder / "bad")
    assert media.value.field == "image"
    assert media.value.status == 422
    with pytest.raises(MediaError) as local_file:
        await supervisor.generate(replace(SMALL, image=Path("/etc/hostname")), output=folder / "bad")
    assert "not allowed" in str(local_file.value)
    with pytest.raises(InvalidRequestError) as invalid:
        await supervisor.generate(replace(SMALL, steps=0), output=folder / "bad")
    assert "num_steps" in str(invalid.value.renamed({"steps": "num_steps"}))


async def cancelling_leaves_no_file(supervisor: Supervisor, folder: Path) -> None:
    task = asyncio.create_task(supervisor.generate(LONG, output=folder / "cancelled"))
    await until(lambda: supervisor.active == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: supervisor.active == 0, timeout_s=60)
    assert [path.name for path in folder.iterdir()] == ["clip"]


def test_worker_follows_a_server_that_is_killed() -> None:
    program = (
        "import asyncio, os, signal\n"
        "from cosmorama.engine.supervisor import Supervisor\n"
        "from cosmorama.settings import Settings\n"
        "async def main():\n"
        "    supervisor = Supervisor(Settings(log_level='critical'))\n"
        "    await supervisor.start()\n"
        "    while not supervisor.ready: await asyncio.sleep(0.01)\n"
        "    print(supervisor.worker_pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "if __name__ == '__main__': asyncio.run(main())\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240, check=False)
    worker = Path(f"/proc/{int(ended.stdout)}")
    assert ended.returncode == -signal.SIGKILL

    async def follow() -> None:
        await until(lambda: not worker.exists() or "Z" in (worker / "stat").read_text().split()[2], timeout_s=60)

    run(follow)
