"""`cosmorama judge` and the best of several: what is measured, what an endpoint is asked, and what is kept and why."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

from cosmorama.cli import app
from cosmorama.errors import CosmoramaError
from cosmorama.judge import RUBRIC, Judgement, Measures, look_at, measured, ranked, why
from cosmorama.media.write import VideoWriter
from cosmorama.request import Output
from cosmorama.text.chat import ChatEndpoint
from tests.text.conftest import ChatServer
from tests.tiny import save_tiny

Frames = NDArray[np.uint8]
PROMPT = "a red ball rolls to the right on a gray floor under a pale blue sky"
GOOD = {"prompt": 5, "physics": 4, "consistency": 5, "picture": 4, "reason": "It rolls."}


def ball(color: tuple[int, int, int] = (220, 40, 40), *, count: int = 9, step: int = 8) -> Frames:
    """A ball on a floor under a sky, which moves to the right."""
    frames = np.empty((count, 192, 320, 3), np.uint8)
    frames[:, :110], frames[:, 110:] = (190, 215, 240), (128, 128, 128)
    for at, frame in enumerate(frames):
        cv2.circle(frame, (80 + step * at, 120), 24, color, -1, cv2.LINE_AA)
    return frames


def save(frames: Frames, path: Path, prompt: str = PROMPT) -> Path:
    height, width = frames.shape[1:3]
    with VideoWriter(path, width=width, height=height, fps=24, output=Output(), metadata={"prompt": prompt}) as writer:
        writer.write(frames)
    return path


def cosmorama(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_each_measure_finds_what_it_is_of() -> None:
    good, blue = measured(ball(), 24, PROMPT), measured(ball((40, 70, 220)), 24, PROMPT)
    assert good.adherence is not None
    assert blue.adherence is not None
    assert good.adherence > blue.adherence
    assert measured(ball(step=0), 24, PROMPT).motion == 0 < good.motion < measured(ball(step=16), 24, PROMPT).motion
    flickering = ball().astype(int)
    flickering[::2] -= 20
    assert measured(flickering.clip(0, 255).astype(np.uint8), 24, PROMPT).flicker > good.flicker + 10
    soft = np.stack([cv2.GaussianBlur(frame, (0, 0), 4) for frame in ball()])
    assert measured(soft, 24, PROMPT).sharpness < good.sharpness / 4
    assert measured(ball(), 24, "a whale sings").adherence is None
    assert measured(ball(count=1), 24, PROMPT).motion == 0


def test_the_best_is_first_and_its_sentence_says_what_tells_it_from_the_others() -> None:
    plain = Judgement("a", Measures(motion=2, flicker=0, sharpness=100, adherence=0.5))
    right = Judgement("b", Measures(motion=2, flicker=0, sharpness=100, adherence=1.0))
    best, *others = ranked([plain, right])
    assert best is right
    assert why(best, others) == "b has 1.00, the others 0.71: adherence 1.00 against 0.50 on average"
    same = [replace(right, name=name) for name in "cd"]
    best, *others = ranked(same)
    assert why(best, others).endswith("nothing tells them apart, the first is kept")
    assert best.name == "c"
    assert why(plain, []) == "a is the only one"


def test_an_endpoint_is_shown_frames_and_its_marks_count(chat_server: ChatServer, tmp_path: Path) -> None:
    clip = save(ball(), tmp_path / "ball.mp4")
    endpoint = ChatEndpoint(chat_server.url, "seer", "secret")
    chat_server.says(f"Here: {json.dumps(GOOD)}")
    found = look_at(clip, "ball", endpoint=endpoint)
    assert (found.marks, found.reason) == ({name: GOOD[name] for name in RUBRIC}, "It rolls.")
    assert ranked([found])[0].parts["rubric"] == pytest.approx(3.5 / 4)
    body = json.loads(chat_server.bodies[-1])
    text, *pictures = body["messages"][1]["content"]
    assert PROMPT in text["text"]
    assert [each["image_url"]["url"][:23] for each in pictures] == ["data:image/jpeg;base64,"] * 6
    assert all(name in body["messages"][0]["content"] for name in RUBRIC)


@pytest.mark.parametrize(
    "answer", ["no", "[1]", json.dumps(GOOD | {"physics": 9}), json.dumps(GOOD | {"physics": True}), '{"prompt": 5}']
)
def test_an_endpoint_that_does_not_mark_is_told_of(answer: str, chat_server: ChatServer, tmp_path: Path) -> None:
    chat_server.says(answer)
    found = look_at(save(ball(), tmp_path / "a.mp4"), "a", endpoint=ChatEndpoint(chat_server.url, "seer"))
    assert found.marks == {}
    assert found.reason is not None
    assert found.reason.startswith("not asked for marks: 127.0.0.1 did not answer with a mark from 1 to 5")


def test_the_command(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    save(ball(), folder / "red.mp4")
    save(ball((40, 70, 220)), folder / "blue.mp4")
    save(ball(), folder / "other.mp4", "something else")
    told = cosmorama("judge", folder)
    assert told.exit_code == 0, told.output
    assert told.output.index("red.mp4") < told.output.index("blue.mp4")
    assert "best: " in told.output
    groups = json.loads(cosmorama("judge", folder, "--json").output)
    assert {Path(group["best"]).name for group in groups} == {"red.mp4", "other.mp4"}
    assert groups[0]["clips"][0]["measures"].keys() == {"motion", "flicker", "sharpness", "adherence"}
    (folder / "broken.mp4").write_bytes(b"no clip")
    for words, said in (
        ([folder / "nowhere"], "No such file"),
        ([folder / "broken.mp4"], "broken.mp4"),
        ([folder / "red.mp4", "--judge-url", "http://localhost:1/v1"], "--judge-model"),
        ([folder / "red.mp4", "--judge-url", "ftp://x", "--judge-model", "m"], "is not an http(s) URL"),
        ([tmp_path], "clips: .mp4"),
    ):
        refused = cosmorama("judge", *words)
        assert (refused.exit_code, said in refused.output) == (2, True), refused.output


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), sizes=((320, 192),))


def noted(folder: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "manifest.jsonl").read_text().splitlines())
    return [entry for entry in lines if "name" in entry]


def test_a_batch_keeps_the_best_of_several(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out"
    row = {"id": "ball", "prompt": "a red ball", "seed": 5, "width": 320, "height": 192, "frames": 9, "steps": 1}
    rows.write_text(json.dumps(row) + "\n" + json.dumps(row | {"id": "wrong", "steps": 999}) + "\n")
    words = ("batch", rows, "-o", out, "--model", model, "--best-of", "3")
    looked: list[str] = []

    def interrupted(file: Path, name: str, prompt: str | None = None, endpoint: Any = None) -> Judgement:
        looked.append(name)
        raise CosmoramaError("the lights went out")

    with monkeypatch.context() as patch:
        patch.setattr("cosmorama.judge.look_at", interrupted)
        assert cosmorama(*words).exit_code != 0
    made = {path.name: path.stat().st_mtime_ns for path in (out / "tries").glob("*.mp4")}
    assert (sorted(made), looked) == (["ball-1.mp4", "ball-2.mp4", "ball-3.mp4"], ["ball-1"])
    result = cosmorama(*words)
    assert (result.exit_code, "1 made, 0 were there, 1 failed" in result.output) == (1, True), result.output
    entry = next(entry for entry in noted(out) if entry["name"] == "ball")
    best, *others = entry["tries"]
    assert entry["kept"] == best["name"]
    assert entry["seed"] == 4 + int(best["name"][-1])
    assert entry["why"].startswith(f"{best['name']} has {best['score']:.2f}, the others ")
    assert best["score"] >= max(each["score"] for each in others)
    assert (out / "ball.mp4").stat().st_mtime_ns == made[f"{best['name']}.mp4"]  # none was made again
    assert [*(out / "tries").glob("*.mp4")] == []
    assert "0 made, 1 were there, 1 failed" in cosmorama(*words).output


def test_a_grid_keeps_the_best_of_several(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["a red ball", "--x", "guidance_scale=1,7", "--model", model, "-o", out, "--best-of", "2"]
    result = cosmorama("grid", *words, "--size", "320x192", "--frames", "9", "--steps", "1")
    assert result.exit_code == 0, result.output
    assert [len(entry["tries"]) for entry in noted(out)] == [2, 2]
    assert (out / "sheet.mp4").is_file()
    refused = cosmorama("grid", *words[:-2], "--judge-url", "http://localhost:1", "--judge-model", "m")
    assert (refused.exit_code, "--best-of" in refused.output) == (2, True)
