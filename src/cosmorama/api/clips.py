"""Answers that carry a clip, whole or in parts (RFC 9110, section 14): sent in pieces, never held whole."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Query, Request, Response
from fastapi.responses import FileResponse
from starlette.types import Message, Receive, Scope, Send

from cosmorama.api.errors import envelope
from cosmorama.api.services import Services, owner_of, while_wanted
from cosmorama.engine.outcome import Outcome
from cosmorama.errors import ContentGoneError, InvalidRequestError, Problem, StorageFullError
from cosmorama.jobs.files import discard
from cosmorama.jobs.model import Job

CHUNK_BYTES = 3 << 15
"""A multiple of three: base64 of the pieces joins to base64 of the whole."""
STILLS = {"thumbnail": "image/webp", "spritesheet": "image/jpeg"}
"""Pictures that stand for a clip."""
Variant = Annotated[str, Query(description=f"video, {' or '.join(STILLS)}.")]
CONTENT: dict[str, Any] = {
    "summary": "The clip, or a picture of it",
    "response_class": Response,
    "responses": {
        200: {"description": "The file.", "content": {"video/mp4": {}, "image/webp": {}, "image/jpeg": {}}},
        206: {"description": "A part of it."},
    },
}
"""What the routes that answer with the content of a job say of themselves."""


async def _still_answer(request: Request, services: Services, job: Job, variant: str) -> Response:
    """A picture that stands for a job's clip: one of `STILLS`.

    Raises:
        InvalidRequestError: there is no such variant.
        MediaError: the job's file holds no frames.
        QueueFullError: too many pictures are made for this client.
    """
    if variant not in STILLS:
        raise InvalidRequestError(Problem("variant", variant, f"one of video, {', '.join(STILLS)}"))

    async def made() -> bytes:
        async with services.pictures.turn(owner_of(request)) as call:
            clip = await services.jobs.checkout(job)
            try:
                picture: bytes = await call(_still, variant, clip)
            finally:
                discard(clip)
            return picture

    picture = await while_wanted(request, made())
    # A job's clip never changes.
    headers = {"Cache-Control": "private, max-age=604800, immutable"}
    return Response(picture, media_type=STILLS[variant], headers=headers)


def _still(variant: str, clip: Path) -> bytes:
    from cosmorama.media import stills  # brings decoders, which a server that is never asked for one has no memory for

    return (stills.thumbnail if variant == "thumbnail" else stills.spritesheet)(clip)


MAX_HEADER_CHARACTERS = 1024
"""Of a text in a header: servers and clients have limits of their own, a few times as much."""


def _header(text: str) -> str:
    """A text percent-encoded, cut so that a header can carry it."""
    kept = text[:MAX_HEADER_CHARACTERS]
    while len(encoded := quote(kept)) > MAX_HEADER_CHARACTERS:
        kept = kept[: min(len(kept) - 1, len(kept) * MAX_HEADER_CHARACTERS // len(encoded) + 1)]
    return encoded


def timing(outcome: Outcome) -> dict[str, str]:
    """The header `Server-Timing`, in ms: the work of each stage, and `generation`, all of them together."""
    stages = {"generation": sum(outcome.timings.values()), **outcome.timings}
    return {"Server-Timing": ", ".join(f"{stage};dur={1000 * spent_s:.1f}" for stage, spent_s in stages.items())}


class _ClipOfAJob(FileResponse):
    """A clip where it is kept. The answer begins with its first bytes, so that one that was just removed is told so."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file.

        Raises:
            ContentGoneError: it was removed before it could be opened.
        """
        held, begun = list[Message](), False

        async def sending(message: Message) -> None:
            nonlocal begun
            held.append(message)
            if message["type"] != "http.response.start":
                begun = True
                while held:
                    await send(held.pop(0))

        try:
            await super().__call__(scope, receive, sending)
        except (FileNotFoundError, RuntimeError):  # the other is Starlette's word for it
            if begun:
                raise
            raise ContentGoneError("the clip was removed") from None


class DiscardedFile(FileResponse):
    """A file that goes with its folder once it was sent, even if the client does not wait for it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file, and delete it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            discard(Path(self.path))


class _Answer(DiscardedFile):
    """A file that is an answer, and no part of one: `Range` is for the clips of jobs."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file whole, and delete it."""
        headers = [pair for pair in scope["headers"] if pair[0] != b"range"]
        await super().__call__({**scope, "headers": headers}, receive, send)


