"""Reading a form with one upload: never more than the limit, in memory, and without surprises."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from cosmorama.api.body import read_bytes
from cosmorama.api.errors import BodyError

MAX_FIELDS = 64
MAX_FIELD_BYTES = 1 << 20


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
        parser = MultiPartParser(
            request.headers, stream(), max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES
        )
        # Files above this size would go to the disk; the body is in memory already.
        parser.spool_max_size = limit
        form = await parser.parse()
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
                data = await value.read()
            else:
                raise BodyError(f"unknown file '{name}'; the one file of this form is called '{upload}'")
    finally:
        await form.close()
    return texts, data
