"""The clip of a job, wherever the artifact store keeps it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from cosmorama.jobs.artifacts import CHUNK_BYTES, Artifacts


@dataclass(frozen=True, slots=True)
class Content:
    """A clip in the artifact store.

    Attributes:
        key: What it is called there.
        path: Where it is, if the store is a local folder.
        media_type: Such as `video/mp4`.
        size: In bytes.
        name: A file name for it, such as `job_0123.mp4`.
    """

    artifacts: Artifacts
    key: str
    path: Path | None
    media_type: str
    size: int
    name: str

    async def read(self, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        """Bytes `start` to `stop` (exclusive; None: the end), in pieces."""
        end = self.size if stop is None else min(stop, self.size)
        while start < end:
            piece = await asyncio.to_thread(self.artifacts.read, self.key, start, min(start + CHUNK_BYTES, end))
            if not piece:
                return
            start += len(piece)
            yield piece
