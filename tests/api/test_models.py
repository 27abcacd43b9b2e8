"""Several models in one server, within a memory that holds one of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import cosmorama
from cosmorama.client import JobHandle
from cosmorama.errors import ModelNotFoundError
from cosmorama.request import GenerationRequest
from cosmorama.settings import Settings
from tests.serving import Running, running_server

SMALL: dict[str, Any] = {"width": 960, "height": 704, "frames": 1, "steps": 1, "seed": 1}


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("models")
    other = shutil.copytree(tiny_checkpoint, folder / "other")
    world = json.loads((other / "world.json").read_text())
    (other / "world.json").write_text(json.dumps({**world, "name": "other", "fps": [12, 24]}))
    settings = {
        "COSMORAMA_MODELS": f"first={tiny_checkpoint},second={other}",
        # Any two workers take more than this, so there is room for one at a time.
        "COSMORAMA_MODEL_MEMORY": "1MiB",
        "COSMORAMA_MODEL_IDLE_S": "600",
    }
    with running_server("unused", folder, **settings) as running:
        yield running


def test_each_job_is_made_by_the_model_it_names(server: Running) -> None:
    with cosmorama.Client(server.url) as client:
        request = GenerationRequest(prompt="a red ball", **SMALL)
        jobs: list[JobHandle] = [client.submit(request, model=model) for model in (None, "second", "first")]
        statuses = [job.wait() for job in jobs]
    assert [status.model for status in statuses] == ["first", "second", "first"]
    log = server.log.read_text()
    assert "unloading the model first" in log
    assert log.count("loading the model second") >= 1


def test_every_wire_format_names_a_model(server: Running) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "predict1": {"prompt": "a ball", "video_params": {"width": 960, "height": 704, "frames_count": 1}, "steps": 1},
        "predict25": {"prompt": "a ball", "resolution": "256", "num_output_frames": 1, "steps": 1},
        "generator1": {"prompt": "a ball", "resolution": "256", "num_output_frames": 25, "fps": 24, "steps": 1},
        "cosmos3": {"model_mode": "text2video", "prompt": "a ball", "resolution": "256", "num_inference_steps": 1},
        "openai": {"dialect": "openai", "prompt": "a ball", "frames": 1, "steps": 1},
        "cosmorama": {"dialect": "cosmorama", "prompt": "a ball", "fps": 24, **SMALL},
    }
    with httpx.Client(base_url=server.url, timeout=300) as http:
        for name, body in bodies.items():
            job = http.post("/v1/jobs", json={**body, "model": "second"})
            assert (job.status_code, job.json().get("model")) == (202, "second"), (name, job.text)
            http.delete(f"/v1/jobs/{job.json()['id']}")
            unknown = http.post("/v1/jobs", json={**body, "model": "third"})
            assert unknown.status_code == 404, unknown.text
            assert "first, second" in unknown.json()["error"]["message"]
        assert http.post("/v1/infer", json={**bodies["predict1"], "model": "second"}).status_code == 200


def test_the_models_are_listed_and_told_apart(server: Running) -> None:
    with httpx.Client(base_url=server.url, timeout=300) as http, cosmorama.Client(server.url) as client:
        assert [model["id"] for model in http.get("/v1/models").json()["data"]] == ["first", "second"]
        assert [model["shortName"] for model in http.get("/v1/metadata").json()["modelInfo"]] == ["first", "second"]
        assert client.capabilities().fps.high == 40
        assert client.capabilities("second").fps.high == 24
        with pytest.raises(ModelNotFoundError, match="first, second"):
            client.capabilities("third")
        with pytest.raises(ModelNotFoundError, match="first, second"):
            client.submit(GenerationRequest(prompt="a ball"), model="third")
        with pytest.raises(cosmorama.InvalidRequestError, match="12 to 24"):
            client.submit(GenerationRequest(prompt="a ball", fps=30, **SMALL), model="second")


def test_names_of_models_are_read_from_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.setenv("COSMORAMA_MODELS", f"microcosm, {tmp_path / 'mine'}, big=/models/big")
    assert Settings().models == {
        "microcosm": "microcosm",
        "mine": str(tmp_path / "mine"),
        "big": "/models/big",
    }
    monkeypatch.setenv("COSMORAMA_MODEL_MEMORY", "24GiB")
    assert Settings().model_memory == 24 * 2**30
    monkeypatch.setenv("COSMORAMA_MODELS", "a=x,a=y")
    with pytest.raises(ValueError, match="a name of its own"):
        Settings()
