"""A real server whose worker's device fails, or whose worker hangs: another takes its place, and nothing is lost."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving import Running, running_server

BODY: dict[str, Any] = {"dialect": "cosmorama", "width": 960, "height": 704, "prompt_upsampling": False}
SHORT = BODY | {"prompt": "a red ball falls", "frames": 1, "steps": 2}

# Python imports it when a process starts. The file says what is to happen, once, at the next step of a long clip.
INJECTION = """
import os, time
file = {file!r}

def install():
    from cosmorama.world.microcosm import sampling as module
    kind = module.{kind}
    denoise = kind.denoise

    def failing(self, latents, index, **options):
        if index == 3 and os.path.exists(file):
            what = open(file).read()
            os.unlink(file)
            if what == "hang":
                time.sleep(100000)
            import torch
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        return denoise(self, latents, index, **options)

    kind.denoise = failing

if "multiprocessing" in " ".join(__import__("sys").orig_argv):
    install()
"""


def wait_for(server: Running, job: str, timeout_s: float = 300) -> dict[str, Any]:
    deadline = time.monotonic() + timeout_s
    while True:
        answer: dict[str, Any] = httpx.get(f"{server.url}/v1/jobs/{job}", timeout=60).json()
        if answer["finished_at"]:
            return answer
        assert time.monotonic() < deadline, (answer, server.log.read_text()[-5000:])
        time.sleep(0.1)


def submit(server: Running, body: dict[str, Any]) -> str:
    answer = httpx.post(f"{server.url}/v1/jobs", json=body, timeout=60)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


@pytest.mark.parametrize("what", ["fault", "hang"])
def test_another_worker_takes_over(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    fault = tmp_path / "what"
    (tmp_path / "site").mkdir()
    code = INJECTION.format(file=str(fault), kind="CosmosFlowSampling")
    (tmp_path / "site" / "sitecustomize.py").write_text(code)
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    settings = {"PYTHONPATH": path, "COSMORAMA_HANG_S": "10", "COSMORAMA_MAX_ACTIVE": "2"}
    with running_server(tiny_checkpoint, tmp_path / "server", **settings) as server:
        before = wait_for(server, submit(server, SHORT))
        assert before["state"] == "succeeded"
        fault.write_text(what)
        long = submit(server, SHORT | {"steps": 8})
        others = [submit(server, SHORT | {"seed": seed}) for seed in range(3)]
        for job in (*others, long):
            assert wait_for(server, job)["state"] == "succeeded"
        assert not fault.exists()
        assert server.metric("cosmorama_worker_restarts_total") == 1
        log = server.log.read_text()
        assert "starting another worker in 0 s" in log  # what it takes is what loading takes
        assert ("the worker hung" if what == "hang" else "illegal memory access") in log
