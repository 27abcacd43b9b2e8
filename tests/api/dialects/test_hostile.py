"""Bodies made to hurt, and bodies made at random: never a 5xx, never a hang, and the server works afterwards."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error

from cosmorama.api.app import create_app
from tests.api.dialects.conftest import Sketcher, running

EXAMPLES = int(os.environ.get("COSMORAMA_FUZZ_EXAMPLES", "15"))
"""Cases per operation, of which there are about twenty; set it to 300 for several thousand."""
ANSWER_WITHIN_S = 60
DOCUMENT = create_app().openapi()
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)


@pytest.fixture(scope="module")
def sketcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with running(tmp_path_factory.mktemp("sketcher"), supervisor=Sketcher) as client:
        yield client


@pytest.fixture(scope="module", autouse=True)
def works_afterwards(painter: httpx.Client) -> Iterator[None]:
    yield
    body = {"prompt": "a", "video_params": {"width": 64, "height": 64, "frames_count": 1}}
    assert painter.post("/v1/infer", json=body).status_code == 200


@SCHEMA.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)
def test_cases_made_from_the_document(case: Any, sketcher: httpx.Client) -> None:
    if case.path.endswith("/events"):
        pytest.skip("streams until the job is over; tests/jobs has it")
    start = time.monotonic()
    answer = case.call(base_url=str(sketcher.base_url).rstrip("/"), timeout=ANSWER_WITHIN_S)
    assert time.monotonic() - start < ANSWER_WITHIN_S
    case.validate_response(answer, checks=[not_a_server_error])


FORM = "multipart/form-data; boundary=x"
DEEP = "[" * 50_000
HOSTILE: dict[str, tuple[str, bytes, str]] = {
    "empty": ("/v1/infer", b"", "application/json"),
    "null": ("/v1/infer", b"null", "application/json"),
    "a list": ("/v1/infer", b"[]", "application/json"),
    "deep": ("/v1/infer", DEEP.encode(), "application/json"),
    "deep field": ("/v1/infer", b'{"video_params":' * 5000, "application/json"),
    "many fields": ("/v1/infer", json.dumps({f"f{i}": i for i in range(5000)}).encode(), "application/json"),
    "long field name": ("/v1/infer", json.dumps({"x" * 500_000: 1}).encode(), "application/json"),
    "huge integer": ("/v1/infer", b'{"prompt":"a","steps":' + b"9" * 4000 + b"}", "application/json"),
    "overflow": ("/v1/infer", b'{"prompt":"a","guidance_scale":1e400}', "application/json"),
    "not a number": ("/v1/infer", b'{"prompt":"a","guidance_scale":NaN}', "application/json"),
    "lone surrogate": ("/v1/infer", b'{"prompt":"\\ud800"}', "application/json"),
    "nul": ("/v1/infer", b'{"prompt":"a\\u0000b","steps":0}', "application/json"),
    "twice the same key": ("/v1/infer", b'{"prompt":"a","steps":1,"steps":"x"}', "application/json"),
    "rate that overflows": ("/v1/videos", b'{"prompt":"a","fps":1e308,"seconds":"3600"}', "application/json"),
    "params as text": ("/v1/infer", b'{"prompt":"a","video_params":"big"}', "application/json"),
    "params as number": ("/v1/infer", b'{"prompt":"a","video_params":7}', "application/json"),
    "huge action": (
        "/v1/infer",
        json.dumps(
            {
                "model_mode": "forward_dynamics",
                "input_reference": "aGk=",
                "action_params": {"domain_id": 1, "action": [[0] * 1000] * 300},
            }
        ).encode(),
        "application/json",
    ),
    "jobs: unknown dialect": ("/v1/jobs", b'{"dialect":"klingon","prompt":"a"}', "application/json"),
    "jobs: dialect as list": ("/v1/jobs", b'{"dialect":[],"prompt":"a"}', "application/json"),
    "videos: no boundary": ("/v1/videos", b"--x", "multipart/form-data"),
    "videos: bad boundary": ("/v1/videos", b"--x\r\n\r\n", "multipart/form-data; boundary=y"),
    "videos: cut off": ("/v1/videos", b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na', FORM),
    "videos: no name": ("/v1/videos", b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--\r\n", FORM),
    "videos: many parts": (
        "/v1/videos",
        b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n' * 500 + b"--x--\r\n",
        FORM,
    ),
    "videos: other file": (
        "/v1/videos",
        b'--x\r\nContent-Disposition: form-data; name="evil"; filename="../../etc/passwd"\r\n\r\n1\r\n--x--\r\n',
        FORM,
    ),
    "videos: bad charset": ("/v1/videos", b"--x--\r\n", "multipart/form-data; boundary=x; charset=nonsense"),
    "videos: size": ("/v1/videos", b'{"prompt":"a","size":"1x1e9"}', "application/json"),
    "videos: seconds": ("/v1/videos", b'{"prompt":"a","seconds":"1e999"}', "application/json"),
    "remix of nothing": ("/v1/videos/nothing/remix", b'{"prompt":"a"}', "application/json"),
    "remix without prompt": ("/v1/videos/nothing/remix", b"{}", "application/json"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bodies(name: str, painter: httpx.Client) -> None:
    path, body, content_type = HOSTILE[name]
    answer = painter.post(path, content=body, headers={"Content-Type": content_type})
    assert 400 <= answer.status_code < 500, answer.text[:300]
    error = answer.json()["error"]
    assert error["message"]
    assert "Traceback" not in error["message"]
    assert len(error["message"]) < 200_000
