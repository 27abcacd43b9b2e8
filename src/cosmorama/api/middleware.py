"""What happens around every request: who may come in, counting, the log, and how much clients may have of the process
that answers all of them: of its event loop, and of its memory and time."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import re
import socket
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from secrets import token_hex
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from pydantic import SecretStr
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cosmorama.api.errors import BodyError, envelope
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
INFERENCE_PATH = re.compile(
    r"/v1/(infer|jobs|videos(/(sync|edits|extensions|[^/]+/(remix|extend)))?|(images|actions)/generations)"
)
"""What makes work when it is posted to."""
AT_ONCE, PER_CLIENT = 16, 8
"""Requests that work on their answers at a time: of all clients, and of one."""
TURN_S = 0.05
"""Longest time that a request counts as one that works."""
SMALL_BODY_BYTES = 1 << 16
"""Bodies up to this size are read without asking whether there is room for them."""
BODY_WAIT_S = 20.0
"""For how long a large body waits for others to be dealt with, before its client is told to come again."""
BODY_IDLE_S = 30.0
"""Longest pause between two pieces of a body."""
BODY_BASE_S, BODY_BYTES_PER_S = 60.0, 200_000
"""A body of n bytes may take `BODY_BASE_S + n / BODY_BYTES_PER_S` seconds to arrive."""
LARGE_BYTES_PER_S = 60e6
"""Of all large bodies together: faster, reading them would be all that the event loop does. Clients take turns."""
CATCH_UP_S = 0.01
"""So much of a pause that was longer than asked for is made good."""
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


class TakeTurns:
    """Begins only as many requests at a time as leave the event loop to others.

    A millisecond of work for each of four hundred that come together is most of a second for who comes after them,
    since the loop serves in the order of arrival. So requests begin in turns of their clients, however many connections
    each of them has, and checks of health wait only for others of the same client. A place is kept until the answer
    begins or the request only waits, and no longer than `TURN_S`.

    Args:
        app: What is behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._places = asyncio.Semaphore(AT_ONCE)
        self._clients: WeakValueDictionary[tuple[str, bool], asyncio.Semaphore] = WeakValueDictionary()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on in its turn."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        held, loop = list[asyncio.Semaphore](), asyncio.get_running_loop()

        def leave() -> None:
            while held:
                # Not at once: of requests that wait for nothing, as many as have come would begin before the loop
                # looks for others.
                loop.call_soon(held.pop().release)

        async def leaving(message: Message) -> None:
            leave()
            await send(message)

        scope.setdefault("state", {}).setdefault("release", []).append(leave)
        health, client = scope["path"] in OPEN_PATHS, _client(scope)
        own = self._clients.setdefault((client, health), asyncio.Semaphore(PER_CLIENT))
        late: asyncio.TimerHandle | None = None
        try:
            # They are given in the order in which they were asked for, and of a client only so many ask at a time.
            for places in (own,) if health else (own, self._places):
                await places.acquire()
                held.append(places)
            late = loop.call_later(TURN_S, leave)
            await self._app(scope, receive, leaving)
        finally:
            leave()
            if late is not None:
                late.cancel()


class LimitBodies:
    """Bounds what is held of bodies at a time, how fast they are read, and how long they take.

    Args:
        app: What is behind it.
        most_bytes: Of all bodies above `SMALL_BODY_BYTES` that are read or dealt with at a time. Half of it is the most
            of one key, or of one address where there are no keys: who sends slowly does not keep others out. An IPv6
            address counts with its /64, of which one client has them all.
        largest_bytes: What a body may have, where it does not announce its size.
    """

    def __init__(self, app: ASGIApp, most_bytes: int, largest_bytes: int) -> None:
        self._app = app
        self._free = max(most_bytes, largest_bytes)
        self._per_client = max(most_bytes // 2, largest_bytes)
        self._clients: Counter[str] = Counter()
        self._largest = largest_bytes
        self._waiting: list[asyncio.Future[None]] = []
        self._next_at = 0.0
        self._reading = asyncio.Lock()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 503 where there is no room for its body in time."""
        if scope["type"] != "http" or scope["method"] in SAFE_METHODS:
            await self._app(scope, receive, send)
            return
        size = self._size(Headers(scope=scope))
        held = size if size > SMALL_BODY_BYTES else 0
        client = _client(scope)
        try:
            async with asyncio.timeout(BODY_WAIT_S):
                await self._take(client, held)
        except TimeoutError:
            busy = "too many large bodies are being read at the moment; try again later"
            await envelope(503, "not_ready", busy, {"Retry-After": "5"})(scope, receive, send)
            return

        def release() -> None:
            nonlocal held
            self._give(client, held)
            held = 0

        scope.setdefault("state", {}).setdefault("release", []).append(release)
        try:
            timed = _timed(receive, BODY_BASE_S + size / BODY_BYTES_PER_S)
            await self._app(scope, self._paced(client, timed) if held else timed, send)
        finally:
            release()

    def _paced(self, client: str, receive: Receive) -> Receive:
        """`receive` that leaves the event loop to others between the pieces of a large body."""
        turn = self._turns.setdefault(client, asyncio.Lock())

        async def paced() -> Message:
            message = await receive()
            # Locks are given in the order in which they were asked for. Of each client one piece at a time asks, so
            # all clients take turns, however many connections one of them has.
            async with turn, self._reading:
                now = time.monotonic()
                self._next_at = max(self._next_at, now - CATCH_UP_S) + len(message.get("body", b"")) / LARGE_BYTES_PER_S
                if self._next_at > now:
                    await asyncio.sleep(self._next_at - now)
            return message

        return paced

    def _size(self, headers: Headers) -> int:
        announced = headers.get("content-length", "")
        if announced.isdecimal() and len(announced) < 16:
            return min(int(announced), self._largest)  # of more than that, nothing is read
        return self._largest if "transfer-encoding" in headers else 0

    async def _take(self, client: str, size: int) -> None:
        while size and (self._free < size or self._clients[client] + size > self._per_client):
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            try:
                await waiter
            finally:
                self._waiting.remove(waiter)
        self._free -= size
        self._clients[client] += size

    def _give(self, client: str, size: int) -> None:
        self._free += size
        self._clients[client] -= size
        if not self._clients[client]:
            del self._clients[client]
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)


def _client(scope: Scope) -> str:
    """Who sent a request: the owner of its key or, where there are no keys, its address."""
    return scope.get("state", {}).get("owner") or _network((scope.get("client") or ("",))[0])


def _network(address: str) -> str:
    """What one client is known by: the first half of its IPv6 address, else what it or a proxy says."""
    with suppress(ValueError):
        if ":" in address and not address.startswith("::ffff:"):
            return str(ipaddress.IPv6Network((address.partition("%")[0], 64), strict=False))
    return address


def _timed(receive: Receive, limit_s: float) -> Receive:
    """`receive` that raises a `BodyError` (408) when a body takes longer, or rests for too long."""
    ends_at, reading = time.monotonic() + limit_s, True

    async def timed() -> Message:
        nonlocal reading
        if not reading:
            return await receive()
        try:
            async with asyncio.timeout(min(BODY_IDLE_S, ends_at - time.monotonic())):
                message = await receive()
        except TimeoutError:
            raise BodyError("the body did not arrive in time", status=408) from None
        reading = message["type"] == "http.request" and message.get("more_body", False)
        return message

    return timed
