"""`cosmorama grid` in this process: clips, sheets, going on where it stopped, and mistakes before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import av
import pytest
from typer.testing import CliRunner

from cosmorama.cli import app
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), sizes=((320, 192),))


def grid(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["grid", *arguments])
    return result.exit_code, result.output


def test_a_grid_is_made_and_goes_on_where_it_stopped(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    words = ["a red ball", "--x", "guidance_scale=1,7", "--y", "seed=1,2", "--model", str(model), "-o", str(folder)]
    words += ["--size", "320x192", "--frames", "9", "--steps", "2"]
    code, said = grid(*words)
    assert code == 0, said
    assert "4 made, 0 were there, 0 failed" in said
    names = {f"seed-{seed}_guidance_scale-{guidance}.mp4" for seed in (1, 2) for guidance in (1, 7)}
    assert names <= {path.name for path in folder.iterdir()}
    with av.open(str(folder / "sheet.mp4")) as sheet:
        [stream] = sheet.streams.video
        assert stream.frames == 9
        assert stream.width > 2 * 320
    assert (folder / "sheet.png").read_bytes().startswith(b"\x89PNG")
    (folder / "seed-2_guidance_scale-7.mp4").unlink()
    first = (folder / "seed-1_guidance_scale-1.mp4").stat().st_mtime_ns
    code, said = grid(*words)
    assert (code, "1 made, 3 were there, 0 failed" in said) == (0, True), said
    assert (folder / "seed-1_guidance_scale-1.mp4").stat().st_mtime_ns == first
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert {line["seed"] for line in lines if "seed" in line} == {1, 2}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["a ball"], "--x"),
        (["a ball", "--x", "stepps=1"], "stepps"),
        (["a ball", "--x", "steps=a,b"], "steps"),
        (["a ball", "--x", "steps=1,2", "--y", "steps=3"], "--y"),
    ],
)
def test_mistakes_are_told_before_a_model_is_loaded(words: list[str], told: str, tmp_path: Path) -> None:
    code, said = grid(*words, "--model", str(tmp_path / "nowhere"), "-o", str(tmp_path / "out"))
    assert code == 2
    assert told in said
    assert "nowhere" not in said
    assert not (tmp_path / "out").exists()
