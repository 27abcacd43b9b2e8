"""A real server, started as a user starts it, and clips to send to it."""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

COMMAND = (sys.executable, "-c", "from cosmorama.cli import main; main()", "serve")
MAX_INPUT_BYTES = 3_000_000
MAX_ACTIVE = 2
MAX_QUEUE = 1
WEBHOOK_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
SMALL: dict[str, Any] = {"width": 960, "height": 704, "frames_count": 1}
BODY: dict[str, Any] = {"prompt": "a red ball rolls to the right", "seed": 7, "steps": 1, "video_params": SMALL}
"""The cheapest thing to ask for."""
LONG: dict[str, Any] = {**BODY, "steps": 50, "video_params": {**SMALL, "frames_count": 121}}
"""Takes longer than whatever a test does beside it."""


@dataclass(frozen=True)
class Server:
    """A running server and a client of it."""

    process: subprocess.Popen[bytes]
    client: httpx.Client
    state: Path

    def infer(self, **body: Any) -> httpx.Response:
        return self.client.post("/v1/infer", json=body)

    def metric(self, name: str) -> float:
        lines = self.client.get("/v1/metrics").text.splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))

    def wait_until(self, name: str, value: float, timeout_s: float = 240) -> float:
        """Seconds until a metric has a value."""
        start = time.monotonic()
        while self.metric(name) != value:
            assert time.monotonic() - start < timeout_s, f"{name} did not become {value}"
            time.sleep(0.02)
        return time.monotonic() - start

    def wait_until_ready(self, timeout_s: float = 280) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if self.client.get("/v1/health/ready").status_code == 200:
                    return
            assert self.process.poll() is None, "the server exited"
            time.sleep(0.05)
        raise AssertionError(self.client.get("/v1/health/ready").text)

    def wait_until_clean(self, timeout_s: float = 60) -> None:
        """No clip is left on the disk, at the latest a moment after the last answer."""
        deadline = time.monotonic() + timeout_s
        # Not rglob, which fails when a folder is removed while it looks.
        while left := [name for *_, names in os.walk(self.state) for name in names if name.startswith("clip")]:
            assert time.monotonic() < deadline, left
            time.sleep(0.02)

    def kill_worker(self) -> None:
        threads = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        children = [child for thread in threads for child in thread.read_text().split()]
        [worker] = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(int(worker), signal.SIGKILL)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests of this folder; every test leaves it idle and ready."""
    state = tmp_path_factory.mktemp("state")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "COSMORAMA_PORT": str(port),
        "COSMORAMA_STATE_DIR": str(state),
        "COSMORAMA_WEBHOOK_SECRET": WEBHOOK_SECRET,
        "COSMORAMA_MAX_INPUT_BYTES": str(MAX_INPUT_BYTES),
        "COSMORAMA_MAX_ACTIVE": str(MAX_ACTIVE),
        "COSMORAMA_MAX_QUEUE": str(MAX_QUEUE),
        "COSMORAMA_ALLOW_PRIVATE_URLS": "1",
        "COSMORAMA_LOG_LEVEL": "warning",
    }
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("COSMORAMA_", "NIM_"))}
    process = subprocess.Popen(COMMAND, env=clean | settings)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=240) as client:
        running = Server(process, client, state)
        try:
            running.wait_until_ready()
            yield running
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0


@pytest.fixture(scope="session")
def clip(server: Server) -> bytes:
    """An MP4 of nine frames."""
    answer = server.infer(**BODY | {"video_params": {**SMALL, "frames_count": 9}})
    assert answer.status_code == 200, answer.text
    return base64.b64decode(answer.json()["b64_video"], validate=True)


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small JPEG: a gradient with a red square."""
    pixels = np.zeros((120, 160, 3), np.uint8)
    pixels[..., 1] = np.linspace(40, 200, 160).astype(np.uint8)
    pixels[40:80, 60:100] = (200, 20, 20)
    path = tmp_path_factory.mktemp("picture") / "picture.jpg"
    Image.fromarray(pixels).save(path)
    return path.read_bytes()
