"""What a clip was made with is in the file, and makes it again."""

from __future__ import annotations

import json
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from cosmorama import load
from cosmorama.cli import app
from cosmorama.media.write import VideoWriter
from cosmorama.request import Output
from tests.world.cosmos.transfer_checkpoints import save_transfer

SMALL = ["--steps", "2", "--frames", "9", "--size", "960x704", "--seed", "3"]


def cosmorama(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif", ".zip", ".jpg"])
def test_the_request_is_in_the_file_and_gives_the_same_bytes(
    tiny_checkpoint: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / f"clip{suffix}"
    knobs = ["--guidance-interval", "0.1", "0.9", "--guidance-rescale", "0.37", "--solver", "unipc", "--upsample"]
    knobs.append("--sidecar")
    small = SMALL if suffix != ".jpg" else [*SMALL, "--frames", "1"]
    made = cosmorama("generate", "a red ball", "--model", tiny_checkpoint, "-o", file, *small, *knobs)
    assert made.exit_code == 0, made.output
    shown = json.loads(cosmorama("show", file, "--json").stdout)
    assert json.loads((tmp_path / f"clip{suffix}.json").read_text()) == shown
    file.rename(tmp_path / f"moved{suffix}")
    assert f"clip{suffix}.json is there already" in cosmorama("generate", "a", "-o", file, "--sidecar").output
    (tmp_path / f"moved{suffix}").rename(file)
    assert shown["model"] == "tiny"
    assert shown["software"].startswith("cosmorama 0.")
    assert shown["request"]["seed"] == 3
    assert shown["request"]["guidance_rescale"] == 0.37
    assert "a red ball" in cosmorama("show", file).output.lower()
    again = cosmorama("again", file, "--model", tiny_checkpoint)
    assert again.exit_code == 0, again.output
    assert "the same bytes" in again.output
    assert (tmp_path / f"clip-again{suffix}").read_bytes() == file.read_bytes()
    if suffix == ".zip":  # a still of /v1/images/generations is one frame of it
        assert "a name ending in .zip" in cosmorama("again", file, "-o", tmp_path / "other.png").output
        still = ["--frames", "1", "--model", tiny_checkpoint, "-o", tmp_path / "still.zip"]
        assert cosmorama("generate", "a red ball", *SMALL, *still).exit_code == 0
        with ZipFile(tmp_path / "still.zip") as frames:
            (tmp_path / "still.png").write_bytes(frames.read("frame_00001.png"))
        again = cosmorama("again", tmp_path / "still.png", "--model", tiny_checkpoint)
        assert "still-again.png  the same bytes" in again.output, again.output


def test_a_clip_that_python_saved_is_made_again_and_in_its_own_container(tiny_checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "clip.webm"
    loaded = load(str(tiny_checkpoint))
    loaded.generate("a red ball", seed=1, steps=1, width=960, height=704, frames=5).save(file, quality=3)
    refused = cosmorama("again", file, "--model", tiny_checkpoint, "-o", tmp_path / "clip.mp4")
    assert refused.exit_code == 2
    assert "webm" in refused.output
    again = cosmorama("again", file, "--model", tiny_checkpoint, "-o", tmp_path / "again.webm")
    assert "the same bytes" in again.output, again.output


def test_what_started_from_a_picture_needs_it_again(tiny_checkpoint: Path, tmp_path: Path) -> None:
    start, file = tmp_path / "start.png", tmp_path / "clip.gif"
    Image.new("RGB", (96, 70), "orange").save(start)
    model = ["--model", tiny_checkpoint]
    assert cosmorama("generate", "a ball", "--image", start, *model, "-o", file, *SMALL).exit_code == 0
    refused = cosmorama("again", file, *model, "-o", tmp_path / "again.gif")
    assert refused.exit_code == 2
    assert "--image" in refused.output
    made = cosmorama("again", file, "--image", start, *model, "-o", tmp_path / "again.gif")
    assert "the same bytes" in made.output, made.output


def test_what_followed_a_control_clip_needs_it_again(tmp_path: Path) -> None:
    model, control, file = tmp_path / "model", tmp_path / "depth.mp4", tmp_path / "clip.gif"
    save_transfer(model)
    for part in ("transformer", "controlnet"):  # room for the 93 frames of a chunk
        config = model / part / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"max_size": [32, 32, 32]}))
    with VideoWriter(control, width=64, height=48, fps=16, output=Output()) as writer:
        writer.write(np.random.default_rng(0).integers(0, 255, (9, 48, 64, 3), np.uint8))
    options = ["--steps", "1", "--frames", "9", "--size", "64x48", "--seed", "3", "--model", model]
    made = cosmorama("generate", "a ball", "--control", f"depth={control}:0.5", "-o", file, *options)
    assert made.exit_code == 0, made.output
    for wrong, said in (["--control", "depth"], "KIND=FILE"), ([], "--control is missing; expected a control clip"):
        refused = cosmorama("again", file, "--model", model, *wrong)
        assert (refused.exit_code, said in refused.output) == (2, True), refused.output
    again = cosmorama("again", file, "--model", model, "--control", f"depth={control}", "-o", tmp_path / "again.gif")
    assert "the same bytes" in again.output, again.output


def test_files_of_others_are_refused_in_a_sentence(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "mine.jpg")
    (tmp_path / "text.mp4").write_text("no clip")
    for name in ("mine.jpg", "text.mp4", "none.mp4"):
        for command in ("show", "again"):
            result = cosmorama(command, tmp_path / name)
            assert result.exit_code == 2, (name, result.output)
            assert result.output.startswith("cosmorama: ")


def test_a_request_in_a_file_that_says_a_field_twice_is_refused(tmp_path: Path) -> None:
    clip = tmp_path / "twice.mp4"
    entries = {"model": "microcosm", "request": '{"prompt":"a","seed":1,"seed":2}'}
    with VideoWriter(clip, width=64, height=64, fps=8, output=Output(), metadata=entries) as writer:
        writer.write(np.zeros((2, 64, 64, 3), np.uint8))
    assert "seed: has two values" in cosmorama("again", clip, "-o", tmp_path / "again.mp4").output
