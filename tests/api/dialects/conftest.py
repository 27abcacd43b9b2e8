"""A server over real HTTP whose model is a painter: gradients instead of sampling, everything else as it is.

The worker process and its model are what other tests are about; here they would only cost time.
"""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image

from cosmorama.api import app as application
from cosmorama.engine.outcome import Outcome
from cosmorama.engine.supervisor import Supervisor
from cosmorama.media.read import resampled
from cosmorama.media.write import VideoWriter
from cosmorama.progress import Progress, ProgressCallback
from cosmorama.request import CONTROL_KINDS, MODES, ActionDomain, Capabilities, GenerationRequest, Range, Size
from cosmorama.resolve import resolve
from cosmorama.settings import Settings

PAINTER = Capabilities(
    model="painter",
    modes=(*MODES, "transfer", "forward_dynamics", "inverse_dynamics", "policy"),
    sizes=(Size(64, 64), Size(96, 64), Size(64, 96), Size(128, 72), Size(1280, 704)),
    conditioning_frames=(9, 1),
    steps=Range(1, 100),
    guidance_scale=Range(0, 20),
    controls=CONTROL_KINDS,
    action_domains=(ActionDomain(1, "av", 9), ActionDomain(8, "droid_lerobot", 10)),
)
SLOW_SEED = 777
"""A request with this seed takes a second, so that it can be seen while it is made."""


class Painter(Supervisor):
    """Makes every request at once, and tells of its progress like the real one."""

    def make(self, request: GenerationRequest, path: Path) -> None:
        paint(request, path, lambda: self.ready)

    async def start(self) -> None:
        self.capabilities, self.ready, self.reason = PAINTER, True, "ready"
        self.on_ready()

    async def stop(self) -> None:
        self.ready = False

    async def generate(
        self, request: GenerationRequest, *, output: Path, on_progress: ProgressCallback | None = None, **_: Any
    ) -> Outcome:
        request = resolve(request, PAINTER)
        report = on_progress or (lambda progress: None)
        for step in range(5):
            report(Progress("denoise", step, 4))
            if request.seed == SLOW_SEED:
                await asyncio.sleep(0.25)
        await asyncio.to_thread(self.make, request, output)
        report(Progress("done"))
        assert request.seed is not None
        result = request.result
        action = None
        if request.action is not None and request.mode != "forward_dynamics":
            action = ((0.5,) * 9,) * request.action.steps
        return Outcome(
            output, request.seed, request.prompt or "a picture", result.width, result.height, result.frames,
            result.fps, {"denoise": 0.1}, action, warnings=request.warnings,
        )  # fmt: skip


class Sketcher(Painter):
    """Writes a few bytes, for tests that ask for thousands of clips and look at none."""

    def make(self, request: GenerationRequest, path: Path) -> None:
        path.write_bytes(b"a sketch")


def paint(request: GenerationRequest, path: Path, wanted: Callable[[], bool] = lambda: True) -> None:
    """A gradient that gets brighter, for as long as it is wanted: a server's end waits for its threads."""

    def chunks() -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
        ramp = np.linspace(0, 55, request.width).astype(np.uint8)
        for shade in np.linspace(0, 200, request.frames).astype(np.uint8):
            frame = np.empty((1, request.height, request.width, 3), np.uint8)
            frame[:] = (shade + ramp)[None, None, :, None]
            if not wanted():
                return
            yield frame

    result = request.result
    frames = chunks() if request.target is None else resampled(chunks(), request.fps, request.target)
    with VideoWriter(path, width=result.width, height=result.height, fps=result.fps, output=request.output) as writer:
        for chunk in frames:
            writer.write(chunk)


@contextmanager
def running(folder: Path, *, supervisor: type[Painter] = Painter, **settings: Any) -> Iterator[httpx.Client]:
    """A server of its own, and a client of it."""
    chosen = Settings(state_dir=folder, port=0, max_input_bytes=2_000_000, **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(application, "Supervisor", supervisor)
        app = application.create_app(chosen)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.02)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(120)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def painter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """One server for all tests of this folder."""
    with running(tmp_path_factory.mktemp("painter")) as client:
        yield client


@pytest.fixture(scope="session")
def jpeg() -> bytes:
    """A small picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), (200, 30, 30)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def mp4(painter: httpx.Client) -> bytes:
    """A small clip."""
    body = {"prompt": "a", "video_params": {"width": 64, "height": 64, "frames_count": 12}}
    answer = painter.post("/v1/infer", json=body, headers={"Accept": "video/mp4"})
    assert answer.status_code == 200, answer.text
    return answer.content
