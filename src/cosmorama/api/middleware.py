"""What happens around every request: who may come in, and counting."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cosmorama.api.errors import envelope
from cosmorama.api.metrics import Metrics

OPEN_PATHS = ("/v1/health/live", "/v1/health/ready")
"""Orchestrators ask these without a key."""
INFERENCE_PATHS = ("/v1/infer",)


class RequireKey:
    """Lets in only who has one of the keys, before a byte of the body is read."""

    def __init__(self, app: ASGIApp, keys: Sequence[SecretStr]) -> None:
        self._app = app
        self._keys = [key.get_secret_value().encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on or answer 401."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._knows(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        refused = envelope(
            401,
            "authentication_error",
            "this server wants one of its API keys: send the header 'Authorization: Bearer KEY'",
            {"WWW-Authenticate": "Bearer"},
        )
        await refused(scope, receive, send)

    def _knows(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        # Compared in constant time, and with every key, so that the time taken tells nothing about them.
        matches = [hmac.compare_digest(given.strip().encode("latin-1"), key) for key in self._keys]
        return scheme.lower() == "bearer" and any(matches)


class CountInference:
    """Counts inference requests and how they were answered."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, counting it."""
        if scope["type"] != "http" or scope["path"] not in INFERENCE_PATHS or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.answered(message["status"])
            await send(message)

        self._metrics.received()
        await self._app(scope, receive, counted)
