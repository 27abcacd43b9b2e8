"""Many clips from a file, interrupted and started again."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from cosmorama import batch
from cosmorama.cli import app
from cosmorama.errors import WorkerError
from tests.serving import running_server

SMALL: dict[str, Any] = {"width": 960, "height": 704, "frames": 1, "steps": 1}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def manifest(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / batch.MANIFEST).read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if "name" in entry]


def cosmorama(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["batch", *map(str, arguments)])


def test_a_batch_in_this_process_goes_on_where_it_stopped(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rows = [{"id": "ball", "prompt": "a red ball", "seed": 1, **SMALL}, {"prompt": "a blue cube", "seed": 2, **SMALL}]
    source, out = write(tmp_path / "rows.jsonl", *rows), tmp_path / "out"
    first = cosmorama(source, "-o", out, "--model", tiny_checkpoint)
    assert first.exit_code == 0, first.output
    assert "2 made, 0 were there, 0 failed" in first.output
    assert [(entry["name"], entry["file"], entry["seed"]) for entry in manifest(out)] == [
        ("ball", "ball.mp4", 1),
        ("00002", "00002.mp4", 2),
    ]
    made = (out / "ball.mp4").stat().st_mtime_ns
    write(source, rows[0], {**rows[1], "seed": 3}, {"prompt": "a red cube", **SMALL})
    second = cosmorama(source, "-o", out, "--model", tiny_checkpoint)
    assert "2 made, 1 were there, 0 failed" in second.output
    assert (out / "ball.mp4").stat().st_mtime_ns == made
    (out / "ball.mp4").unlink()
    third = cosmorama(source, "-o", out, "--model", tiny_checkpoint)
    assert "1 made, 2 were there" in third.output
    assert sorted(path.name for path in out.iterdir()) == ["00002.mp4", "00003.mp4", "ball.mp4", "manifest.jsonl"]


def test_a_batch_on_a_server(tiny_checkpoint: Path, tmp_path: Path) -> None:
    Image.new("RGB", (96, 70), "orange").save(tmp_path / "start.png")
    rows = [{"id": f"clip-{seed}", "prompt": "a ball", "seed": seed, **SMALL} for seed in range(4)]
    rows.append({"id": "from-image", "image": "start.png", "output": {"container": "gif"}, **SMALL})
    rows.append({"id": "wrong", "prompt": "a ball", **SMALL, "steps": 99})
    source, out = write(tmp_path / "rows.jsonl", *rows), tmp_path / "out"
    with running_server(tiny_checkpoint, tmp_path / "server") as server:
        result = cosmorama(source, "-o", out, "--server", server.url, "--parallel", "3")
        assert result.exit_code == 1
        assert "5 made, 0 were there, 1 failed" in result.output
        assert "1 to 50" in result.output
        assert (out / "from-image.gif").read_bytes().startswith(b"GIF8")
        # As after a crash between the clip and the line about it: the server's job is found again, not made again.
        kept = [line for line in (out / batch.MANIFEST).read_text().splitlines() if "clip-2" not in line]
        (out / batch.MANIFEST).write_text("\n".join(kept) + "\n")
        before = server.metric("cosmorama_denoising_steps_total")
        again = cosmorama(source, "-o", out, "--server", server.url)
        assert "1 made, 4 were there, 1 failed" in again.output
        assert server.metric("cosmorama_denoising_steps_total") == before


def test_every_wrong_line_is_named(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text('{"prompt": "a", "stepz": 3}\n\nnonsense\n{"id": "../up"}\n{"id": "a"}\n{"id": "a"}\n')
    with pytest.raises(batch.RowsError) as caught:
        batch.read_rows(source)
    said = str(caught.value)
    assert [part.split(":")[0] for part in said.split("; ") if part.startswith("line")] == [
        "line 1",
        "line 3",
        "line 4",
        "line 6",
    ]
    assert "did you mean 'steps'" in said
    result = cosmorama(source, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert cosmorama(tmp_path / "nowhere.jsonl", "-o", tmp_path / "out").exit_code == 2


def test_a_row_that_failed_is_a_new_attempt_and_one_that_was_cut_off_the_same(tmp_path: Path) -> None:
    rows = batch.read_rows(write(tmp_path / "rows.jsonl", {"id": "a", "prompt": "x"}, {"id": "b", "prompt": "y"}))
    keys: list[dict[str, str]] = []
    broken = {"a"}

    async def make(row: batch.Row, output: Path, key: str) -> batch.Made:
        keys[-1][row.name] = key
        if row.name in broken:
            raise WorkerError("broken")
        output.write_bytes(b"clip")
        return batch.Made(1, row.body["prompt"], {})

    def run() -> batch.Report:
        keys.append({})
        return asyncio.run(batch.run(rows, tmp_path / "out", make, parallel=2))

    assert run().failed == {"a": "broken"}
    with (tmp_path / "out" / batch.MANIFEST).open("a") as file:
        file.write('{"name": "b", "finge')  # cut off
    broken.clear()
    assert (run().made, keys[1].keys()) == (["a"], {"a"})
    assert keys[0]["a"] != keys[1]["a"]
    for line in ("a", "b"):
        (tmp_path / "out" / f"{line}.mp4").unlink()
    assert sorted(run().made) == ["a", "b"]
    assert keys[2] == {"a": keys[1]["a"], "b": keys[0]["b"]}
    assert run().skipped == ["a", "b"]


def test_rows_come_in_any_format_and_local_files_belong_to_them(tmp_path: Path) -> None:
    (tmp_path / "start.png").write_bytes(b"one")
    source = write(
        tmp_path / "rows.jsonl",
        {"id": "ours", "prompt": "a ball", "width": 960, "height": 704},
        {"id": "predict1", "prompt": "a ball", "image": "start.png", "video_params": {"frames_count": 9}},
        {"prompt": "a line\u2028of its own\u0085"},
    )
    rows = {row.name: row for row in batch.read_rows(source)}
    assert list(rows) == ["ours", "predict1", "00003"]
    assert rows["ours"].body["dialect"] == "cosmorama"
    request = rows["predict1"].request
    assert request is not None
    assert (request.frames, request.image) == (9, tmp_path / "start.png")
    assert batch.with_files(rows["predict1"].body, tmp_path)["image"] == "b25l"
    before = rows["predict1"].fingerprint
    (tmp_path / "start.png").write_bytes(b"two")
    assert {row.name: row for row in batch.read_rows(source)}["predict1"].fingerprint != before
    other = {row.name: row for row in batch.read_rows(source, "another-model")}
    assert other["ours"].fingerprint != rows["ours"].fingerprint


def test_only_media_fields_take_files_and_the_fields_of_a_job_change_no_format(tmp_path: Path) -> None:
    (tmp_path / "start.png").write_bytes(b"one")
    told = {"metadata": {"source": "start.png"}, "priority": 1, "deadline_s": 60, "webhook_url": "start.png"}
    row = {"id": "a", "prompt": "start.png", "image": "start.png", "frames": 9, "model": "start.png", **told}
    (read,) = batch.read_rows(write(tmp_path / "rows.jsonl", row))
    assert (read.body["dialect"], read.request is not None and read.request.frames) == ("cosmorama", 9)
    sent = batch.with_files(read.body, tmp_path)
    assert sent == {key: value for key, value in row.items() if key != "id"} | {"image": "b25l", "dialect": "cosmorama"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_rows_are_read_in_every_encoding_of_json(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "rows.jsonl").write_bytes('{"id": "a", "prompt": "ein roter Würfel"}\n'.encode(encoding))
    (row,) = batch.read_rows(tmp_path / "rows.jsonl")
    assert row.body["prompt"] == "ein roter Würfel"


def test_text_of_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes('{"id": "a", "prompt": "ein roter Würfel"}\n'.encode("latin-1"))
    with pytest.raises(batch.RowsError, match=r"rows.jsonl is not UTF-8 text: byte \d+ is 0xfc"):
        batch.read_rows(tmp_path / "rows.jsonl")


def test_a_manifest_that_was_cut_off_within_a_letter_is_gone_on_from(tmp_path: Path) -> None:
    rows = batch.read_rows(write(tmp_path / "rows.jsonl", {"id": "a", "prompt": "x"}))

    async def make(row: batch.Row, output: Path, key: str) -> batch.Made:
        output.write_bytes(b"clip")
        return batch.Made(1, "ein Würfel", {})

    assert asyncio.run(batch.run(rows, tmp_path / "out", make)).made == ["a"]
    manifest = tmp_path / "out" / batch.MANIFEST
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[: whole.index("ü".encode()) + 1])
    assert asyncio.run(batch.run(rows, tmp_path / "out", make)).made == ["a"]
    assert asyncio.run(batch.run(rows, tmp_path / "out", make)).skipped == ["a"]


def test_a_line_that_holds_a_separator_is_made_once(tmp_path: Path) -> None:
    rows = batch.read_rows(write(tmp_path / "rows.jsonl", {"id": "a", "prompt": "one\u2028two\u0085three"}))

    async def make(row: batch.Row, output: Path, key: str) -> batch.Made:
        output.write_bytes(b"clip")
        return batch.Made(1, "one\u2028two\u0085three", {})

    assert asyncio.run(batch.run(rows, tmp_path / "out", make)).made == ["a"]
    assert asyncio.run(batch.run(rows, tmp_path / "out", make)).skipped == ["a"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"prompt": "a"},\n {"prompt": "b"}]', "is a JSON array; a JSON object per line is needed"),
        ('{\n  "inference_type": "x",\n  "samples": []\n}', "is one JSON object over several lines"),
        ('"a text"', "line 1: this is no JSON object"),
        ("", "holds no rows"),
        ("\n \n", "holds no rows"),
    ],
)
def test_other_json_is_named_for_what_it_is(tmp_path: Path, text: str, said: str) -> None:
    source = tmp_path / "rows.json"
    source.write_text(text)
    result = cosmorama(source, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert said in result.output
    assert result.output.count("\n") == 1
