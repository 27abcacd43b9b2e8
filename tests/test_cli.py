"""The command line, as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from cosmorama.cli import app

SMALL = ["--steps", "1", "--frames", "1", "--size", "960x704", "--seed", "3"]


def cosmorama(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_kinds_of_control_are_chosen_for_a_model_of_the_hub_alone(tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = ("--model", str(tiny_checkpoint), "--controls", "edge, depth", "-o", str(tmp_path / "x.mp4"))
    result = cosmorama("generate", "a ball", *options)
    assert result.exit_code != 0
    assert "controls is ('edge', 'depth'), but the folder" in " ".join(result.output.split())


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
        arguments = [
            "a red ball",
            "--model",
            str(tiny_checkpoint),
            "-o",
            str(output),
            "--force",
            *SMALL,
            "--steps",
            "3",
            *knobs,
        ]
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
        (["a ball", "--guidance-interval", "0.5", "2"], "--guidance-interval"),
        (["a ball", "--flow-shift", "-1"], "--flow-shift"),
        (["a ball", "--vae-tiling", "256"], "--vae-tiling"),
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


def test_a_file_that_is_there_is_not_replaced_unawares(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    there = tmp_path / "clip.gif"
    there.write_text("mine")
    arguments = ["generate", "a ball", "--model", str(tiny_checkpoint), *SMALL]
    refused = cosmorama(*arguments, "-o", "clip.gif")
    assert refused.exit_code == 2
    assert "clip.gif is there already; --force replaces it" in refused.output
    assert there.read_text() == "mine"
    assert cosmorama(*arguments, "-o", "clip.gif", "--force").exit_code == 0
    assert there.read_bytes().startswith(b"GIF8")
    for name in ("world.mp4", "world-2.mp4"):
        assert cosmorama(*arguments).exit_code == 0
        assert (tmp_path / name).exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.gif", "world-2.mp4", "world.mp4"]


def test_mistakes_are_told_in_the_words_of_the_shell_before_a_model_is_loaded(tmp_path: Path) -> None:
    for arguments, said in [
        ([], "a prompt is missing; expected a text"),
        (["a", "--seed", "-1"], "--seed: -1 is not accepted; expected an integer from 0 to 4294967295"),
        (["a", "--steps", "0"], "--steps: 0 is not accepted"),
        (["a", "--image", str(tmp_path / "none.png")], "--image: "),
        (["a", "--size", "²x²"], "--size: ²x² is not accepted; expected WIDTHxHEIGHT"),
        (["a", "--size", "huge"], "--size: huge is not accepted; expected WIDTHxHEIGHT"),
        (["a", "--control", "lidar"], "--control: lidar is not accepted; expected KIND[=FILE][:WEIGHT]"),
        (["a", "--keep", "middle"], "--keep: middle is not accepted; expected first or last"),
        (["a", "--quality", "11"], "--quality: 11 is not accepted"),
        (["a", "-o", "/proc/clip.mp4"], "/proc/"),
        (["a", "-o", "clip.avi"], "--output: clip.avi is not accepted; expected a file name ending in .mp4"),
        (["a", "--dtype", "int3"], "dtype: 'int3' is not accepted; expected float32 or bfloat16 or float16"),
        (["a", "--load-adapter", "night=/none.safetensors"], "/none.safetensors"),
        (["a", "--adapter", "day"], "--adapter: day is not accepted; expected one of --load-adapter: there is none"),
        (["a", "--adapter", "day", "--load-adapter", f"night={__file__}"], "one of --load-adapter: night"),
        (["a", "--solver", "dpm"], "--solver: dpm is not accepted; expected one of euler, unipc, dpmpp_2m, edm_euler"),
    ]:
        result = cosmorama("generate", *arguments, "--model", str(tmp_path / "no-model"))
        assert result.exit_code == 2, (arguments, result.output)
        assert said in result.output, (arguments, result.output)
        assert "null" not in result.output
        assert "no-model" not in result.output


def test_what_a_server_is_told_by_the_environment_holds_for_a_model_in_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COSMORAMA_DTYPE", "int3")
    monkeypatch.setenv("COSMORAMA_DEVICE", "auto:1")
    result = cosmorama("generate", "a", "--model", str(tmp_path / "no-model"))
    assert "dtype: 'int3' is not accepted; expected float32" in result.output
    assert "device" not in result.output


def test_a_model_that_is_not_there_is_told_before_anything_large_is_imported(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from cosmorama.cli import app\n"
        "for words in sys.argv[1:]:\n"
        "    result = CliRunner().invoke(app, words.split())\n"
        "    print(result.exit_code, result.output.splitlines()[-1])\n"
        "print(sorted({'torch', 'fastapi', 'diffusers'} & set(sys.modules)))\n"
    )
    serving = ("serve --model /nowhere", "worker --model ./nowhere", "serve --models a=microcosm,b=/no/where")
    calls = [*serving, f"serve --model {tmp_path}", f"generate x -o {tmp_path}/x.mp4 --model /nowhere"]
    run = subprocess.run(
        [sys.executable, "-c", program, *calls], capture_output=True, text=True, timeout=60, check=True
    )
    *told, imported = run.stdout.splitlines()
    assert all(line.startswith("2 cosmorama: ") for line in told), told
    assert [("there is no model" in line) for line in told] == [True, True, True, False, True]
    assert "is not a complete checkpoint" in told[3]
    assert imported == "[]"


@pytest.mark.parametrize("command", ["--help", "models list", "models show microcosm"])
def test_a_reader_that_has_read_enough_is_no_error(command: str) -> None:
    program = "from cosmorama.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", program, *command.split()], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        run.stdout.close()
        assert (run.wait(60), run.stderr.read()) == (0, "")


def test_version_and_completion(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cosmorama("--version").output.startswith("cosmorama 0.")
    assert "--show-completion" in cosmorama("--help").output


def test_doctor_has_a_line_for_everything_and_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COSMORAMA_PORT", "0")
    result = cosmorama("doctor", "--json")
    lines = {line["check"]: line for line in json.loads(result.stdout)}
    assert {"python", "serve", "torch", "model", "hub", "codecs", "settings", "port", "disk", "database"} <= set(lines)
    assert any(name.startswith("gpu") for name in lines)
    assert lines["python"]["ok"]
    monkeypatch.setenv("COSMORAMA_DATABASE_URL", "postgresql://me:hunter2@127.0.0.1:1/x")
    monkeypatch.setenv("COSMORAMA_SIZEPOLICY", "fit")
    result = cosmorama("doctor", "--model", str(tmp_path))
    assert result.exit_code == 1
    assert f"{tmp_path} is not a complete checkpoint" in result.output
    assert "did you mean COSMORAMA_SIZE_POLICY?" in result.output
    assert "cannot be used" in result.output
    assert "hunter2" not in result.output
    monkeypatch.setenv("COSMORAMA_PORT", "many")
    assert "COSMORAMA_PORT: 'many' is not accepted" in cosmorama("doctor").output


def test_an_error_of_the_program_itself_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import cosmorama.cli as c\n"
        "def fails(): raise ZeroDivisionError('by\\nzero')\n"
        "c.app.command()(fails)\n"
        "c.main()\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, "fails"], capture_output=True, text=True, check=False, timeout=60
    )
    assert run.returncode == 1
    assert run.stderr == "cosmorama: ZeroDivisionError: by zero (COSMORAMA_DEBUG=1 shows where)\n"


def test_flags_of_loading_reach_the_model(tiny_checkpoint: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        result = cosmorama(
            "generate", "a ball", "--model", str(tiny_checkpoint), "-o", str(tmp_path / "a.gif"), *SMALL,
            "--device", "cpu", "--dtype", "float32", "--threads", "2",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


BAD_FILES = {
    "text.png": b"hello\n",
    "empty.png": b"",
    "clip.png": b"\0\0\0\x18ftypisom\0\0\0\0isommp42\0\0\0\x08free",
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_no_picture_is_told_with_its_name_before_a_model_is_loaded(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(BAD_FILES[name])
    unloadable = ("--model", str(tmp_path / "no-model"))
    drive = str(tmp_path / "drive.json")
    Path(drive).write_text('{"domain": 100, "values": [[0, 0, 0]]}')
    asked = [
        (("generate", "a", "--image", str(tmp_path / name), *unloadable, "-o", str(tmp_path / "a.mp4")), "--image"),
        (("grid", "a", "--x", "seed=1,2", "--image", str(tmp_path / name), "-o", str(tmp_path / "g")), "--image"),
        (("jobs", "submit", "a", "--image", str(tmp_path / name)), "--image"),
        (
            ("play", "a", "--image", str(tmp_path / name), "--actions", str(tmp_path / "drive.json"), *unloadable),
            "--image",
        ),
    ]
    if name != "clip.png":
        for option, value in (("--video", ""), ("--control", "edge=")):
            words = ("generate", "a", option, f"{value}{tmp_path / name}", *unloadable)
            asked.append((words, option))
    for words, option in asked:
        result = cosmorama(*words)
        assert result.exit_code == 2, (words, result.output)
        assert f"cosmorama: {option} {tmp_path / name} is " in result.output, (words, result.output)


def test_a_damaged_picture_is_told_once_it_was_decoded(tiny_checkpoint: Path, tmp_path: Path) -> None:
    picture = tmp_path / "cut.png"
    Image.effect_noise((64, 64), 50).save(picture)
    picture.write_bytes(picture.read_bytes()[:2000])
    output = tmp_path / "a.mp4"
    words = ("generate", "a ball", "--image", str(picture), "--model", str(tiny_checkpoint), "-o", str(output))
    result = cosmorama(*words, *SMALL)
    assert result.exit_code == 2, result.output
    assert f"cosmorama: --image {picture} is damaged or cut off" in result.output
    assert list(tmp_path.iterdir()) == [picture]


def test_where_nothing_can_be_written_is_told_at_once_and_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.mp4").mkdir()
    for name, said in (
        ("/proc/a.mp4", "/proc/a.mp4 cannot be written: "),
        (str(tmp_path / "file" / "a.mp4"), "a.mp4 cannot be written: "),
        (f"{tmp_path}/{'a' * 300}.mp4", "cannot be written: File name too long"),
        (str(tmp_path / "folder.mp4"), "folder.mp4 is a folder"),
        ("", "--output: an empty text is not accepted"),
    ):
        result = cosmorama("generate", "a", "-o", name, "--force", "--model", str(tmp_path / "no-model"))
        assert result.exit_code == 2, (name, result.output)
        assert said in result.output, result.output
        assert ".part" not in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.mp4"]
