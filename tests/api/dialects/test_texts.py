"""The text of a generation, without the generation."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from cosmorama.cli import app
from cosmorama.text.reader import parse_scene
from tests.api.dialects.conftest import running


def test_a_prompt_is_written_out(painter: httpx.Client) -> None:
    answer = painter.post("/v1/upsample", json={"prompt": "a red ball rolls left", "model": None})
    told = answer.raise_for_status().json()
    assert (told["prompt"], told["model"], told["warnings"]) == ("a red ball rolls left", "painter", [])
    scene = parse_scene(told["upsampled_prompt"])
    assert scene is not None
    assert scene.direction == "left"
    again = painter.post("/v1/upsample", json={"model_mode": "text2video", "prompt": "a red ball rolls left"})
    assert again.json()["upsampled_prompt"] == told["upsampled_prompt"]
    strange = painter.post("/v1/upsample", json={"prompt": "quantum chromodynamics"}).raise_for_status().json()
    assert strange["upsampled_prompt"] == strange["prompt"]
    assert strange["warnings"] == ["nothing was added to the prompt: the model would read it as it stands"]


def test_a_picture_and_a_clip_are_described(painter: httpx.Client, jpeg: bytes, mp4: bytes) -> None:
    for field, data in (("image", jpeg), ("video", mp4)):
        answer = painter.post("/v1/caption", json={field: base64.b64encode(data).decode()})
        assert answer.status_code == 200, answer.text
        assert answer.json()["caption"]


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("upsample", {}, "prompt: null is not accepted; expected a text to write out"),
        ("upsample", {"prompt": "a", "stepz": 1}, "unknown field 'stepz'"),
        ("upsample", {"prompt": "x" * 20_001}, "at most 20000 characters"),
        ("upsample", {"prompt": "a", "model": "other"}, "there is no model 'other'"),
        ("caption", {"prompt": "a"}, "image: null is not accepted; expected a picture or a clip"),
        ("caption", {"video": ""}, "video: '' is not accepted; expected a picture or a clip"),
        ("caption", {"image": " "}, "image: is empty; send the contents of a picture or a clip"),
        ("caption", {"image": base64.b64encode(b"no picture").decode()}, "image: "),
        ("caption", {"model_mode": "image2video", "input_reference": "bm8="}, "input_reference: "),
    ],
)
def test_refusals(painter: httpx.Client, path: str, body: dict[str, Any], said: str) -> None:
    answer = painter.post(f"/v1/{path}", json=body)
    assert answer.status_code in (404, 422), answer.text
    assert said in answer.json()["error"]["message"]


def test_blocked_words_need_no_model(tmp_path: Any) -> None:
    words = tmp_path / "blocked.txt"
    words.write_text("ball\n")
    with running(tmp_path / "state", blocked_words=words) as client:
        refused = client.post("/v1/upsample", json={"prompt": "a Ball"})
        assert (refused.status_code, refused.json()["error"]["type"]) == (422, "prompt_refused")
        assert "the prompt contains 'ball'" in refused.json()["error"]["message"]
        assert client.post("/v1/upsample", json={"prompt": "a red cube"}).status_code == 200


def test_on_the_command_line(painter: httpx.Client, jpeg: bytes, tmp_path: Any) -> None:
    picture = tmp_path / "a.jpg"
    picture.write_bytes(jpeg)
    server = ["--server", str(painter.base_url)]
    run = CliRunner()
    made = run.invoke(app, ["upsample", "a red ball rolls left", *server])
    assert made.exit_code == 0, made.output
    assert "left" in made.output
    assert run.invoke(app, ["caption", str(picture), *server]).exit_code == 0
    missing = run.invoke(app, ["caption", str(tmp_path / "none.png"), *server])
    assert missing.exit_code != 0
    refused = run.invoke(app, ["upsample", " ", *server])
    assert refused.exit_code == 2
    assert "a text to write out" in refused.output
    bare = str(painter.base_url).removeprefix("http://")  # as every other command takes it
    assert run.invoke(app, ["upsample", "a red ball", "--server", bare]).exit_code == 0
    for wrong, said in {"ftp://a": "server: 'ftp://a' is not accepted", "127.0.0.1:9": "cannot be reached"}.items():
        told = run.invoke(app, ["upsample", "a red ball", "--server", wrong])
        assert (told.exit_code, said in told.output, "Traceback" in told.output) == (2, True, False), told.output
