"""Where inputs and results are kept: a local folder, or whatever fsspec knows (s3://, gs://, memory://, ...). Blocking.

    inputs/JOB/FIELD        what came inline with a request
    results/JOB/ATTEMPT/    the clip, and then `record.json`, which says that the clip is whole

Every attempt has a key of its own, so that nothing is ever written over something that is being read, and a clip counts
only once its record is there: whoever finds the record after a crash need not make the clip again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from cosmorama.jobs.record import StoreUnavailableError

CHUNK_BYTES = 1 << 20
_RECORD = "record.json"


@dataclass(frozen=True, slots=True)
class Published:
    """A whole clip in the store."""

    key: str
    bytes: int
    media_type: str
    outcome: str


class Artifacts:
    """The store at one folder or URL."""

    def __init__(self, location: str | Path) -> None:
        try:
            self._fs, self._root = url_to_fs(str(location))
        except (ImportError, ValueError) as error:
            raise StoreUnavailableError(f"the artifact store cannot be used: {error}") from error
        self._local = isinstance(self._fs, LocalFileSystem)

    def local_path(self, key: str) -> Path | None:
        """The file of a key, where keys are files of this machine."""
        return Path(self._full(key)) if self._local else None

    def put(self, key: str, data: bytes) -> None:
        """Store bytes; they are there whole, and on the disk, when this returns.

        Raises:
            StoreUnavailableError: here and below, for whatever goes wrong at the store, a full disk included.
        """
        try:
            if self._local:
                path = self._folder_for(key)
                partial = path.with_name(f".{path.name}.part")
                with partial.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(path)
            else:
                self._fs.pipe_file(self._full(key), data)
        except Exception as error:
            raise _unavailable(error) from error

    def read(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """The bytes of a key, or some of them."""
        try:
            return cast("bytes", self._fs.cat_file(self._full(key), start=start, end=stop))
        except Exception as error:
            raise _unavailable(error) from error

    def publish(
        self, file: Path, job_id: str, attempt: int, *, media_type: str, outcome: str, durable: bool = True
    ) -> Published:
        """Move a finished local file into the store. Where it fails it can be called again.

        Args:
            file: The clip; gone afterwards.
            job_id: Whose it is.
            attempt: Which of the job's.
            media_type: Of the clip.
            outcome: `pack_outcome` of it.
            durable: Whether it has to outlive a loss of power.
        """
        key = f"results/{job_id}/{attempt}/clip{file.suffix}"
        target = self.local_path(key)
        try:
            if target is None:
                self._fs.put_file(str(file), self._full(key))
            elif file.exists():  # otherwise an earlier try came as far as this, and failed at the record
                _move(file, self._folder_for(key), durable)
            size = (target or file).stat().st_size
        except Exception as error:
            raise _unavailable(error) from error
        record = {"key": key, "bytes": size, "media_type": media_type, "outcome": outcome}
        if durable:
            self.put(f"results/{job_id}/{attempt}/{_RECORD}", json.dumps(record).encode())
        file.unlink(missing_ok=True)
        return Published(**cast("dict[str, Any]", record))

    def published(self, job_id: str, attempt: int) -> Published | None:
        """What an attempt published before its server died, if it came so far."""
        key = f"results/{job_id}/{attempt}/{_RECORD}"
        try:
            if not self._fs.exists(self._full(key)):
                return None
            return Published(**json.loads(self.read(key)))
        except StoreUnavailableError:
            raise
        except Exception as error:
            raise _unavailable(error) from error

    def checkout(self, key: str, target: Path) -> None:
        """A private copy of a key in a local file; without copying where that is possible."""
        try:
            if self._local:
                try:
                    os.link(self._full(key), target)
                except OSError:  # another file system, or one without links
                    shutil.copyfile(self._full(key), target)
            else:
                self._fs.get_file(self._full(key), str(target))
        except Exception as error:
            raise _unavailable(error) from error

    def remove(self, job_id: str, *, inputs: bool = True, results: bool = True) -> None:
        """Remove a job's files; none is fine."""
        for folder, wanted in ((f"inputs/{job_id}", inputs), (f"results/{job_id}", results)):
            if wanted:
                self._remove(folder)

    def jobs(self) -> Iterator[str]:
        """Ids of the jobs that have files here."""
        yield from {*self._names("inputs"), *self._names("results")}

    def _names(self, folder: str) -> list[str]:
        try:
            if not self._fs.exists(self._full(folder)):
                return []
            return [str(name).rstrip("/").rpartition("/")[2] for name in self._fs.ls(self._full(folder), detail=False)]
        except FileNotFoundError:
            return []
        except Exception as error:
            raise _unavailable(error) from error

    def _remove(self, folder: str) -> None:
        try:
            self._fs.rm(self._full(folder), recursive=True)
        except FileNotFoundError:
            pass
        except Exception as error:
            raise _unavailable(error) from error

    def _folder_for(self, key: str) -> Path:
        path = Path(self._full(key))
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _full(self, key: str) -> str:
        return f"{self._root.rstrip('/')}/{key}"


def _move(file: Path, target: Path, durable: bool) -> None:
    if durable:
        _sync(file)
    try:
        file.replace(target)
    except OSError:  # another file system
        partial = target.with_name(f".{target.name}.part")
        shutil.copyfile(file, partial)
        if durable:
            _sync(partial)
        partial.replace(target)
        file.unlink()


def _sync(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def _unavailable(error: Exception) -> StoreUnavailableError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return StoreUnavailableError(f"the artifact store cannot be used now ({reason}); try again later")
