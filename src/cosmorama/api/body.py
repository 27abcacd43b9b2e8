"""Reading a body, JSON or a form: never more than the limit, strictly typed, with errors that say what to do."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from typing import Any

import pydantic_core
from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from cosmorama.api.dialects.wire import Wire, validate
from cosmorama.api.errors import BodyError

OFF_LOOP_BYTES = 1 << 18
"""Bodies above this size are parsed and checked in a thread, so that the event loop can serve others meanwhile."""
MAX_COMMAS = 100_000
MAX_VALUES = 20_000
"""Fields and list entries in one body. The largest of real requests are the actions of a robot, a few thousand."""
MAX_FIELDS_OF_OBJECT = 200
MAX_DEPTH = 16
TEXT_ALLOWANCE_BYTES = 1 << 20
"""Room in a body for everything that is not the image or the video."""


def body_limit(max_input_bytes: int) -> int:
    """Largest body in bytes that can hold an image or video of `max_input_bytes` as base64."""
    return (max_input_bytes + 2) // 3 * 4 + TEXT_ALLOWANCE_BYTES


async def read_object(request: Request, limit: int) -> dict[str, Any]:
    """The body of `request`, a JSON object.

    Raises:
        BodyError: with status 413 as soon as more than `limit` bytes are announced or received, 415 for a body that
            is not called JSON, 422 for one that is no JSON object.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # Insisting on it also keeps web pages of other origins out: browsers ask first before they send this type.
    if media_type != "application/json":
        raise BodyError(f"the body's Content-Type must be application/json, not {media_type or 'empty'}", status=415)
    body = await read_bytes(request, limit)
    if len(body) <= OFF_LOOP_BYTES:
        return parse_object(body)
    return await asyncio.to_thread(parse_object, body)


async def read_json(request: Request, model: type[Wire], limit: int) -> Wire:
    """The body of `request` as a wire model; raises as `read_object` and `validate`."""
    return validate(await read_object(request, limit), model)


def parse_object(body: bytes | bytearray) -> dict[str, Any]:
    """A JSON object from its text.

    Raises:
        BodyError: it is not valid JSON, or not an object.
    """
    # Counted before it is believed: an entry costs a thousand times its own size until it is refused.
    if body.count(b",") > MAX_COMMAS:
        raise BodyError(f"the body has more than {MAX_COMMAS:,} commas; no request has so many values")
    try:
        value = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise BodyError(f"the body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise BodyError("the body must be a JSON object")
    _check_counts(value)
    return value


def _check_counts(body: dict[str, Any]) -> None:
    """Refuse what is nested too deep, or has more fields or values than any request."""
    values, level, depth = 0, list[Any]([("", body)]), 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise BodyError(f"{level[0][0]}: the body is nested deeper than {MAX_DEPTH} levels")
        below: list[Any] = []
        for where, node in level:
            most, kind = (MAX_FIELDS_OF_OBJECT, "fields") if isinstance(node, dict) else (MAX_VALUES, "values")
            if len(node) > most:
                raise BodyError(f"{where or 'the body'} has {len(node):,} {kind}; at most {most:,} are accepted")
            values += len(node)
            if values > MAX_VALUES:
                raise BodyError(f"the body has more than {MAX_VALUES:,} values in all")
            named = node.items() if isinstance(node, dict) else enumerate(node)
            below.extend((where or str(name)[:80], each) for name, each in named if isinstance(each, (dict, list)))
        level = below


async def read_bytes(request: Request, limit: int) -> bytearray:
    """The body of `request`.

    Raises:
        BodyError: with status 413 as soon as more than `limit` bytes are announced or received.
    """
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


async def read_form(request: Request, upload: str, limit: int) -> tuple[dict[str, str], bytes | None]:
    """The text fields of a multipart form, the last of each name, and the contents of the file called `upload`.

    A field called `upload` that is no file stays among the texts.

    Raises:
        BodyError: status 413 for more than `limit` bytes, 422 for a damaged form, too many fields or another file.
    """
    body = bytes(await read_bytes(request, limit))

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body
        yield b""  # what tells the parser that the form ends here

    try:
        parser = _FormParser(
            request.headers, stream(), max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES
        )
        # Files above this size would go to the disk; the body is in memory already.
        parser.spool_max_size = limit
        form = await parser.parse()
        if not parser.ended:
            await form.close()
            raise BodyError("the form is cut off: its closing boundary is missing", status=400)
    except MultiPartException as error:
        raise BodyError(f"the form cannot be read: {error.message}") from None
    except (KeyError, ValueError, AssertionError) as error:  # no boundary, header bytes that are no text
        raise BodyError(f"the form cannot be read: {error or type(error).__name__}") from None
    texts: dict[str, str] = {}
    data: bytes | None = None
    try:
        for name, value in form.multi_items():
            if not isinstance(value, UploadFile):
                texts[name] = value
            elif name == upload:
                data = await value.read() or None  # empty: no file was chosen
            else:
                raise BodyError(f"unknown file '{name}'; the one file of this form is called '{upload}'")
    finally:
        await form.close()
    return texts, data
