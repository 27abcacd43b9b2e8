"""Real processes, killed at random moments: nothing accepted is lost, and nothing is made twice.

`COSMORAMA_FAULTS=long` kills ten times as often.
"""

from __future__ import annotations

import random
import re
import resource
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults.client import FINISH_S, LONG, SMALL, Client, kill_server, kill_worker, worker_of
from tests.jobs.conftest import Postgres
from tests.serving import Running, running_server

pytestmark = [pytest.mark.fault, pytest.mark.timeout(3600)]

WORKER_KILLS, SERVER_KILLS, PAIR_KILLS = (20, 10, 5) if LONG else (2, 2, 1)
CANCELS, AWAY_S = (200, 60.0) if LONG else (4, 2.0)
SETTINGS = {"COSMORAMA_LEASE_S": "3", "COSMORAMA_MAX_ACTIVE": "2", "COSMORAMA_MAX_QUEUE": "1000"}


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
        until = time.monotonic() + 10  # by when the store is known to be back
        while (answer := httpx.post(url, json=body, timeout=60)).status_code == 503 and time.monotonic() < until:
            time.sleep(0.2)
        again = _wait_for(server, answer.json()["id"])
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
