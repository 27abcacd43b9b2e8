"""The studio: the page at `/` on which a person makes clips, varies them and compares them.

Plain files, served as they are. The page knows the server only by its public routes, so whatever it does, any client
can do. It needs no key to be loaded, since it holds nothing of anybody; it asks for one when the server does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse, JSONResponse
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

_FOLDER = Path(__file__).parent / "static"
_PREFIX = "/studio"
HEADERS = {
    # Nothing comes from elsewhere and nothing goes elsewhere. Clips and pictures are fetched by the page's own scripts,
    # which can send a key, and shown as blobs.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; "
        "media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # A browser asks whether they changed, so that a new release is seen at once.
    "Cache-Control": "no-cache",
}


def is_page(path: str) -> bool:
    """Whether a path is the page or one of its files."""
    return path == "/" or path.startswith(f"{_PREFIX}/")


def mount(app: FastAPI, servers: Sequence[str] = ()) -> None:
    """Serve the page at `/` and its files under `/studio/`.

    Args:
        app: What serves it.
        servers: Addresses, each with a slash at its end, of other servers whose jobs its history shows. The page may
            ask them and nobody else.
    """
    policy = HEADERS["Content-Security-Policy"].replace(
        "connect-src 'self'", " ".join(("connect-src 'self'", *servers))
    )
    headers = HEADERS | {"Content-Security-Policy": policy}

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page() -> Response:
        return FileResponse(_FOLDER / "index.html", headers=headers)

    @app.get(f"{_PREFIX}/servers.json", include_in_schema=False)
    async def others() -> Response:
        return JSONResponse(list(servers), headers=HEADERS)

    app.mount(_PREFIX, _Files(directory=_FOLDER), name="studio")


class _Files(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response
