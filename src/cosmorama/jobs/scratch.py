"""A server's private folder for clips being made; what a dead server left is cleared by the next one to start."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import tempfile
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

_LOCK = ".lock"


class Scratch:
    """One server's folder under `parent`. Its name is the server's identity in the job store.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(self, parent: Path) -> None:
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

    @staticmethod
    def discard(clip: Path) -> None:
        """Delete a clip and whatever else is in its folder."""
        shutil.rmtree(clip.parent, ignore_errors=True)

    def close(self) -> None:
        """Delete the folder."""
        self._lock.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def _clear_dead(parent: Path) -> None:
    for lock in parent.glob(f"*/{_LOCK}"):
        with suppress(OSError), lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
