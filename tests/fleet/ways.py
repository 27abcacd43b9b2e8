"""What every way to run a server has to do, over HTTP: the tests of each way import these and
`expected`, and have a fixture `way`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

import cosmorama
from tests.serving import Running

BODY: dict[str, Any] = {"dialect": "cosmorama", "prompt": "a red ball falls", "seed": 1, "width": 960, "height": 704}
SHORT: dict[str, Any] = BODY | {"frames": 9, "steps": 2}
LONG: dict[str, Any] = BODY | {"frames": 121, "steps": 50}
PATIENCE_S = 240


@dataclass(frozen=True)
class Way:
    """What clients talk to."""

    server: Running

    def submit(self, body: dict[str, Any]) -> str:
        answer = httpx.post(f"{self.server.url}/v1/jobs", json=body, timeout=60)
        assert answer.status_code == 202, answer.text
        job_id: str = answer.json()["id"]
        return job_id

    def job(self, job_id: str) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.server.url}/v1/jobs/{job_id}", timeout=60).json()
        return found

    def until(self, job_id: str, right: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_S
        while not right(job := self.job(job_id)):
            assert time.monotonic() < deadline, job
            time.sleep(0.05)
        return job

    def events(self, job_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
        with httpx.stream("GET", f"{self.server.url}/v1/jobs/{job_id}/events", timeout=PATIENCE_S) as stream:
            name = ""
            for line in stream.iter_lines():
                if line.startswith("event:"):
                    name = line.removeprefix("event:").strip()
                elif line.startswith("data:"):
                    yield name, json.loads(line.removeprefix("data:"))

    def content(self, job_id: str) -> bytes:
        return httpx.get(f"{self.server.url}/v1/jobs/{job_id}/content", timeout=60).content


@pytest.fixture(scope="module")
def expected(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The clip of `SHORT`, made in this process."""
    path = tmp_path_factory.mktemp("expected") / "clip.mp4"
    world = cosmorama.load(str(tiny_checkpoint), threads=1)
    world.generate("a red ball falls", seed=1, width=960, height=704, frames=9, steps=2).save(path)
    return path.read_bytes()


def test_a_clip_has_the_same_bytes(way: Way, expected: bytes) -> None:
    job_id = way.submit(SHORT)
    way.until(job_id, lambda job: job["state"] == "succeeded")
    assert way.content(job_id) == expected


def test_progress_is_told(way: Way) -> None:
    job_id = way.submit(LONG | {"steps": 12})
    seen = list(way.events(job_id))
    told = [data for name, data in seen if name == "status"]
    assert told  # how many depends on how busy the machine is
    steps = [data["step"] for data in told if data["stage"] == "denoise"]
    assert steps == sorted(steps)
    assert seen[-1][0] == "succeeded"


def test_a_job_that_runs_is_cancelled(way: Way) -> None:
    job_id = way.submit(LONG)
    way.until(job_id, lambda job: job["state"] == "running")
    httpx.post(f"{way.server.url}/v1/jobs/{job_id}/cancel", timeout=60)
    way.until(job_id, lambda job: job["state"] == "cancelled")
    after = way.submit(SHORT)  # whoever made it is free again
    way.until(after, lambda job: job["state"] == "succeeded")


def test_what_the_model_cannot_make_is_refused_by_name(way: Way) -> None:
    answer = httpx.post(f"{way.server.url}/v1/jobs", json=BODY | {"steps": 99}, timeout=60)
    assert answer.status_code == 422
    assert "steps" in answer.text
    other = httpx.post(f"{way.server.url}/v1/jobs", json=BODY | {"model": "other"}, timeout=60)
    assert other.status_code == 404
    assert "tiny" in other.text
    broken = way.submit(SHORT | {"image": "data:image/png;base64,iVBORw0KGgpubyBwaWN0dXJl"})
    job = way.until(broken, lambda job: job["state"] == "failed")
    assert "image" in json.dumps(job["error"])


def test_a_synchronous_request_is_answered_with_its_clip(way: Way) -> None:
    size = {"width": 960, "height": 704, "frames_count": 9, "frames_per_sec": 24}
    body = {"prompt": "a red ball falls", "seed": 1, "steps": 2, "video_params": size}
    answer = httpx.post(f"{way.server.url}/v1/infer", json=body, timeout=PATIENCE_S)
    assert answer.status_code == 200, answer.text
    assert answer.json()["b64_video"]
