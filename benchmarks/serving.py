"""What server benchmarks run on: the tests' server in a process of its own, seen by connections and by the kernel."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

from tests import serving

JSON = {"Content-Type": "application/json"}


class Client:
    """One connection to a server, kept open."""

    def __init__(self, port: int) -> None:
        self._connection = HTTPConnection("127.0.0.1", port, timeout=3600)

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The answer to a request, decoded.

        Raises:
            RuntimeError: it is an error.
        """
        self._connection.request(method, path, None if body is None else json.dumps(body), JSON if body else {})
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status} {content[:300]!r}")
        return json.loads(content) if content else None

    def events(self, job_id: str) -> Iterator[dict[str, Any]]:
        """A job's states as they come; holds the connection until the job is over."""
        self._connection.request("GET", f"/v1/jobs/{job_id}/events")
        for line in self._connection.getresponse():
            if line.startswith(b"data:"):
                event = json.loads(line[5:])
                if "state" in event:
                    yield event

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class Server:
    """A running server.

    Attributes:
        port: Where it listens, on this machine.
        pid: Of the process that answers; the worker is its child.
    """

    def __init__(self, port: int, pid: int) -> None:
        self.port, self.pid = port, pid

    def client(self) -> Client:
        """A connection to it."""
        return Client(self.port)

    def cpu_s(self) -> float:
        """CPU time of the answering process so far, without the worker's (Linux)."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def work_s(self) -> float:
        """Seconds of work in all stages of the generations that were finished so far."""
        name = "cosmorama_stage_seconds_sum{"
        with urlopen(f"http://127.0.0.1:{self.port}/v1/metrics") as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    def resident_mb(self) -> dict[str, float]:
        """Resident memory of the answering process and of the worker (Linux)."""
        children = Path(f"/proc/{self.pid}/task").glob("*/children")
        pids = {int(pid) for file in children for pid in file.read_text().split()}
        found = {pid: _resident_mb(pid) for pid in pids}
        # Beside the worker there may be multiprocessing's resource tracker, which is small.
        return {"api": _resident_mb(self.pid), "worker": max(found.values())}


@contextmanager
def running_server(model: str | Path, folder: Path, **settings: str) -> Iterator[Server]:
    """A server that is ready; `settings` are environment variables without their prefix COSMORAMA_."""
    prefixed = {f"COSMORAMA_{key}": value for key, value in settings.items()}
    with serving.running_server(model, folder, **prefixed) as running:
        port = urlsplit(running.url).port
        assert port is not None
        yield Server(port, running.process.pid)


def _resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
