"""A server with guardrails: refusals in every dialect's words, counted; nothing starts without those asked for."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

import cosmorama
from cosmorama.engine.build import build_engine
from cosmorama.errors import GuardrailUnavailableError, PromptRefusedError
from cosmorama.settings import Settings
from tests.api.conftest import BODY
from tests.guardrails.stand_in import write_stand_in
from tests.serving import Running, running_server


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("guardrails")
    words = folder / "blocked.txt"
    words.write_text("hit and run\nall black\n")
    guardrails = {
        "COSMORAMA_BLOCKED_WORDS": str(words),
        "NIM_ENABLE_TEXT_GUARDRAILS": "1",
        "NIM_ENABLE_VIDEO_GUARDRAILS": "true",
        "PYTHONPATH": os.pathsep.join((str(write_stand_in(folder / "packages")), os.environ.get("PYTHONPATH", ""))),
    }
    with running_server(tiny_checkpoint, folder, **guardrails) as running:
        yield running


def decisions(server: Running) -> dict[str, float]:
    lines = httpx.get(f"{server.url}/metrics", timeout=60).text.splitlines()
    start = "cosmorama_guardrail_decisions_total{"
    return {
        name.removeprefix(start)[:-1]: float(n) for name, n in (x.rsplit(" ", 1) for x in lines if x.startswith(start))
    }


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        (
            "a HIT-and-run, at night",
            "the prompt contains 'hit and run', which this server does not accept; leave it out",
        ),
        ("a forbidden ball", "the prompt is one that this server's guardrail does not let pass; reword it"),
    ],
)
def test_a_refused_prompt_is_422_with_the_reason(server: Running, prompt: str, why: str) -> None:
    before = decisions(server)
    answer = httpx.post(f"{server.url}/v1/infer", json=BODY | {"prompt": prompt}, timeout=120)
    assert answer.status_code == 422
    assert answer.json()["error"] == {"message": why, "type": "prompt_refused", "code": 422}
    video = httpx.post(f"{server.url}/v1/videos", json={"prompt": prompt, "seconds": "1"}, timeout=120).json()
    with cosmorama.Client(server.url) as client, pytest.raises(PromptRefusedError, match="the prompt"):
        client.generate(prompt, frames=1, steps=1)
    while (video := httpx.get(f"{server.url}/v1/videos/{video['id']}", timeout=60).json())["status"] != "failed":
        assert video["status"] in ("queued", "in_progress")
    assert video["error"] == {"code": "prompt_refused", "message": why}
    assert decisions(server)['check="prompt",decision="refused"'] == before['check="prompt",decision="refused"'] + 3


def test_texts_that_are_only_written_have_to_pass_too(server: Running) -> None:
    refused = httpx.post(f"{server.url}/v1/upsample", json={"prompt": "a hit and run"}, timeout=120)
    assert (refused.status_code, refused.json()["error"]["type"]) == (422, "prompt_refused")
    assert "'hit and run'" in refused.json()["error"]["message"]
    refused = httpx.post(f"{server.url}/v1/upsample", json={"prompt": "a forbidden ball"}, timeout=120)
    assert (refused.status_code, refused.json()["error"]["type"]) == (422, "prompt_refused")
    passed = httpx.post(f"{server.url}/v1/upsample", json={"prompt": "a red ball"}, timeout=120)
    assert passed.status_code == 200
    picture = io.BytesIO()
    Image.new("RGB", (64, 64), (10, 10, 10)).save(picture, "PNG")
    body = {"image": base64.b64encode(picture.getvalue()).decode()}
    refused = httpx.post(f"{server.url}/v1/caption", json=body, timeout=120)
    assert (refused.status_code, refused.json()["error"]["type"]) == (422, "prompt_refused")
    assert "the description of the picture or clip contains 'all black'" in refused.json()["error"]["message"]


def test_what_passes_is_counted(server: Running) -> None:
    before = decisions(server)
    assert httpx.post(f"{server.url}/v1/infer", json=BODY, timeout=120).status_code == 200
    grown = {labels: n - before[labels] for labels, n in decisions(server).items()}
    assert {labels for labels, n in grown.items() if n} == {
        'check="prompt",decision="passed"',
        'check="frames",decision="altered"',
    }


def test_nothing_is_generated_without_a_guardrail_that_is_asked_for(tiny_checkpoint: Path, tmp_path: Path) -> None:
    settings = Settings(model=str(tiny_checkpoint), blocked_words=tmp_path / "nowhere.txt")
    with pytest.raises(GuardrailUnavailableError, match=r"blocked_words: .*nowhere\.txt cannot be read"):
        build_engine(settings)
