"""A client that does not give up, and kills for whom it talks to."""

from __future__ import annotations

import io
import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import av
import httpx

from tests.serving import Running

LONG = os.environ.get("COSMORAMA_FAULTS") == "long"
SMALL: dict[str, Any] = {"dialect": "cosmorama", "width": 960, "height": 704, "prompt_upsampling": False}
ACTIVE = "cosmorama_active_generations"
FINISH_S = 1800  # only against waiting for ever


@dataclass
class Client:
    """Wants jobs done, whatever happens to its server: each has a key, and is sent again until it is accepted."""

    chance: random.Random
    bodies: dict[str, dict[str, Any]] = field(default_factory=dict)
    accepted: dict[str, str] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)

    def want(self, count: int, *, long: bool = False) -> None:
        for _ in range(count):
            frames, steps = (33, 20) if long else (self.chance.choice((1, 9, 12)), self.chance.choice((2, 5)))
            # Of each kind there are only two, so that many are the same and must look the same.
            seed = self.chance.randrange(2)
            body = SMALL | {"prompt": "a red ball falls", "seed": seed, "frames": frames, "steps": steps}
            self.bodies[f"key-{len(self.bodies)}"] = body

    def send(self, server: Running) -> None:
        """Send everything that is not known to be accepted."""
        for key in self.bodies.keys() - self.accepted.keys():
            with suppress(httpx.TransportError):
                headers = {"Idempotency-Key": key}
                answer = httpx.post(f"{server.url}/v1/jobs", json=self.bodies[key], headers=headers, timeout=60)
                assert answer.status_code in (202, 503), answer.text
                if answer.status_code == 202:
                    self.accepted[key] = answer.json()["id"]

    def cancel(self, server: Running) -> None:
        """Have a job made, and cancel it at some moment of its life, sometimes twice."""
        self.want(1, long=self.chance.random() < 0.3)
        self.send(server)
        job_id = list(self.accepted.values())[-1]
        self.cancelled.add(job_id)
        stages = ("queued", "prepare", "encode", "denoise", "decode", "done")
        stage, deadline = self.chance.choice(stages), time.monotonic() + self.chance.uniform(0, 10)
        while time.monotonic() < deadline:
            job = httpx.get(f"{server.url}/v1/jobs/{job_id}", timeout=60).json()
            if stages.index(job["stage"]) >= stages.index(stage) or job["finished_at"]:
                break
            time.sleep(0.01)
        for _ in range(1 + (self.chance.random() < 0.3)):
            answer = httpx.post(f"{server.url}/v1/jobs/{job_id}/cancel", timeout=60)
            assert answer.status_code == 200, answer.text

    def keep_busy(self, *servers: Running, timeout_s: float = 900) -> None:
        """Return while all of them are making something. Where nothing is left to make, more is wanted."""
        deadline = time.monotonic() + timeout_s
        while not all(server.metric(ACTIVE) for server in servers):
            assert time.monotonic() < deadline, [server.log.read_text()[-5000:] for server in servers]
            if not self.unfinished(servers[0]):
                for server in servers:
                    self.want(1, long=True)
                    self.send(server)
            time.sleep(0.02)

    def keep_running(self, server: Running, timeout_s: float = 900) -> None:
        """Return while some job is at work, whoever has it. Where nothing is left to make, more is wanted."""
        deadline = time.monotonic() + timeout_s
        while "denoise" not in (stages := [job["stage"] for job in self.unfinished(server)]):
            assert time.monotonic() < deadline, server.log.read_text()[-5000:]
            if not stages:
                self.want(2, long=True)
                self.send(server)
            time.sleep(0.1)

    def unfinished(self, server: Running) -> list[dict[str, Any]]:
        """Some of those that run, else of those that wait."""
        for state in ("running", "queued"):
            query: dict[str, Any] = {"state": state, "limit": 10}
            if found := httpx.get(f"{server.url}/v1/jobs", params=query, timeout=60).json()["data"]:
                return list(found)
        return []

    def jobs(self, server: Running) -> list[dict[str, Any]]:
        """All that the server knows of."""
        found: list[dict[str, Any]] = []
        query: dict[str, Any] = {"limit": 100}
        while True:
            page = httpx.get(f"{server.url}/v1/jobs", params=query, timeout=60).json()
            found += page["data"]
            if page["next_cursor"] is None:
                return found
            query["cursor"] = page["next_cursor"]

    def verify(self, server: Running, state: Path) -> list[dict[str, Any]]:
        """Wait for the end of everything, and check all that was promised."""
        deadline = time.monotonic() + FINISH_S
        while self.bodies.keys() != self.accepted.keys():
            self.send(server)
            assert time.monotonic() < deadline, "not everything was accepted"
        while found := self.unfinished(server):
            assert time.monotonic() < deadline, (found, server.log.read_text()[-5000:])
            time.sleep(0.2)
        jobs = self.jobs(server)
        assert all(job["finished_at"] for job in jobs)
        # Nothing is lost, and nothing is there that nobody wanted.
        assert Counter(job["id"] for job in jobs) == Counter(self.accepted.values())
        keys = {job_id: key for key, job_id in self.accepted.items()}
        looks: dict[str, str] = {}
        for job in jobs:
            body = self.bodies[keys[job["id"]]]
            records = list((state / "artifacts" / "results" / job["id"]).glob("*/record.json"))
            if job["state"] == "cancelled":
                assert job["id"] in self.cancelled, job
                assert records == []
                continue
            if job["state"] != "succeeded":
                # Too many processes may have died of it, as far as anyone can tell.
                assert job["state"] == "failed", job
                assert "given up" in job["error"]["message"], job
                assert records == []
                continue
            [_] = records  # it was made once, and kept once
            clip = httpx.get(f"{server.url}/v1/jobs/{job['id']}/content", timeout=60).content
            assert len(clip) == job["result"]["bytes"]
            with av.open(io.BytesIO(clip)) as container:
                assert sum(1 for _ in container.decode(video=0)) == body["frames"]
            # Begun again it is the same clip.
            assert looks.setdefault(str(body), sha256(clip).hexdigest()) == sha256(clip).hexdigest()
        print(f"jobs: {Counter(job['state'] for job in jobs)}, attempts: {Counter(job['attempts'] for job in jobs)}")
        return jobs


def worker_of(server: Running) -> int | None:
    """The process that holds the model, if there is one now."""
    for children in Path(f"/proc/{server.process.pid}/task").glob("*/children"):
        for child in children.read_text().split():
            with suppress(FileNotFoundError):
                if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                    return int(child)
    return None


def kill_worker(server: Running, timeout_s: float = 900) -> None:
    """Kill the worker and wait until another one has loaded the model."""
    killed = worker_of(server)
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    deadline = time.monotonic() + timeout_s
    while worker_of(server) in (None, killed) or server.metric("cosmorama_ready") != 1:
        assert time.monotonic() < deadline, server.log.read_text()[-5000:]
        time.sleep(0.05)


def kill_server(server: Running) -> None:
    server.process.kill()
    server.process.wait()
