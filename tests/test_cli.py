"""The command line, as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path
from zipfile import ZipFile

from typer.testing import CliRunner, Result

from cosmorama.cli import app

SMALL = ["--steps", "1", "--frames", "1", "--size", "960x704", "--seed", "3"]


def cosmorama(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_generate_writes_the_file_and_tells_seed_prompt_and_timings(tiny_checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "deep" / "clip.mp4"
    result = cosmorama("generate", "a red ball", "--model", str(tiny_checkpoint), "-o", str(output), *SMALL)
    assert result.exit_code == 0, result.output
    assert output.stat().st_size > 0
    for part in (str(output), "seed 3", "denoise", "decode", "prompt: "):
        assert part in result.output


def test_json_is_one_object(tiny_checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "clip.gif"
    result = cosmorama("generate", "a red ball", "--model", str(tiny_checkpoint), "-o", str(output), "--json", *SMALL)
    figures = json.loads(result.stdout)
    assert (figures["seed"], figures["frames"], figures["path"]) == (3, 1, str(output))
    assert figures["timings"]["denoise"] > 0


def test_every_sampling_knob_reaches_the_result(tiny_checkpoint: Path, tmp_path: Path) -> None:
    def frames_with(*knobs: str) -> bytes:
        output = tmp_path / "clip.zip"
        arguments = ["a red ball", "--model", str(tiny_checkpoint), "-o", str(output), *SMALL, "--steps", "3", *knobs]
        result = cosmorama("generate", *arguments)
        assert result.exit_code == 0, result.output
        with ZipFile(output) as frames:
            return frames.read(frames.namelist()[0])

    plain = frames_with()
    assert frames_with("--reuse", "0") == plain
    for knobs in (
        ["--guidance-interval", "0", "0.4"],
        ["--guidance-rescale", "0.7"],
        ["--guidance-scale", "2"],
        ["--solver", "unipc"],
    ):
        assert frames_with(*knobs) != plain, knobs


def test_a_mistake_is_one_sentence_and_exit_status_2(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = ["--model", str(tiny_checkpoint), "-o", str(tmp_path / "clip.mp4")]
    for arguments, said in [
        (["a ball", "--steps", "99"], "1 to 50"),
        (["a ball", "--size", "huge"], "1280x704"),
        (["a ball", "--solver", "heun"], "euler, unipc"),
        (["a ball", "--guidance-interval", "0.5", "2"], "guidance_interval"),
        (["a ball", "--flow-shift", "-1"], "flow_shift"),
        (["a ball", "--vae-tiling", "256"], "vae_tiling"),
        ([], "prompt"),
        (["--image", str(tmp_path / "nowhere.png")], "nowhere.png"),
    ]:
        result = cosmorama("generate", *arguments, *model)
        assert result.exit_code == 2, (arguments, result.output)
        assert said in result.output
        assert "Traceback" not in result.output
    assert cosmorama("generate", "a ball", "--model", "nothing").exit_code == 2


def test_models_lists_what_can_be_loaded_by_name() -> None:
    assert "microcosm:" in cosmorama("models").output
