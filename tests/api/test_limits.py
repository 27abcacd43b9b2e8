"""What a client is told when a generation takes too long, or when there is a bug."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.api.fake_app import clips, run, serving

BODY = {"prompt": "a red ball", "seed": 7, "steps": 2}


def test_generation_that_takes_too_long_is_cancelled(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path, request_timeout_s=0.5) as server:
            server.supervisor.gate.clear()
            answer = await server.client.post("/v1/infer", json=BODY)
            assert answer.status_code == 504
            assert answer.json()["error"]["type"] == "timeout_error"
            assert "0.5 s" in answer.json()["error"]["message"]
            [job] = (await server.jobs.list()).jobs
            assert job.state == "cancelled"
            assert server.supervisor.cancelled == [f"{job.id}.1"]

    run(test)
    assert clips(tmp_path) == []


def test_bug_in_a_generation_is_a_500_that_tells_nothing_of_the_inside(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as server:
            server.supervisor.fail = ZeroDivisionError("secret of the inside")
            answer = await server.client.post("/v1/infer", json=BODY)
            assert answer.status_code == 500
            assert answer.json()["error"].keys() == {"message", "type", "code"}
            assert answer.json()["error"]["type"] == "worker_failed"
            assert "secret" not in answer.text
            server.supervisor.fail = None
            assert (await server.client.post("/v1/infer", json=BODY)).status_code == 200

    run(test)
    assert clips(tmp_path) == []


def test_bug_in_the_server_is_a_500_that_tells_nothing_of_the_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("secret of the inside")

    async def test() -> None:
        async with serving(tmp_path) as server:
            monkeypatch.setattr("cosmorama.jobs.service.Jobs.submit", broken)
            answer = await server.client.post("/v1/infer", json=BODY)
            assert answer.status_code == 500
            assert answer.json()["error"].keys() == {"message", "type", "code"}
            assert "secret" not in answer.text

    run(test)
