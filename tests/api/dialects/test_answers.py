"""What each dialect answers, over HTTP."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import httpx
import pytest
from PIL import Image

from cosmorama.api.dialects.predict import EXAMPLES
from cosmorama.engine.outcome import Outcome
from cosmorama.engine.prepare import Preparer
from cosmorama.request import GenerationRequest
from cosmorama.resolve import resolve
from tests.api.dialects.conftest import PAINTER, Painter, running

PREDICT1 = {"prompt": "a", "seed": 1, "video_params": {"width": 64, "height": 64, "frames_count": 3}}
COSMOS3 = {"model_mode": "text2video", "prompt": "a", "seed": 1, "num_frames": 25, "resolution": "256"}


class Reading(Painter):
    """Reads what came with a request, too, as the engine has it read."""

    async def generate(self, request: GenerationRequest, *, output: Path, **more: Any) -> Outcome:
        resolved = resolve(request, PAINTER)
        prepared = await asyncio.to_thread(Preparer(), resolved, PAINTER)
        made = await super().generate(resolved, output=output, **more)
        return replace(made, warnings=(*made.warnings, *prepared.warnings))


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with running(tmp_path_factory.mktemp("reading"), supervisor=Reading) as client:
        yield client


INPUTS: list[tuple[str, dict[str, Any], str]] = [
    ("predict1", {"video_params": {"width": 64, "height": 64, "frames_count": 3}}, "image"),
    ("predict25", {"resolution": "256_1_1", "num_output_frames": 5}, "image"),
    ("cosmos3", {"model_mode": "image2video", "num_frames": 25, "resolution": "256"}, "input_reference"),
    ("transfer25", {"resolution": "256", "edge": {}}, "video"),
    ("cosmos3", {"model_mode": "video2video", "resolution": "256"}, "transfer.seg.video"),
    ("openai", {"size": "96x64", "frames": 5}, "input_reference"),
    ("openai", {"size": "96x64", "frames": 5}, "image_reference"),
    ("openai", {"size": "96x64", "frames": 5}, "image_url"),
    ("openai", {"size": "96x64"}, "extra_params.depth.control"),
    ("cosmorama", {"width": 96, "height": 64, "frames": 5}, "image"),
]


def placed(path: str, value: str) -> dict[str, Any]:
    first, _, rest = path.partition(".")
    return {first: placed(rest, value) if rest else value}


@pytest.mark.parametrize(("dialect", "body", "field"), INPUTS, ids=lambda each: each if isinstance(each, str) else "")
def test_inputs_are_called_what_the_client_calls_them(
    reading: httpx.Client, mp4: bytes, dialect: str, body: dict[str, Any], field: str
) -> None:
    """In the record, the events, the wire's own answer, and the warnings: found out long after the body was read."""
    picture = io.BytesIO()
    Image.new("RGBA", (64, 64), (200, 30, 30, 128)).save(picture, "PNG")
    whole = mp4 if field.endswith((".control", "video")) else picture.getvalue()
    asked = {"dialect": dialect, "prompt": "a", **body}

    def submitted(data: bytes) -> dict[str, Any]:
        inputs = placed(field, base64.b64encode(data).decode())
        answer = reading.post("/v1/jobs", json=asked | inputs)
        assert answer.status_code == 202, answer.text
        while (job := reading.get(f"/v1/jobs/{answer.json()['id']}").json())["state"] in ("queued", "running"):
            pass
        return dict(job)

    job = submitted(whole[: len(whole) // 2])
    assert job["state"] == "failed", job
    assert job["error"]["message"].startswith(f"{field}: is "), job["error"]
    assert f"{field}: is " in reading.get(f"/v1/jobs/{job['id']}/events").text
    answer = reading.get(f"/v1/jobs/{job['id']}/answer")
    assert answer.json()["error"]["message"].startswith(f"{field}: is ")
    if whole is not mp4:
        job = submitted(whole)
        assert f"{field} is transparent in places, which are shown on white" in job["warnings"]
    blank = reading.post("/v1/jobs", json=asked | placed(field, " \n"))
    assert (blank.status_code, field in blank.json()["error"]["message"]) == (422, True), blank.text


def ask(client: httpx.Client, body: dict[str, Any], **headers: str) -> httpx.Response:
    answer = client.post("/v1/infer", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


def shown(clip: bytes) -> tuple[int, int, int, float]:
    """Width, height, frames and rate of a clip."""
    with av.open(io.BytesIO(clip)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate is not None
        return stream.width, stream.height, sum(1 for _ in container.decode(video=0)), float(stream.average_rate)


@pytest.mark.parametrize(
    ("body", "keys", "expected"),
    [
        (PREDICT1, {"b64_video", "seed", "upsampled_prompt"}, (64, 64, 3, 24)),
        (
            {"prompt": "a", "seed": 1, "resolution": "256_1_1", "num_output_frames": 5},
            {"b64_video", "seed", "upsampled_prompt"},
            (256, 256, 5, 16),
        ),
        (
            {"prompt": "a", "seed": 1, "resolution": "256", "fps": 6, "num_output_frames": 25},
            {"b64_video", "seed", "upsampled_prompt"},
            (320, 192, 25, 6),
        ),
        (COSMOS3, {"b64_video", "seed", "action"}, (320, 192, 25, 24)),
    ],
    ids=["predict1", "predict25", "generator1", "cosmos3"],
)
def test_clips(
    body: dict[str, Any], keys: set[str], expected: tuple[int, int, int, float], painter: httpx.Client
) -> None:
    answer = ask(painter, body).json()
    assert answer.keys() - {"warnings"} == keys  # which are there for what was fitted
    assert ("warnings" in answer) == (expected[:2] != (64, 64))
    assert answer["seed"] == 1
    assert shown(base64.b64decode(answer["b64_video"], validate=True)) == expected


def test_text2image_is_a_jpeg(painter: httpx.Client) -> None:
    body = {"model_mode": "text2image", "prompt": "a", "resolution": "256_1_1"}
    answer = ask(painter, body).json()
    assert answer.keys() == {"b64_image", "seed", "warnings"}
    assert answer["warnings"] == ["256x256 was made at 64x64 and resampled"]
    with Image.open(io.BytesIO(base64.b64decode(answer["b64_image"], validate=True))) as picture:
        assert (picture.format, picture.size) == ("JPEG", (256, 256))
    file = ask(painter, body | {"seed": answer["seed"]}, accept="image/jpeg")
    assert file.headers["content-type"] == "image/jpeg"
    assert file.content == base64.b64decode(answer["b64_image"])


def test_transfer_answers_clip_and_seed(painter: httpx.Client, mp4: bytes) -> None:
    body = {"prompt": "a", "video": base64.b64encode(mp4).decode(), "edge": {}, "resolution": "256", "seed": 3}
    answer = ask(painter, body).json()
    assert answer.keys() - {"warnings"} == {"b64_video", "seed"}
    assert answer["seed"] == 3


@pytest.mark.parametrize(
    ("controls", "said"),
    [
        ({"depth": {}}, "depth is not computed from the video, only edge and vis are"),
        ({"edge": {}, "seg": {"control_weight": 0.5}}, "seg is not computed"),
    ],
)
def test_a_control_that_is_not_computed_is_refused_before_anything_is_queued(
    controls: dict[str, Any], said: str, painter: httpx.Client, mp4: bytes
) -> None:
    body = {"prompt": "a", "video": base64.b64encode(mp4).decode(), "resolution": "256"} | controls
    for path in ("/v1/jobs", "/v1/infer"):
        refused = painter.post(path, json=body)
        assert refused.status_code == 422, refused.text
        message = refused.json()["error"]["message"]
        assert said in message
        assert f"{list(controls)[-1]}.control: null" in message, message


@pytest.mark.parametrize(("mode", "media"), [("policy", "jpeg"), ("inverse_dynamics", "mp4")])
def test_predicted_actions(mode: str, media: str, painter: httpx.Client, request: pytest.FixtureRequest) -> None:
    reference = base64.b64encode(request.getfixturevalue(media)).decode()
    params = {"domain_name": "av", "action_chunk_size": 4}
    body = {"model_mode": mode, "prompt": "a", "input_reference": reference, "action_params": params}
    answer = ask(painter, body).json()
    assert answer["action"] == {
        "data": [[0.5] * 9] * 4,
        "shape": [4, 9],
        "dtype": "float32",
        "raw_action_dim": 9,
        "action_mode": mode,
        "domain_id": 1,
    }
    assert shown(base64.b64decode(answer["b64_video"]))[2] == 5


def test_forward_dynamics_answers_no_action(painter: httpx.Client, jpeg: bytes) -> None:
    params = {"domain_name": "av", "action_chunk_size": 4, "action": [[0.0] * 9] * 4}
    reference = base64.b64encode(jpeg).decode()
    body = {"model_mode": "forward_dynamics", "prompt": "a", "input_reference": reference, "action_params": params}
    assert ask(painter, body).json()["action"] is None


def test_size_policy(painter: httpx.Client, tmp_path: Path) -> None:
    body = PREDICT1 | {"video_params": {"width": 200, "height": 100, "frames_count": 2, "frames_per_sec": 50}}
    refused = painter.post("/v1/infer", json=body)
    assert refused.status_code == 422
    assert "200x100" in refused.json()["error"]["message"]
    with running(tmp_path, size_policy="fit") as fitting:
        assert shown(ask(fitting, body, accept="video/mp4").content) == (200, 100, 2, 50)
        odd = PREDICT1 | {"video_params": {"width": 201, "height": 100, "frames_count": 2}}
        message = fitting.post("/v1/infer", json=odd).json()["error"]["message"]
        assert "201x100 is not accepted; expected width x height, even numbers" in message.replace("'", "")


def test_pinned_dialect(tmp_path: Path) -> None:
    with running(tmp_path, dialect="cosmos3") as pinned:
        refused = pinned.post("/v1/infer", json=PREDICT1)
        assert refused.status_code == 422
        message = refused.json()["error"]["message"]
        assert "model_mode: Field required; one of text2image, text2video" in message
        assert "video_params belongs to the dialect predict1" in message


class NimClient:
    """How published clients of the NIM read an answer; nothing in it knows this server."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url

    def text2world(self, prompt: str, folder: Path, **options: Any) -> tuple[Path, int]:
        response = httpx.post(f"{self.base_url}/v1/infer", json={"prompt": prompt, **options}, timeout=300)
        payload = response.json()
        if response.status_code != 200 or payload.get("status") in ("failed", "error"):
            error = payload.get("error", payload)
            raise RuntimeError(error.get("message") if isinstance(error, dict) else error or payload.get("detail"))
        path = folder / "world.mp4"
        path.write_bytes(base64.b64decode(payload["b64_video"], validate=True))
        return path, payload["seed"]


def test_a_nim_client_needs_another_base_url_and_nothing_else(painter: httpx.Client, tmp_path: Path) -> None:
    client = NimClient(str(painter.base_url).rstrip("/"))
    assert httpx.get(f"{client.base_url}/v1/health/ready").json()["status"] == "ready"
    params = {"width": 96, "height": 64, "frames_count": 10, "frames_per_sec": 24}
    path, seed = client.text2world("a red ball rolls", tmp_path, seed=42, steps=35, video_params=params)
    assert seed == 42
    assert shown(path.read_bytes()) == (96, 64, 10, 24)
    with pytest.raises(RuntimeError, match="steps: 0 is not accepted"):
        client.text2world("a", tmp_path, steps=0)


@pytest.mark.parametrize("mode", ["text2world", "image2world", "video2world"])
def test_the_documented_curl_commands(
    mode: str, painter: httpx.Client, jpeg: bytes, mp4: bytes, tmp_path: Path
) -> None:
    """As documented, but for two things: the port, and data URLs for the two pictures: tests have no network."""
    body = json.loads(json.dumps(EXAMPLES[mode]["value"]))
    for field, data in (("image", jpeg), ("video", mp4)):
        if field in body:
            body[field] = f"data:;base64,{base64.b64encode(data).decode()}"
    sent = tmp_path / "body.json"
    sent.write_text(json.dumps(body, indent=2))
    command = ["curl", "-sS", "-X", "POST", str(painter.base_url.join("/v1/infer"))]
    command += ["-H", "Accept: application/json", "-H", "Content-Type: application/json", "-d", f"@{sent}"]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert answer.keys() == {"b64_video", "seed", "upsampled_prompt"}, answer
    assert (answer["seed"], answer["upsampled_prompt"]) == (42, body["prompt"])
    assert shown(base64.b64decode(answer["b64_video"], validate=True)) == (1280, 704, 121, 24)
