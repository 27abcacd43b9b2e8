"""How much clients may have of the process that answers all of them: of its event loop, and of its memory and time."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections import Counter
from weakref import WeakValueDictionary

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cosmorama.api.errors import BodyError, envelope
from cosmorama.api.middleware import QUIET_PATHS, SAFE_METHODS

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


class TakeTurns:
    """Begins only as many requests at a time as leave the event loop to others.

    A millisecond of work for each of four hundred that come together is most of a second for who comes after them,
    since the loop serves in the order of arrival. So requests begin in turns of their clients, however many connections
    each of them has, and health and metrics wait for none. A place is kept until the answer begins or the request only
    waits, and no longer than `TURN_S`.

    Args:
        app: What is behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._places = asyncio.Semaphore(AT_ONCE)
        self._clients: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on in its turn."""
        if scope["type"] != "http" or scope["path"] in QUIET_PATHS:
            await self._app(scope, receive, send)
            return
        held = list[asyncio.Semaphore]()

        def leave() -> None:
            while held:
                held.pop().release()

        async def leaving(message: Message) -> None:
            leave()
            await send(message)

        scope.setdefault("state", {}).setdefault("release", []).append(leave)
        own = self._clients.setdefault(_client(scope), asyncio.Semaphore(PER_CLIENT))
        late: asyncio.TimerHandle | None = None
        try:
            # They are given in the order in which they were asked for, and of a client only so many ask at a time.
            for places in (own, self._places):
                await places.acquire()
                held.append(places)
            late = asyncio.get_running_loop().call_later(TURN_S, leave)
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
    """What one client is known by: its IPv4 address, or the first half of its IPv6 address."""
    is_4 = ":" not in address or address.startswith("::ffff:")
    return address if is_4 else str(ipaddress.IPv6Network((address.partition("%")[0], 64), strict=False))


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
