"""What happens around every request: who may come in, how much may be sent and how slowly, counting, and the log."""

from __future__ import annotations

import hmac
import ipaddress
import logging
import re
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from secrets import token_hex
from urllib.parse import urlsplit

from pydantic import SecretStr
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cosmorama.api.errors import envelope
from cosmorama.api.metrics import Metrics
from cosmorama.errors import InvalidRequestError, Problem
from cosmorama.studio import is_page

log = logging.getLogger(__name__)
access_log = logging.getLogger("cosmorama.access")

OPEN_PATHS = ("/v1/health/live", "/v1/health/ready", "/health")
"""Orchestrators ask these without a key."""
DOCUMENTATION = re.compile(r"/|/docs(/.*)?|/openapi\.json|/static-offline-docs/.*")
"""A browser asks for these without a key; the page then asks its reader for one. They say what is public anyway."""
QUIET_PATHS = (*OPEN_PATHS, "/v1/metrics", "/metrics")
"""Asked all the time, by machines."""
INFERENCE_PATH = re.compile(r"/v1/(infer|jobs|videos|videos/sync|videos/[^/]+/remix|images/generations)")
"""What makes work when it is posted to."""
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
REQUEST_ID = "X-Request-Id"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


class RequireKey:
    """Lets in only who has one of the keys, before a byte of the body is read.

    Behind it, `request.state.owner` is a digest of the client's key and `request.state.key_name` the key's name: what
    stands before the colon in `NAME:KEY`, or the digest's beginning.

    Args:
        app: What is behind it.
        keys: The keys and their names, see `named_keys`.
    """

    def __init__(self, app: ASGIApp, keys: Mapping[bytes, str]) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on or answer 401."""
        path = scope.get("path", "")
        if scope["type"] != "http" or path in OPEN_PATHS or is_page(path) or DOCUMENTATION.fullmatch(path):
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


def named_keys(secrets: Iterable[SecretStr]) -> dict[bytes, str]:
    """The keys in `KEY` or `NAME:KEY`, each with its name or the beginning of its digest.

    Raises:
        InvalidRequestError: a key is empty, which would let in who sends none, or two names have the same one.
    """
    found: dict[bytes, str] = {}
    for key, name in map(_key_and_name, secrets):
        if found.setdefault(key, name) != name:
            both = f"the same key for {found[key]} and {name}"
            raise InvalidRequestError(Problem("api_keys", both, "a key of their own for everybody"))
    return found


def _key_and_name(secret: SecretStr) -> tuple[bytes, str]:
    name, colon, key = secret.get_secret_value().partition(":")
    if not colon:
        name, key = "", name
    name, encoded = name.strip(), key.strip().encode()
    if not any(map(str.isalnum, key)):  # what is left of variables that were not filled in
        raise InvalidRequestError(
            Problem("api_keys", f"{name}:" if colon else "", "KEY or NAME:KEY, none of them empty")
        )
    return encoded, name or key_owner(encoded)[:8]


class LocalOnly:
    """What a server without keys has instead of them: only programs may use it, and pages of its own, not other pages.

    A page of another origin cannot read answers, but its browser does send forms; and a page whose name is made to
    resolve to this machine (DNS rebinding) could read them too. So requests under a name that the public DNS could
    have are refused, and so is what a browser says another page sends.

    Args:
        app: What is behind it.
        hosts: Further names that this server is reached by.
        origins: Pages that may use it (`cors_origins`); * for all.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str], origins: Sequence[str]) -> None:
        self._app = app
        self._hosts = {host.lower().rstrip(".") for host in (*hosts, socket.gethostname(), socket.getfqdn())}
        self._origins = {origin.lower().rstrip("/") for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on or answer 403."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            reason = self._refusal(scope["method"], Headers(scope=scope))
            if reason is not None:
                await envelope(403, "forbidden_error", reason)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, method: str, headers: Headers) -> str | None:
        host = headers.get("host", "")
        if host and not self._is_local(host):
            return (
                f"this server has no API keys and answers only under local names, not under {host[:80]!r}; its "
                "operator can add the name to COSMORAMA_ALLOWED_HOSTS, or set COSMORAMA_API_KEYS"
            )
        site, origin = headers.get("sec-fetch-site"), headers.get("origin", "").lower()
        if method in SAFE_METHODS or site in ("same-origin", "none") or "*" in self._origins:
            return None
        foreign = origin not in self._origins and _netloc(origin) != host.lower() if origin else site is not None
        if not foreign:
            return None
        return (
            f"this server has no API keys and takes nothing from pages of another origin ({origin[:80] or site}); its "
            "operator can add the origin to COSMORAMA_CORS_ORIGINS"
        )

    def _is_local(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        if name in self._hosts or "." not in name or name.endswith((".localhost", ".local", ".internal")):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _netloc(origin: str) -> str:
    """Host and port of an origin, without the port that its scheme has anyway; empty for `null` and what is none."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return ""
    return parts.netloc.removesuffix({"http": ":80", "https": ":443"}.get(parts.scheme, ":"))


class CountInference:
    """Counts inference requests and how they were answered, those that the server itself failed in too."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, counting it."""
        if scope["type"] != "http" or scope["method"] != "POST" or not INFERENCE_PATH.fullmatch(scope["path"]):
            await self._app(scope, receive, send)
            return
        answered = False

        async def counted(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                self._metrics.answered(message["status"])
            await send(message)

        self._metrics.received(scope.get("state", {}).get("key_name"))
        try:
            await self._app(scope, receive, counted)
        except ClientDisconnect:
            raise
        except Exception:
            if not answered:
                self._metrics.answered(500)
            raise


class Trace:
    """Gives every request an id (the client's own `X-Request-Id`, or a new one), answers bugs, and writes the log.

    The id is in the answer, and in the lines of the access log (logger `cosmorama.access`), which leaves out what
    machines ask all the time.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if _REQUEST_ID.fullmatch(given) else token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        begun_at, status = time.monotonic(), 0

        async def marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        try:
            await self._app(scope, receive, marked)
        except ClientDisconnect:
            status = status or 499  # it went away while it sent its body: nobody is there to be answered
        except Exception:
            # The traceback is for the log; a client is told nothing of the inside.
            log.exception("request %s failed", request_id)
            if status:
                raise
            text = f"the server failed in a way it should not; its log says more under {request_id}"
            await envelope(500, "internal_error", text)(scope, receive, marked)
        finally:
            if scope["path"] not in QUIET_PATHS:
                client = scope.get("client") or ("-",)
                key = scope.get("state", {}).get("key_name", "-")
                access_log.info(
                    "%s %s %s %d %.3f s key=%s id=%s",
                    client[0],
                    scope["method"],
                    scope["path"][:200],
                    status,
                    time.monotonic() - begun_at,
                    key,
                    request_id,
                )
