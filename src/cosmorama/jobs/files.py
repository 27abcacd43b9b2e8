"""Where inputs, results and clips being made are kept. Blocking.

    inputs/JOB/FIELD        what came inline with a request
    results/JOB/ATTEMPT/    the clip, and then `record.json`, which says that the clip is whole

These are in the artifact store: a local folder, or whatever fsspec knows (s3://, gs://, memory://, ...). Every attempt
has a key of its own, so that nothing is ever written over something that is being read, and a clip counts only once its
record is there: whoever finds the record after a crash need not make the clip again. Clips are made in a private folder
of the server; what a dead server left there is cleared by the next one to start.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import token_hex
from typing import cast

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from pydantic import TypeAdapter

from cosmorama.engine.outcome import Outcome
from cosmorama.errors import ContentGoneError, StoreUnavailableError
from cosmorama.media.fetch import FetchPolicy, load_bytes, parse_url, url_in
from cosmorama.media.sniff import known_kind
from cosmorama.media.source import map_media
from cosmorama.request import MediaSource, ResolvedRequest

PROBE_BYTES = 1 << 16
"""What must find room for the store to count as one that can be written."""
_RECORD = "record.json"
_MARKER = "writable"
"""What was written to see that a remote store can be."""


@dataclass(frozen=True, slots=True)
class Published:
    """A whole clip in the store."""

    key: str
    bytes: int
    media_type: str
    outcome: Outcome


_PUBLISHED: TypeAdapter[Published] = TypeAdapter(Published)


class Artifacts:
    """The store at one folder or URL."""

    def __init__(self, location: str | Path) -> None:
        try:
            # What is there changes by the hands of other servers too.
            self._fs, self._root = url_to_fs(str(location), use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise StoreUnavailableError(f"the artifact store cannot be used: {error} (COSMORAMA_ARTIFACTS)") from error
        self._local = isinstance(self._fs, LocalFileSystem)
        self._writable = False
        if self._local and not Path(self._root).exists():
            with suppress(OSError):  # the first probe says so
                make_private(Path(self._root))

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
                _sync(path.parent)
            else:
                self._fs.pipe_file(self._full(key), data)
        except Exception as error:
            self._writable = False
            raise _unavailable(error) from error

    def read(self, key: str) -> bytes:
        """The bytes of a key."""
        try:
            return cast("bytes", self._fs.cat_file(self._full(key)))
        except FileNotFoundError:
            raise ContentGoneError("the file is gone from the artifact store") from None
        except Exception as error:
            raise _unavailable(error) from error

    def publish(
        self, file: Path, job_id: str, attempt: int, *, media_type: str, outcome: Outcome, durable: bool = True
    ) -> Published:
        """Move a finished local file into the store. Where it fails it can be called again.

        Args:
            file: The clip; gone afterwards.
            job_id: Whose it is.
            attempt: Which of the job's.
            media_type: Of the clip.
            outcome: What was used to make it; of its path, the name is kept.
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
            self._writable = False
            raise _unavailable(error) from error
        made = Published(key, size, media_type, replace(outcome, path=Path(outcome.path.name)))
        if durable:
            self.put(f"results/{job_id}/{attempt}/{_RECORD}", _PUBLISHED.dump_json(made))
        file.unlink(missing_ok=True)
        return made

    def published(self, job_id: str, attempt: int) -> Published | None:
        """What an attempt published before its server died, if it came so far."""
        key = f"results/{job_id}/{attempt}/{_RECORD}"
        try:
            if not self._fs.exists(self._full(key)):
                return None
            record = json.loads(self.read(key))
            if isinstance(record["outcome"], str):  # as releases before 0.2 wrote it
                record["outcome"] = json.loads(record["outcome"])
            return _PUBLISHED.validate_python(record)
        except StoreUnavailableError:
            raise
        except (ContentGoneError, TypeError, ValueError, KeyError):  # removed meanwhile, or damaged: as good as none
            return None
        except Exception as error:
            raise _unavailable(error) from error

    def checkout(self, key: str, target: Path) -> None:
        """A private copy of a key in a local file; without copying where that is possible."""
        try:
            if self._local:
                try:
                    os.link(self._full(key), target)
                except FileNotFoundError:
                    raise
                except OSError:  # another file system, or one without links
                    shutil.copyfile(self._full(key), target)
            else:
                self._fs.get_file(self._full(key), str(target))
        except FileNotFoundError:
            raise ContentGoneError("the clip is gone from the artifact store") from None
        except Exception as error:
            raise _unavailable(error) from error

    def probe(self) -> None:
        """See whether the store can be written now; of a remote one that could be, only that it is still there.

        Raises:
            StoreUnavailableError: it cannot.
        """
        try:
            if not self._local:
                if not self._writable or not self._fs.exists(self._full(_MARKER)):
                    self._fs.pipe_file(self._full(_MARKER), bytes(PROBE_BYTES))
                self._writable = True
                return
            root = Path(self._root)
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=root) as file:
                file.write(bytes(PROBE_BYTES))
                file.flush()
        except Exception as error:
            self._writable = False
            raise _unavailable(error) from error

    def remove_attempt(self, job_id: str, attempt: int) -> None:
        """Remove what one attempt published."""
        self._remove(f"results/{job_id}/{attempt}")

    def remove(self, job_id: str, *, inputs: bool = True) -> None:
        """Remove a job's files; none is fine."""
        for folder in ("inputs", "results") if inputs else ("results",):
            self._remove(f"{folder}/{job_id}")

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
    except FileNotFoundError:
        raise
    except OSError:  # another file system
        partial = target.with_name(f".{target.name}.part")
        shutil.copyfile(file, partial)
        if durable:
            _sync(partial)
        partial.replace(target)
        file.unlink()
    if durable:
        _sync(target.parent)


