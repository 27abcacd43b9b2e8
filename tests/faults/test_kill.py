"""Real processes, killed at random moments: nothing accepted is lost, and nothing is made twice.

`COSMORAMA_FAULTS=long` kills ten times as often.
"""

from __future__ import annotations

import io
import os
import random
import re
import resource
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import av
import httpx
import pytest

from tests.jobs.conftest import Postgres
from tests.serving import Running, running_server

pytestmark = [pytest.mark.fault, pytest.mark.timeout(3600)]

LONG = os.environ.get("COSMORAMA_FAULTS") == "long"
WORKER_KILLS, SERVER_KILLS, PAIR_KILLS = (20, 10, 5) if LONG else (2, 2, 1)
CANCELS, AWAY_S = (200, 60.0) if LONG else (4, 2.0)
SETTINGS = {"COSMORAMA_LEASE_S": "3", "COSMORAMA_MAX_ACTIVE": "2", "COSMORAMA_MAX_QUEUE": "1000"}
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
            if all(job["finished_at"] for job in self.jobs(servers[0])):
                for server in servers:
                    self.want(1, long=True)
                    self.send(server)
            time.sleep(0.02)

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
        jobs = self.jobs(server)
        while not all(job["finished_at"] for job in jobs):
            assert time.monotonic() < deadline, (jobs, server.log.read_text()[-5000:])
            time.sleep(0.1)
            jobs = self.jobs(server)
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


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Another one every time; its seed is shown where a test fails."""
    seed = int(os.environ.get("COSMORAMA_FAULTS_SEED", time.time_ns() % 10**6))
    print(f"COSMORAMA_FAULTS_SEED={seed}")
    return random.Random(seed)


def test_worker_and_server_are_killed_at_random_moments(
    tiny_checkpoint: Path, tmp_path: Path, chance: random.Random
) -> None:
    client = Client(chance)
    # Between two kills of the server, some of the worker.
    lives = Counter(chance.randrange(SERVER_KILLS + 1) for _ in range(WORKER_KILLS))
    for life in range(SERVER_KILLS + 1):
        with running_server(tiny_checkpoint, tmp_path / str(life), **_sharing(tmp_path)) as server:
            for _ in range(lives[life]):
                client.want(3)
                client.send(server)
                client.keep_busy(server)
                time.sleep(chance.uniform(0, 0.5))
                kill_worker(server)
            client.want(3)
            if life == SERVER_KILLS:
                client.verify(server, tmp_path / "state")
                continue
            # While it is accepting, or while it works.
            with ThreadPoolExecutor(1) as pool:
                sending = pool.submit(client.send, server)
                if chance.random() < 0.7:
                    sending.result()
                    client.keep_busy(server)
                time.sleep(chance.uniform(0, 0.5))
                kill_server(server)


def test_of_two_servers_on_one_store_one_is_killed(
    tiny_checkpoint: Path, tmp_path: Path, chance: random.Random
) -> None:
    client = Client(chance)
    logs: list[Path] = []
    with ExitStack() as stack:

        def start(name: str) -> Running:
            logs.append(tmp_path / name / "server.log")
            # A slow server must not look like a dead one: of what it holds, nothing may be begun twice.
            alone = _sharing(tmp_path) | {"COSMORAMA_MAX_ACTIVE": "1", "COSMORAMA_LEASE_S": "10"}
            return stack.enter_context(running_server(tiny_checkpoint, tmp_path / name, **alone))

        with ThreadPoolExecutor(2) as pool:
            one, two = pool.map(start, ("one", "two"))
        for round_ in range(PAIR_KILLS):
            for server in (one, two):
                client.want(4)
                client.want(1, long=True)
                client.send(server)
            client.keep_busy(one, two)
            time.sleep(chance.uniform(0, 0.3))
            if chance.random() < 0.5:
                one, two = two, one
            kill_server(two)
            if round_ < PAIR_KILLS - 1:
                two = start(f"next-{round_}")
        jobs = client.verify(one, tmp_path / "state")
    # What was begun again was a dead server's, and most was not touched.
    taken_over = {job_id for log in logs for job_id in re.findall(r"job (\S+): its server gives no", log.read_text())}
    assert {job["id"] for job in jobs if job["attempts"] > 1} <= taken_over
    assert len(taken_over) < len(jobs) / 2


def test_cancels_and_stores_that_go_away_lose_nothing(
    tiny_checkpoint: Path, tmp_path: Path, chance: random.Random, postgres: Postgres
) -> None:
    """Cancels in every stage with clips of real sizes, the database away, and artifacts that cannot be written."""
    client = Client(chance)
    database = {"COSMORAMA_DATABASE_URL": postgres.new_database()}
    with running_server(tiny_checkpoint, tmp_path, **(_sharing(tmp_path) | database)) as server:
        client.want(3, long=True)
        client.send(server)
        for _ in range(CANCELS):
            client.cancel(server)
        client.want(3)
        client.send(server)
        client.keep_busy(server)
        postgres.stop()
        try:
            assert httpx.post(f"{server.url}/v1/jobs", json=SMALL | {"prompt": "x"}, timeout=60).status_code == 503
            time.sleep(AWAY_S)  # longer than a lease
            _wait_for_health(server, 503)
        finally:
            postgres.start()
        _wait_for_health(server, 200)
        client.want(3)
        client.send(server)
        client.keep_busy(server)
        _limit_files(server.process.pid, 64)  # neither the record of a clip nor a probe has room
        _wait_for_health(server, 503)
        assert httpx.post(f"{server.url}/v1/jobs", json=SMALL | {"prompt": "x"}, timeout=60).status_code == 503
        _limit_files(server.process.pid, resource.RLIM_INFINITY)
        _wait_for_health(server, 200)
        jobs = client.verify(server, tmp_path / "state")
        assert all(job["attempts"] <= 1 for job in jobs)  # none was begun anew, and no worker died
        assert server.metric("cosmorama_worker_restarts_total") == 0
        for folder in (tmp_path / "state" / "scratch").glob("*/*/"):
            deadline = time.monotonic() + 60
            while folder.exists():
                assert time.monotonic() < deadline, list(folder.iterdir())
                time.sleep(0.1)


def test_a_disk_that_is_full_loses_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with running_server(tiny_checkpoint, tmp_path, **SETTINGS) as server:
        url = f"{server.url}/v1/jobs"
        body = SMALL | {"prompt": "a red ball falls", "seed": 1, "frames": 9, "steps": 5}
        worker = worker_of(server)
        assert worker is not None
        before = httpx.post(url, json=body, timeout=60).json()["id"]
        _wait_for(server, before)
        # The worker cannot write the clip: that job fails and says why, the next one is fine.
        _limit_files(worker, 2000)
        failed = _wait_for(server, httpx.post(url, json=body, timeout=60).json()["id"])
        _limit_files(worker, resource.RLIM_INFINITY)
        assert failed["state"] == "failed"
        assert failed["error"]["message"], failed
        # The server cannot write its database: nothing is accepted, and what runs is not lost.
        running = httpx.post(url, json=body | {"steps": 30}, timeout=60).json()["id"]
        _wait_for(server, running, "running")
        _limit_files(server.process.pid, 1000)
        refused = httpx.post(url, json=body, timeout=60)
        assert refused.status_code == 503, refused.text
        assert refused.json()["error"]["type"] == "store_unavailable"
        time.sleep(2)
        _limit_files(server.process.pid, resource.RLIM_INFINITY)
        done = _wait_for(server, running)
        assert (done["state"], done["attempts"]) == ("succeeded", 1), done
        again = _wait_for(server, httpx.post(url, json=body, timeout=60).json()["id"])
        clips = [httpx.get(f"{url}/{job_id}/content", timeout=60).content for job_id in (before, again["id"])]
        assert clips[0] == clips[1]
        assert len(httpx.get(url, timeout=60).json()["data"]) == 4


def _wait_for_health(server: Running, status: int) -> None:
    deadline = time.monotonic() + 300
    while httpx.get(f"{server.url}/v1/health/ready", timeout=60).status_code != status:
        assert time.monotonic() < deadline, server.log.read_text()[-5000:]
        time.sleep(0.1)


def _sharing(folder: Path) -> dict[str, str]:
    return SETTINGS | {"COSMORAMA_STATE_DIR": str(folder / "state")}


def _limit_files(pid: int, size: int) -> None:
    """From now on no file of the process may grow beyond a size: writing fails as on a disk that is full."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def _wait_for(server: Running, job_id: str, state: str = "over") -> dict[str, Any]:
    deadline = time.monotonic() + FINISH_S
    while True:
        job: dict[str, Any] = httpx.get(f"{server.url}/v1/jobs/{job_id}", timeout=60).json()
        if job["state"] == state or job["finished_at"] is not None:
            return job
        assert time.monotonic() < deadline, (job, server.log.read_text()[-5000:])
        time.sleep(0.05)
