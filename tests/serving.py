"""A server in a process of its own, started as a user starts it, with the tiny checkpoint."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

CODE = """
import os, time
right, off_s = time.time, float(os.environ.get("CLOCK_OFF_S", 0))
time.time = lambda: right() + off_s
from cosmorama.cli import main
main()
"""
COMMAND = (sys.executable, "-c", CODE, "serve")


@dataclass(frozen=True)
class Running:
    """A running server."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def metric(self, name: str) -> float:
        lines = httpx.get(f"{self.url}/v1/metrics", timeout=60).text.splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))

    def wait_until(self, name: str, value: float, timeout_s: float = 240) -> None:
        deadline = time.monotonic() + timeout_s
        while self.metric(name) != value:
            assert time.monotonic() < deadline, f"{name} did not become {value}"
            time.sleep(0.02)


@contextmanager
def running_server(model: Path | str, folder: Path, **settings: str) -> Iterator[Running]:
    """A server that is ready. `settings` are environment variables; its state and its log are in `folder`.

    `CLOCK_OFF_S` among them is how wrong the clock of its machine is.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "server.log"
    ours = {
        "COSMORAMA_PORT": str(port),
        "COSMORAMA_MODEL": str(model),
        "COSMORAMA_STATE_DIR": str(folder / "state"),
        "COSMORAMA_THREADS": "1",
    }
    if "COSMORAMA_MODELS" in settings:
        del ours["COSMORAMA_MODEL"]
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("COSMORAMA_", "NIM_", "OTEL_"))}
    with log.open("wb") as sink:
        process = subprocess.Popen(COMMAND, env=clean | ours | settings, stdout=sink, stderr=sink)
    server = Running(f"http://127.0.0.1:{port}", process, log)
    try:
        _wait_until_ready(server)
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        finally:
            process.kill()


def _wait_until_ready(server: Running, timeout_s: float = 600) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            if httpx.get(f"{server.url}/v1/health/ready", timeout=60).status_code == 200:
                return
        assert server.process.poll() is None, server.log.read_text()
        time.sleep(0.1)
    raise AssertionError(server.log.read_text())