def _sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _unavailable(error: Exception) -> StoreUnavailableError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    number = getattr(error, "errno", None)
    full = " (it is full)" if number in (errno.ENOSPC, errno.EDQUOT) else ""
    return StoreUnavailableError(f"the artifact store cannot be used now{full}; try again later", str(reason))


@dataclass(frozen=True, slots=True)
class Content:
    """A clip in the artifact store.

    Attributes:
        path: Where it is, if the store is a local folder.
        media_type: Such as `video/mp4`.
        size: In bytes.
        name: A file name for it, such as `job_0123.mp4`.
    """

    path: Path | None
    media_type: str
    size: int
    name: str


_LOCK = ".lock"


def make_private(folder: Path) -> None:
    """Make a folder that nobody else on the machine can look into, or close one of ours that others can."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = folder.stat()
    shared = state.st_mode & (stat.S_ISVTX | stat.S_ISGID) or folder.resolve() == Path.home()
    if state.st_uid == os.getuid() and state.st_mode & 0o077 and not shared:
        folder.chmod(0o700)


class TempDir:
    """One server's folder under `parent`. Its name is the server's identity in the job store.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(self, parent: Path) -> None:
        make_private(parent.parent)
        parent.mkdir(parents=True, exist_ok=True)
        _clear_dead(parent)
        self.server = f"{socket.gethostname()[:32]}-{os.getpid()}-{token_hex(4)}"
        self.folder = parent / self.server
        self.folder.mkdir()
        # The kernel lets go of it when the process ends, however that happens.
        self._lock = (self.folder / _LOCK).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def place(self, suffix: str) -> Path:
        """Where to put one clip: a path in a new folder of its own."""
        return Path(tempfile.mkdtemp(dir=self.folder)) / f"clip{suffix}"

    def close(self) -> None:
        """Delete the folder."""
        self._lock.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def discard(clip: Path) -> None:
    """Delete a clip that is in a folder of its own, and whatever else is in there."""
    shutil.rmtree(clip.parent, ignore_errors=True)


def _clear_dead(parent: Path) -> None:
    for lock in parent.glob(f"*/{_LOCK}"):
        with suppress(OSError), lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)


def take_media(request: ResolvedRequest, max_bytes: int) -> tuple[ResolvedRequest, dict[str, bytes]]:
    """Take the inline media out of a request: `(request with a Path in its place, blobs by that path)`.

    URLs stay; they are fetched when the job runs.

    Raises:
        MediaError: base64 or a URL that is none, what is no picture or clip, media over `max_bytes`, or a local file,
            which no client may name.
    """
    blobs: dict[str, bytes] = {}
    policy = FetchPolicy(allow_urls=False, allow_files=False, max_bytes=max_bytes)

    def take(where: str, source: MediaSource) -> MediaSource:
        called = request.called(where)
        if (address := url_in(source)) is not None:
            parse_url(address, called)
            return address
        blobs[where] = load_bytes(source, called, policy)
        known_kind(blobs[where], called, picture=where == "image")  # nobody is to wait in the queue to be told
        return Path(where)

    return map_media(request, take), blobs


def place_media(request: ResolvedRequest, prefix: str) -> ResolvedRequest:
    """Put `prefix` before the paths that `take_media` left."""
    return map_media(request, lambda _, source: Path(prefix) / source if isinstance(source, Path) else source)


def media_of(request: ResolvedRequest) -> dict[str, MediaSource]:
    """The pictures and clips of a request by where they stand in it, such as `image` or `controls.0.source`."""
    found: dict[str, MediaSource] = {}

    def note(where: str, source: MediaSource) -> MediaSource:
        found[where] = source
        return source

    map_media(request, note)
    return found


def restore_media(request: ResolvedRequest, read: Callable[[str], bytes]) -> ResolvedRequest:
    """Put the contents back where a request names artifacts."""
    return map_media(request, lambda _, source: read(str(source)) if isinstance(source, Path) else source)
