"""`cosmorama fleet`: what every server does, and what becomes of jobs when a replica dies or the server ends.

`COSMORAMA_FAULTS=long` kills five times as often, and sees replicas come and go with the work.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.fleet.ways import (  # noqa: F401
    LONG,
    SHORT,
    Way,
    expected,
    test_a_clip_has_the_same_bytes,
    test_a_job_that_runs_is_cancelled,
    test_a_synchronous_request_is_answered_with_its_clip,
    test_progress_is_told,
    test_what_the_model_cannot_make_is_refused_by_name,
)
from tests.serving import running_server

KILLS = 5 if os.environ.get("COSMORAMA_FAULTS") == "long" else 1
SETTINGS = {"COSMORAMA_ROLE": "fleet", "RAY_ADDRESS": "local"}  # not a cluster that this machine may have

pytest.importorskip("ray", reason="Ray is not installed (pip install '.[ray]')")


@pytest.fixture(scope="module")
def way(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Way]:
    with running_server(tiny_checkpoint, tmp_path_factory.mktemp("fleet"), **SETTINGS) as server:
        yield Way(server)


def replicas(way: Way) -> list[psutil.Process]:
    below = psutil.Process(way.server.process.pid).children(recursive=True)
    return [process for process in below if "ServeReplica" in process.name()]


def test_a_job_whose_replica_dies_is_made_once_by_the_next(way: Way, expected: bytes) -> None:  # noqa: F811
    """Whoever follows it sees its previews too."""
    failed = 'cosmorama_jobs_total{state="failed"}'
    before = way.server.metric(failed)
    for _ in range(KILLS):
        job_id = way.submit(LONG | {"steps": 15})
        assert any(name == "preview" for name, _ in way.events(job_id))
        waiting = way.submit(SHORT)
        (replica,) = replicas(way)
        replica.send_signal(signal.SIGKILL)
        job = way.until(job_id, lambda job: job["state"] not in ("queued", "running"))
        assert (job["state"], job["attempts"]) == ("succeeded", 2)
        assert way.until(waiting, lambda job: job["state"] == "succeeded")
        assert way.content(waiting) == expected
    assert way.server.metric("cosmorama_worker_restarts_total") == KILLS
    assert way.server.metric(failed) == before


@pytest.mark.skipif(KILLS == 1, reason="COSMORAMA_FAULTS=long is not set")
def test_replicas_come_with_work_and_go_without(
    tiny_checkpoint: Path,
    tmp_path: Path,
    expected: bytes,  # noqa: F811
) -> None:
    scaled = {"COSMORAMA_REPLICAS": "2", "COSMORAMA_MIN_REPLICAS": "0", "COSMORAMA_REPLICA_IDLE_S": "5"}
    with running_server(tiny_checkpoint, tmp_path, **SETTINGS, **scaled) as server:
        way, begun_at = Way(server), time.monotonic()

        def until(count: int) -> None:
            while len(replicas(way)) != count:
                assert time.monotonic() < begun_at + 900, f"{len(replicas(way))} replicas, never {count}"
                time.sleep(0.2)
            print(f"{count} after {time.monotonic() - begun_at:.0f} s")

        for count, jobs in ((0, 0), (1, 1), (0, 0), (2, 8), (0, 0)):
            asked = [way.submit(SHORT if count < 2 else LONG | {"steps": 30}) for _ in range(jobs)]
            until(count)  # nobody says that it is not ready meanwhile
            for job_id in asked:
                job = way.until(job_id, lambda job: job["state"] not in ("queued", "running"))
                assert (job["state"], job["attempts"]) == ("succeeded", 1)
            if jobs == 1:
                assert way.content(asked[0]) == expected
            assert httpx.get(f"{server.url}/v1/health/ready", timeout=60).status_code == 200


def test_told_to_end_it_finishes_what_runs_and_leaves_no_process(way: Way) -> None:
    """The last one here."""
    below = psutil.Process(way.server.process.pid).children(recursive=True)
    job_id = way.submit(LONG | {"steps": 10})
    way.until(job_id, lambda job: job["state"] == "running")
    way.server.process.terminate()
    way.server.process.wait(120)
    # How many it counts is as of its last look at the queue.
    assert re.search(r"ending; [01] jobs stay in the queue", way.server.log.read_text())
    _, alive = psutil.wait_procs(below, timeout=120)
    assert alive == []
