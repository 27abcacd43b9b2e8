"""Reading a body, JSON or a form: never more than the limit, strictly typed, with errors that say what to do."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import pydantic_core
from fastapi import Request, Response
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from cosmorama.api.dialects.wire import Wire, parse_object, validate
from cosmorama.api.errors import BodyError

T = TypeVar("T")
# One large body at a time: each would keep the others, and the event loop, from running for a moment.
_reader = ThreadPoolExecutor(1, thread_name_prefix="bodies")
OFF_LOOP_BYTES = 1 << 18
"""Bodies above this size are parsed and checked in a thread, so that the event loop can serve others meanwhile."""
ROW_BYTES = 1 << 13
"""What a row of a page counts as, by the time that it takes to write it."""
TEXT_ALLOWANCE_BYTES = 1 << 20
"""Room in a body for everything that is not the image or the video."""


def body_limit(max_input_bytes: int) -> int:
    """Largest body in bytes that can hold an image or video of `max_input_bytes` as base64."""
    return (max_input_bytes + 2) // 3 * 4 + TEXT_ALLOWANCE_BYTES


def json_body(schema: dict[str, Any]) -> dict[str, Any]:
    """What a route says of its body in `openapi_extra`."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


async def read_object(request: Request, limit: int, *, or_form: bool = False) -> dict[str, Any]:
    """The body of `request`, a JSON object; `or_form` says that its route takes a form, too.

    Raises:
        BodyError: with status 413 as soon as more than `limit` bytes are announced or received, 415 for a body that
            is not called JSON, 422 for one that is no JSON object.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # Insisting on it also keeps web pages of other origins out: browsers ask first before they send this type.
    if media_type != "application/json":
        wanted = "application/json or multipart/form-data" if or_form else "application/json"
        raise BodyError(f"the body's Content-Type must be {wanted}, not {media_type or 'empty'}", status=415)
    body = await read_bytes(request, limit)
    return await off_loop(partial(parse_object, body), len(body))


async def off_loop(read: Callable[[], T], size: int) -> T:
    """What a body is read as, or an answer written as; a large one is in a thread."""
    if size <= OFF_LOOP_BYTES:
        return read()
    return await asyncio.get_running_loop().run_in_executor(_reader, read)


async def page_answer(write: Callable[[], dict[str, Any]], rows: int) -> Response:
    """A page of so many rows in JSON."""
    text = await off_loop(lambda: pydantic_core.to_json(write()), rows * ROW_BYTES)
    return Response(text, media_type="application/json")


async def read_json(request: Request, model: type[Wire], limit: int) -> Wire:
    """The body of `request` as a wire model; raises as `read_object` and `validate`."""
    return validate(await read_object(request, limit), model)


async def read_bytes(request: Request, limit: int) -> bytearray:
    """The body of `request`.

    Raises:
        BodyError: with status 413 as soon as more than `limit` bytes are announced or received, 415 where they are
            compressed.
    """
    encoding = request.headers.get("content-encoding") or "identity"
    if encoding.lower() != "identity":  # undoing it would let a small body become a large one
        raise BodyError(f"the body's Content-Encoding must be identity, not {encoding}: send it as it is", status=415)
    announced = request.headers.get("content-length", "")
    body = bytearray()
    if not (announced.isdecimal() and int(announced) > limit):
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                break
        else:
            return body
    raise too_large(limit)


def too_large(limit: int) -> BodyError:
    """The answer to a body of more than `limit` bytes."""
    return BodyError(f"the body is larger than this server accepts ({limit:,} bytes)", status=413)


MAX_FIELDS = 64

MAX_FIELD_BYTES = 1 << 20


class _FormParser(MultiPartParser):
    """Takes a part of a media type for a file, whether it has a filename, one in the RFC 5987 form only, or none.

    Attributes:
        ended: Whether the form's closing boundary was seen.
    """

    ended = False

    def on_end(self) -> None:
        """Called by the parser at the closing boundary."""
        self.ended = True

    def on_headers_finished(self) -> None:
        """Called by the parser for every part."""
        part = self._current_part
        disposition = part.content_disposition or b""
        _, options = parse_options_header(disposition)
        kinds = [value.lower() for name, value in part.item_headers if name.lower() == b"content-type"]
        is_media = any(not kind.startswith((b"text/", b"application/json")) for kind in kinds)
        if b"filename" not in options and (is_media or re.search(rb"filename\*\s*=", disposition)):
            part.content_disposition = disposition + b'; filename="upload"'
        super().on_headers_finished()


Uploads = dict[str, bytes]
"""What is in the files of a form, by the names of their fields."""


async def read_form(request: Request, uploads: Collection[str], limit: int) -> tuple[dict[str, str], Uploads]:
    """The text fields of a multipart form and its files, whose names are among `uploads`.

    A field of such a name that is no file stays among the texts.

    Raises:
        BodyError: status 413 for more than `limit` bytes, 422 for a damaged form, too many fields, two of
            a name, or another file.
    """
    body = await read_bytes(request, limit)
    reading = partial(_parsed_form, request.headers, body, uploads)
    if len(body) <= OFF_LOOP_BYTES:
        return await reading()
    return await off_loop(lambda: asyncio.run(reading()), len(body))


async def _parsed_form(headers: Headers, body: bytearray, uploads: Collection[str]) -> tuple[dict[str, str], Uploads]:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield bytes(body)
        yield b""  # what tells the parser that the form ends here

    try:
        parser = _FormParser(
            headers, stream(), max_files=len(uploads) + 1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES
        )
        # Files above this size would go to the disk; the body is in memory already.
        parser.spool_max_size = len(body)
        form = await parser.parse()
        if not parser.ended:
            await form.close()
            raise BodyError("the form is cut off: its closing boundary is missing", status=400)
    except MultiPartException as error:
        raise BodyError(f"the form cannot be read: {error.message}") from None
    except (KeyError, ValueError, AssertionError) as error:  # no boundary, header bytes that are no text
        raise BodyError(f"the form cannot be read: {error or type(error).__name__}") from None
    texts: dict[str, str] = {}
    found: Uploads = {}
    try:
        for name, value in form.multi_items():
            if not isinstance(value, UploadFile):
                if texts.setdefault(name, value) != value:
                    raise BodyError(f"the form has two fields '{name[:64]}'; send one of them")
            elif name not in uploads:
                raise BodyError(f"unknown file '{name[:64]}'; a file of this form is called {' or '.join(uploads)}")
            elif (data := await value.read()) and found.setdefault(name, data) != data:  # empty: no file was chosen
                raise BodyError(f"the form has two files '{name}'; send one of them")
    finally:
        await form.close()
    return texts, found
