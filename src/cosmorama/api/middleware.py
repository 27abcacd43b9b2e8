"""What happens around every request: who may come in, and counting."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from hashlib import sha256

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cosmorama.api.errors import envelope
from cosmorama.api.metrics import Metrics

OPEN_PATHS = ("/v1/health/live", "/v1/health/ready")
"""Orchestrators ask these without a key."""
QUIET_PATHS = (*OPEN_PATHS, "/v1/metrics", "/metrics")
"""Asked all the time, by machines."""
INFERENCE_PATHS = ("/v1/infer", "/v1/jobs", "/v1/videos")
"""What makes work when it is posted to."""


class RequireKey:
    """Lets in only who has one of the keys, before a byte of the body is read.

    Behind it, `request.state.owner` is a digest of the client's key and `request.state.key_name` the key's name: what
    stands before the colon in `NAME:KEY`, or the digest's beginning.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[SecretStr]) -> None:
        self._app = app
        self._keys = dict(map(_key_and_name, keys))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on or answer 401."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        key = self._known(Headers(scope=scope))
        if key is not None:
            scope.setdefault("state", {}).update(owner=key_owner(key), key_name=self._keys[key])
            await self._app(scope, receive, send)
            return
        refused = envelope(
            401,
            "authentication_error",
            "this server wants one of its API keys: send the header 'Authorization: Bearer KEY'",
            {"WWW-Authenticate": "Bearer"},
        )
        await refused(scope, receive, send)

    def _known(self, headers: Headers) -> bytes | None:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        # Compared in constant time, and with every key, so that the time taken tells nothing about them.
        matches = [key for key in self._keys if hmac.compare_digest(given.strip().encode("latin-1"), key)]
        return matches[0] if matches and scheme.lower() == "bearer" else None


def key_owner(key: bytes) -> str:
    """Whose jobs the holder of a key makes and sees, without telling the key: 32 hexadecimal digits."""
    return sha256(key).hexdigest()[:32]


def _key_and_name(secret: SecretStr) -> tuple[bytes, str]:
    name, colon, key = secret.get_secret_value().partition(":")
    if not colon:
        name, key = "", name
    encoded = key.encode()
    return encoded, name or key_owner(encoded)[:8]


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

        self._metrics.received(scope.get("state", {}).get("key_name"))
        await self._app(scope, receive, counted)
