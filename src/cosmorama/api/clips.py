"""Answers that carry a clip: sent in pieces, so a large one is never held whole, and deleted once sent."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from fastapi.responses import FileResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from cosmorama.engine.outcome import Outcome

CHUNK_BYTES = 3 << 18
"""A multiple of three: base64 of the pieces joins to base64 of the whole."""


def discard(clip: Path) -> None:
    """Delete a clip and whatever else is in its folder."""
    shutil.rmtree(clip.parent, ignore_errors=True)


class ClipJSON(StreamingResponse):
    """`{clip_field: base64 of the clip, **fields}`."""

    def __init__(self, clip_field: str, clip: Path, fields: Mapping[str, Any]) -> None:
        self._clip = clip
        head = f'{{"{clip_field}":"'.encode()
        tail = b'",' + json.dumps(dict(fields), separators=(",", ":"))[1:].encode()
        length = len(head) + (clip.stat().st_size + 2) // 3 * 4 + len(tail)
        pieces = _pieces(head, clip, tail)
        super().__init__(pieces, media_type="application/json", headers={"Content-Length": str(length)})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer, and delete the clip even if the client does not wait for it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            discard(self._clip)


class ClipFile(FileResponse):
    """The clip itself, with what was used to make it in headers."""

    def __init__(self, outcome: Outcome, media_type: str) -> None:
        headers = {
            "X-Cosmorama-Seed": str(outcome.seed),
            # Headers are Latin-1 at best; percent-encoding carries any prompt.
            "X-Cosmorama-Prompt": quote(outcome.prompt),
        }
        super().__init__(outcome.path, media_type=media_type, headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file, and delete it even if the client does not wait for it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            discard(Path(self.path))


async def _pieces(head: bytes, clip: Path, tail: bytes) -> AsyncIterator[bytes]:
    yield head
    with clip.open("rb") as file:
        while chunk := await asyncio.to_thread(_encoded, file):
            yield chunk
    yield tail


def _encoded(file: BinaryIO) -> bytes:
    return base64.b64encode(file.read(CHUNK_BYTES))
