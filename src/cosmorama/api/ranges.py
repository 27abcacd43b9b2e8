"""A clip or parts of it (RFC 9110, section 14). Where it is a local file, that is Starlette's business."""

from __future__ import annotations

import re

from fastapi import Request, Response
from fastapi.responses import FileResponse, StreamingResponse

from cosmorama.jobs.content import Content

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def content_answer(request: Request, content: Content) -> Response:
    """A clip as it is, or the part of it that the `Range` header names."""
    if content.path is None:
        return _ranged(request, content)
    return FileResponse(
        content.path, media_type=content.media_type, filename=content.name, content_disposition_type="inline"
    )


def _ranged(request: Request, content: Content) -> Response:
    """The part that the `Range` header names, or the whole; several parts at once are answered with the whole."""
    headers = {
        "Accept-Ranges": "bytes",
        "Content-Disposition": f'inline; filename="{content.name}"',
        # A clip never changes: its key, of one attempt of one job, is name enough.
        "ETag": f'"{content.name}-{content.size}"',
    }
    asked = _RANGE.fullmatch(request.headers.get("range", ""))
    if asked is None or not any(asked.groups()) or request.headers.get("if-range", headers["ETag"]) != headers["ETag"]:
        headers["Content-Length"] = str(content.size)
        return StreamingResponse(content.read(), media_type=content.media_type, headers=headers)
    first, last = asked.groups()
    start = int(first) if first else max(content.size - int(last), 0)
    stop = min(int(last) + 1, content.size) if first and last else content.size
    if start >= content.size or start >= stop:
        return Response(status_code=416, headers={"Content-Range": f"bytes */{content.size}"})
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{content.size}"
    headers["Content-Length"] = str(stop - start)
    return StreamingResponse(content.read(start, stop), 206, headers, content.media_type)
