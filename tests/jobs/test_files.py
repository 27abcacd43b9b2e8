"""Clips in the artifact store: whole or not there, whatever fails on the way."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from cosmorama.engine.outcome import Outcome
from cosmorama.errors import StoreUnavailableError
from cosmorama.jobs.database import Database
from cosmorama.jobs.files import Artifacts

OUTCOME = Outcome(Path("clip.mp4"), seed=1, prompt="p", width=8, height=8, frames=1, fps=24.0, timings={})


@pytest.fixture(params=["folder", "remote", "s3"])
def artifacts(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifacts:
    if request.param == "s3":
        for name, value in request.getfixturevalue("s3").items():
            monkeypatch.setenv(name, value)
        return Artifacts(f"s3://clips/{tmp_path.name}")
    return Artifacts(tmp_path / "store" if request.param == "folder" else f"memory://{tmp_path.name}")


def test_publishing_can_be_tried_again_wherever_it_failed(
    artifacts: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"a clip")
    with monkeypatch.context() as patch:

        def full(*_: object) -> None:
            raise StoreUnavailableError("No space left on device")

        patch.setattr(artifacts, "put", full)
        for _ in range(2):
            with pytest.raises(StoreUnavailableError):
                artifacts.publish(clip, "job", 1, media_type="video/mp4", outcome=OUTCOME)
    assert artifacts.published("job", 1) is None
    made = artifacts.publish(clip, "job", 1, media_type="video/mp4", outcome=OUTCOME)
    assert artifacts.published("job", 1) == made
    assert (artifacts.read(made.key), made.bytes) == (b"a clip", 6)
    assert not clip.exists()


def test_a_clip_is_copied_to_another_file_system_whole_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifacts = Artifacts(tmp_path / "store")
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"a clip")
    replace = Path.replace

    def from_elsewhere(self: Path, target: Path) -> Path:
        if self == clip:
            raise OSError(errno.EXDEV, "another file system")
        return replace(self, target)

    def half(source: Path, target: Path) -> None:
        Path(target).write_bytes(b"a c")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", from_elsewhere)
    with monkeypatch.context() as patch:
        patch.setattr("cosmorama.jobs.files.shutil.copyfile", half)
        with pytest.raises(StoreUnavailableError, match="it is full"):
            artifacts.publish(clip, "job", 1, media_type="video/mp4", outcome=OUTCOME)
    assert clip.exists()
    assert artifacts.published("job", 1) is None
    made = artifacts.publish(clip, "job", 1, media_type="video/mp4", outcome=OUTCOME)
    assert artifacts.read(made.key) == b"a clip"
    assert not clip.exists()


def test_what_belongs_to_a_job_is_found_and_removed(artifacts: Artifacts, tmp_path: Path) -> None:
    artifacts.put("inputs/job/image", b"a picture")
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"0123456789")
    made = artifacts.publish(clip, "job", 2, media_type="video/mp4", outcome=OUTCOME)
    assert set(artifacts.jobs()) == {"job"}
    artifacts.checkout(made.key, tmp_path / "copy.mp4")
    assert (tmp_path / "copy.mp4").read_bytes() == b"0123456789"
    artifacts.remove("job", inputs=False)
    assert artifacts.published("job", 2) is None
    assert artifacts.read("inputs/job/image") == b"a picture"
    artifacts.remove("job")
    assert set(artifacts.jobs()) == set()
    artifacts.remove("job")  # again, and nothing is wrong


def test_state_that_is_kept_elsewhere_is_as_private(tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    old = os.umask(0o022)
    try:
        Artifacts(folder / "artifacts").put("inputs/job/image", b"x")
        database = Database(f"sqlite:///{folder / 'jobs.sqlite3'}")
        database.create()
        for beside in folder.glob("jobs.sqlite3*"):
            assert beside.stat().st_mode & 0o077 == 0, beside
        database.close()
        assert (folder / "artifacts").stat().st_mode & 0o077 == 0
        shared = tmp_path / "shared"  # made by the operator, who knows who looks into it
        shared.mkdir()
        Artifacts(shared)
        assert shared.stat().st_mode & 0o077
    finally:
        os.umask(old)


def test_a_store_that_can_be_written_is_known(artifacts: Artifacts) -> None:
    for _ in range(2):
        artifacts.probe()
    assert list(artifacts.jobs()) == []


def test_a_bucket_that_is_not_there_cannot_be_written_and_is_named_by_its_store(
    s3: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    artifacts = Artifacts("s3://to-come/worlds")
    for _ in range(2):
        with pytest.raises(StoreUnavailableError) as told:
            artifacts.probe()
        assert "bucket does not exist" in told.value.logged
    fs = fsspec.filesystem("s3")
    fs.mkdir("to-come")
    artifacts.probe()
    fs.rm("to-come", recursive=True)  # and it may go again
    with pytest.raises(StoreUnavailableError):
        artifacts.probe()


def test_what_can_be_read_alone_is_found_out_by_writing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    artifacts, allowed = Artifacts(f"memory://{tmp_path.name}"), True
    write = MemoryFileSystem.pipe_file

    def guarded(self: MemoryFileSystem, path: str, value: bytes, **options: Any) -> None:
        if not allowed:
            raise PermissionError("Access Denied")
        write(self, path, value, **options)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", guarded)
    artifacts.probe()
    allowed = False
    with pytest.raises(StoreUnavailableError):
        artifacts.put("inputs/job/image", b"picture")
    with pytest.raises(StoreUnavailableError) as told:
        artifacts.probe()
    assert "Access Denied" in told.value.logged
