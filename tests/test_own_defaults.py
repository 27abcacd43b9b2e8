"""What nobody asked for is the model's own, whichever door a request comes in by."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import httpx
import pytest
from typer.testing import CliRunner

import cosmorama
from cosmorama.api.dialects import DIALECTS
from cosmorama.cli import app
from cosmorama.client.protocol import body_of, request_with_output
from cosmorama.errors import InvalidRequestError
from cosmorama.request import Action, Capabilities, Control, GenerationRequest
from cosmorama.resolve import resolve
from cosmorama.settings import Settings
from cosmorama.world.families import fullest
from tests.serving import running_server
from tests.world.checkpoints import save_predict

PREDICT25: Capabilities = next(family for family in fullest() if family.family == "predict2.5")


def through_the_command_line(monkeypatch: pytest.MonkeyPatch) -> GenerationRequest:
    asked: list[GenerationRequest] = []

    class Loaded:
        def generate_file(self, request: GenerationRequest, output: Path, **_: Any) -> None:
            asked.append(request)
            raise cosmorama.errors.InvalidRequestError(cosmorama.errors.Problem("x", 1, "seen enough"))

    monkeypatch.setattr(cosmorama, "load", lambda *_, **__: Loaded())
    CliRunner().invoke(app, ["generate", "a red ball", "--model", "predict2.5-folder", "-o", "x.mp4", "--force"])
    return asked[0]


def through_a_dialect(name: str, body: dict[str, Any]) -> Callable[[pytest.MonkeyPatch], GenerationRequest]:
    [spoken] = [dialect for dialect in DIALECTS if dialect.name == name]
    return lambda _: spoken.parse(body, Settings())


def through_the_client(_: pytest.MonkeyPatch) -> GenerationRequest:
    body = body_of(request_with_output("a red ball", image=None, video=None, output="x.mp4"))
    [native] = [dialect for dialect in DIALECTS if dialect.name == "cosmorama"]
    return native.parse(body, Settings())


@pytest.mark.parametrize(
    "door",
    [
        through_the_command_line,
        through_the_client,
        lambda _: GenerationRequest(prompt="a red ball"),
        through_a_dialect("predict1", {"prompt": "a red ball"}),
        through_a_dialect("predict1", {"prompt": "a red ball", "video_params": None, "steps": None}),
        through_a_dialect("cosmorama", {"prompt": "a red ball"}),
    ],
    ids=["command line", "client", "python", "predict1", "predict1 with nulls", "native"],
)
def test_predict25_makes_93_frames_at_16_fps(
    door: Callable[[pytest.MonkeyPatch], GenerationRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = resolve(door(monkeypatch), PREDICT25)
    assert (made.width, made.height, made.frames, made.fps) == (1280, 704, 93, 16)
    assert (made.steps, made.guidance_scale) == (PREDICT25.defaults.steps, PREDICT25.defaults.guidance_scale)
    assert (made.negative_prompt, made.warnings) == (PREDICT25.defaults.negative_prompt, ())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict2.5") / "model"
    save_predict("predict2.5", folder, max_size=(128, 32, 32))
    return folder


def made_by_the_command_line(checkpoint: Path, folder: Path) -> Path:
    words = ["generate", "a red ball", "--model", str(checkpoint), "--size", "64x64", "--steps", "1"]
    made = CliRunner().invoke(app, [*words, "-o", str(folder / "x.mp4")], catch_exceptions=False)
    assert made.exit_code == 0, made.output
    return folder / "x.mp4"


def made_by_the_library(checkpoint: Path, folder: Path) -> Path:
    model = cosmorama.load(str(checkpoint), device="cpu")
    return model.generate("a red ball", width=64, height=64, steps=1).save(folder / "x.mp4")


def made_by_a_server(checkpoint: Path, folder: Path) -> Path:
    with running_server(checkpoint, folder / "server") as server:
        body = {"prompt": "a red ball", "video_params": {"width": 64, "height": 64}, "steps": 1}
        answer = httpx.post(f"{server.url}/v1/infer", json=body, timeout=300)
    assert answer.status_code == 200, answer.text
    (folder / "x.mp4").write_bytes(base64.b64decode(answer.json()["b64_video"]))
    return folder / "x.mp4"


@pytest.mark.parametrize("door", [made_by_the_command_line, made_by_the_library, made_by_a_server])
def test_a_checkpoint_of_predict25_gives_93_frames_at_16_fps(
    door: Callable[[Path, Path], Path], checkpoint: Path, tmp_path: Path
) -> None:
    with av.open(door(checkpoint, tmp_path)) as clip:
        [stream] = clip.streams.video
        assert (sum(1 for _ in clip.decode(stream)), stream.average_rate) == (93, 16)


def test_a_checkpoint_of_fewer_positions_has_defaults_that_it_makes(checkpoint: Path, tmp_path: Path) -> None:
    model = cosmorama.load(str(checkpoint), device="cpu")  # of 32 x 32 latents
    with av.open(model.generate("a red ball", steps=1).save(tmp_path / "x.mp4")) as clip:
        [stream] = clip.streams.video
        assert (stream.frames, stream.average_rate, stream.width, stream.height) == (93, 16, 256, 128)
    asked = GenerationRequest(prompt="a", width=1280, height=320, frames=5, steps=1, fit=True)
    made = resolve(asked, model.capabilities)
    assert (made.width, made.height, made.target and made.target.width) == (256, 64, 1280)
    with pytest.raises(InvalidRequestError, match=r"size: '512x64' .* up to 256x256, with at most 921600 pixels"):
        model.generate("a", width=512, height=64)


def test_openais_four_seconds_are_at_the_models_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    made = resolve(through_a_dialect("openai", {"prompt": "a", "size": "1280x704"})(monkeypatch), PREDICT25)
    assert (made.frames, made.fps, made.steps) == (64, 16, PREDICT25.defaults.steps)


COSMOS3: Capabilities = next(family for family in fullest() if family.family == "cosmos3")


@pytest.mark.parametrize(
    ("asked", "numbers"),
    [
        (GenerationRequest(prompt="a"), (189, 24, 35, 6, None)),
        (GenerationRequest(prompt="a", frames=1), (1, 24, 50, 4, 3)),
        (GenerationRequest(prompt="a", frames=1, steps=7, flow_shift=5.0), (1, 24, 7, 4, 5)),
        (GenerationRequest(task="policy", image="x", prompt="a", action=Action(1, None, 16)), (17, 10, 30, 1, None)),
        (
            GenerationRequest(prompt="a", video="x", task="transfer", controls=(Control("edge"),)),
            (121, 24, 50, 3, None),
        ),
    ],
    ids=["video", "still", "still with steps", "actions", "transfer"],
)
def test_cosmos3_has_its_own_defaults_in_every_mode(asked: GenerationRequest, numbers: tuple[Any, ...]) -> None:
    made = resolve(asked, COSMOS3)
    assert (made.frames, made.fps, made.steps, made.guidance_scale, made.flow_shift) == numbers
    assert resolve(made, COSMOS3) == made
    if made.frames == 1:
        assert (made.width, made.height) == (960, 960)
