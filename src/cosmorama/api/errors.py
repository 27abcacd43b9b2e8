"""Every error leaves the server in one envelope: `{"error": {"message", "type", "code"}}`."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from cosmorama.errors import CosmoramaError

log = logging.getLogger(__name__)

RETRY_AFTER_S = 5
"""What a client is told that comes too early, where nothing better is known."""


class BodyError(CosmoramaError):
    """A request body that cannot be read as what it should be (HTTP 422, 413 or 415)."""

    kind = "invalid_request_error"

    def __init__(self, message: str, *, status: int = 422) -> None:
        self.status = status
        super().__init__(message)


def envelope(status: int, kind: str, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error as a response."""
    return JSONResponse({"error": {"message": message, "type": kind, "code": status}}, status, headers=headers)


def add_error_handlers(app: FastAPI) -> None:
    """Answer every exception with the envelope."""
    app.add_exception_handler(CosmoramaError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)


def answer(error: CosmoramaError) -> JSONResponse:
    """The response to an error that was raised on purpose."""
    headers = {}
    if error.status in (429, 503):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s or RETRY_AFTER_S)))
    return envelope(error.status, error.kind, str(error), headers)


async def _on_disconnect(request: Request, error: Exception) -> JSONResponse:
    # Nobody is there to read this; it is not a fault of the server either.
    return envelope(499, "cancelled", "the client went away while it sent its body")


async def _on_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, CosmoramaError)
    return answer(error)


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    path, method = request.url.path, request.method
    match error.status_code:
        case HTTPStatus.NOT_FOUND:
            return envelope(404, "not_found_error", f"there is nothing at {path}", error.headers)
        case HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = ", ".join(_methods(request))
            message = f"{path} takes {allowed}, not {method}"
            return envelope(405, "method_not_allowed_error", message, {"Allow": allowed})
    return envelope(error.status_code, "http_error", str(error.detail), error.headers)


def _methods(request: Request) -> list[str]:
    """What a path takes: the router itself tells of its first route there only."""
    return [
        method
        for method in ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in request.app.routes)
    ]