class ClipJSON(_Answer):
    """`{clip_field: base64 of the clip, **fields}`.

    It is a file before it is sent: sending what a thread encodes meanwhile makes each piece wait for the interpreter,
    and with it everybody whom the event loop serves.

    Raises:
        StorageFullError: when it is to be sent, and there is no place for the file.
    """

    def __init__(self, clip_field: str, clip: Path, fields: Mapping[str, Any]) -> None:
        super().__init__(clip.with_suffix(".json"), media_type="application/json")
        self._clip, self._head = clip, f'{{"{clip_field}":"'.encode()
        self._tail = b'",' + json.dumps(dict(fields), separators=(",", ":"))[1:].encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer, and delete the clip even if the client does not wait for it."""
        try:
            await asyncio.to_thread(self._write)
        except BaseException as error:
            discard(self._clip)
            if isinstance(error, OSError):
                raise StorageFullError(f"the server has no place for the answer ({error.strerror})") from error
            raise
        await super().__call__(scope, receive, send)

    def _write(self) -> None:
        with self._clip.open("rb") as clip, Path(self.path).open("wb") as file:
            file.write(self._head)
            while chunk := clip.read(CHUNK_BYTES):
                file.write(base64.b64encode(chunk))
            file.write(self._tail)


class ClipFile(_Answer):
    """The clip itself, with what was used to make it in headers."""

    def __init__(self, outcome: Outcome, media_type: str) -> None:
        headers = {
            "X-Cosmorama-Seed": str(outcome.seed),
            # Headers are Latin-1 at best; percent-encoding carries any prompt.
            "X-Cosmorama-Prompt": _header(outcome.prompt),
            **timing(outcome),
        }
        if outcome.warnings:
            headers["X-Cosmorama-Warnings"] = _header("; ".join(outcome.warnings))
        super().__init__(outcome.path, media_type=media_type, headers=headers)


_PARTS = re.compile(r"bytes=\s*(\d{1,18}-\d{0,18}|-\d{1,18})(\s*,\s*(\d{1,18}-\d{0,18}|-\d{1,18}))*\s*")
_PART = re.compile(r"(\d*)-(\d*)")


async def content_answer(request: Request, services: Services, job: Job, variant: str) -> Response:
    """A picture of a job's clip, or it as it is, or its parts that the `Range` header names; 416 where it has
    none of them, 304 where the client has the clip.

    A header that is not understood, another unit's for example, is answered with the whole, as the RFC says.

    Raises:
        JobConflictError, ContentGoneError: as `Jobs.content`.
    """
    if variant != "video":
        return await _still_answer(request, services, job, variant)
    content = services.jobs.content(job)
    # A job's clip never changes.
    tag = f'"{content.name}-{content.size}"'
    if _is_known(request.headers.get("if-none-match", ""), tag):
        return Response(status_code=304, headers={"ETag": tag})
    asked = _understood(request.headers.get("range", ""))
    if asked and "if-range" not in request.headers and all(_is_beyond(part, content.size) for part in asked):
        message = f"the clip has {content.size} bytes, and none of the Range {request.headers['range'][:80]!r}"
        return envelope(416, "invalid_request_error", message, {"Content-Range": f"bytes */{content.size}"})
    # Starlette would refuse, in words of its own, what is not understood and what is partly beyond the end.
    within = ["-".join(part) for part in asked if not _is_beyond(part, content.size)]
    headers = [pair for pair in request.scope["headers"] if pair[0] != b"range"]
    request.scope["headers"] = [*headers, (b"range", f"bytes={','.join(within)}".encode())] if within else headers
    here = content.path is not None
    return (_ClipOfAJob if here else DiscardedFile)(
        content.path or await services.jobs.checkout(job),
        headers={"ETag": tag} | ({} if job.result is None else timing(job.result.outcome)),
        media_type=content.media_type,
        filename=content.name,
        content_disposition_type="inline",
    )


def _is_known(header: str, tag: str) -> bool:
    """Whether an `If-None-Match` header names what is there; weak tags do too."""
    named = (part.strip().removeprefix("W/") for part in header.split(","))
    return any(one in (tag, "*") for one in named)


def _understood(header: str) -> list[tuple[str, str]]:
    """First and last byte of each part that a `Range` header asks for; none where it is not understood."""
    if _PARTS.fullmatch(header) is None:
        return []
    parts = [(first, last) for first, last in _PART.findall(header)]
    return [] if any(first and last and int(first) > int(last) for first, last in parts) else parts


def _is_beyond(part: tuple[str, str], size: int) -> bool:
    first, last = part
    return int(first) >= size if first else not int(last)
