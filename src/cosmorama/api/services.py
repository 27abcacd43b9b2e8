"""What the routes share: one of each per application, and what a request's headers ask for."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request

from cosmorama.api.metrics import Metrics
from cosmorama.engine.pool import ModelPool
from cosmorama.errors import CancelledError, InvalidRequestError, Problem, QueueFullError
from cosmorama.jobs.model import JobOptions, job_options
from cosmorama.jobs.service import Jobs
from cosmorama.settings import Settings

T = TypeVar("T")
WAITING_PER_KEY, WAITING = 8, 64
"""Requests of one key, and of all clients of a server without keys, that may be in one line."""


class Turns:
    """A line in front of a few threads, for what takes seconds and is no job: of one key only so many stand in it.

    Args:
        threads: How many have their turn at a time.
        what: What is done, for messages.
    """

    def __init__(self, threads: int, what: str) -> None:
        self._free = asyncio.Semaphore(threads)
        # Its own: who has left his turn may have left a thread that is still busy.
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=what)
        self._what = what
        self._owners: Counter[str] = Counter()

    @asynccontextmanager
    async def turn(self, owner: str) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
        """Wait for a turn; `(function, *arguments)` is then called in a thread by what this gives.

        Raises:
            QueueFullError: too many of this owner stand in the line.
        """
        if self._owners[owner] >= (WAITING_PER_KEY if owner else WAITING):
            raise QueueFullError(f"{self._owners[owner]} {self._what} are being made for you; try again in a moment", 1)
        self._owners[owner] += 1
        try:
            async with self._free:
                yield partial(asyncio.get_running_loop().run_in_executor, self._threads)
        finally:
            self._owners[owner] -= 1

    def close(self) -> None:
        """Have nothing more done."""
        self._threads.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of a running server."""

    settings: Settings
    supervisor: ModelPool
    metrics: Metrics
    jobs: Jobs
    pictures: Turns = field(default_factory=lambda: Turns(2, "pictures"))
    sheets: Turns = field(default_factory=lambda: Turns(1, "sheets"))
    """One at a time: every clip of a sheet is decoded for it."""
    again: Turns = field(default_factory=lambda: Turns(2, "videos"))
    """Of requests to make something of what is kept: each holds it in memory until it is accepted."""
    texts: Turns = field(default_factory=lambda: Turns(2, "texts"))
    captions: Turns = field(default_factory=lambda: Turns(2, "descriptions"))
    """Apart from the texts, which wait for nobody's picture."""

    def close(self) -> None:
        """Have nothing more done."""
        for turns in (self.pictures, self.sheets, self.again, self.texts, self.captions):
            turns.close()


async def services_of(request: Request) -> Services:
    """The services of the application that serves `request`, whose address says nothing in two ways.

    Raises:
        InvalidRequestError: a parameter has two values, of which one would be lost without a word.
    """
    # Not awaiting anything; but FastAPI calls a plain function in another thread, at every request.
    if request.scope["query_string"]:
        for name in request.query_params:
            _only(request.query_params.getlist(name), name)
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


ServicesOf = Annotated[Services, Depends(services_of)]
"""A route's parameter of this type is given the services."""
OPTION_HEADERS = {
    "priority": "X-Cosmorama-Priority",
    "deadline_s": "X-Cosmorama-Deadline-S",
    "idempotency_key": "Idempotency-Key",
}
"""The headers that tell a job's options, on every path that makes one."""


def owner_of(request: Request) -> str:
    """Whose jobs a client may see and makes: what `RequireKey` found; empty where the server has no keys."""
    owner: str = getattr(request.state, "owner", "")
    return owner


def release(request: Request) -> None:
    """Let others have what `api.middleware` keeps for a request: its body is dealt with, and it only waits now."""
    for give_back in getattr(request.state, "release", ()):
        give_back()


async def client_gone(request: Request) -> None:
    """Return when the client of a request, whose body was read, goes away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def while_wanted(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What a request is answered with; given up when its client goes away.

    Raises:
        CancelledError: it did.
    """
    working, gone = asyncio.create_task(work), asyncio.create_task(client_gone(request))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise CancelledError("the client went away")
    finally:
        await ended(working, gone)


async def ended(*tasks: asyncio.Task[Any]) -> None:
    """Cancel what is not done of some tasks, and wait for it."""
    for task in tasks:
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def options_of(request: Request) -> JobOptions:
    """What the headers say of a job.

    Raises:
        InvalidRequestError: naming the header that is wrong.
    """
    given = {name: _only(request.headers.getlist(header), header) for name, header in OPTION_HEADERS.items()}
    return job_options(given, names=OPTION_HEADERS, strict=False)


def _only(values: list[str], name: str) -> str | None:
    """The one value that was given under a name, if any."""
    if len(set(values)) > 1:
        raise InvalidRequestError(Problem(name, ", ".join(values), "one value"))
    return values[0] if values else None


def page_limit(text: str) -> int:
    """How many entries of a list a client asks for, as an integer; whether so many are given is not decided here.

    Raises:
        InvalidRequestError: it is none.
    """
    if not (text.isascii() and text.isdecimal()) or len(text) > 9:
        raise InvalidRequestError(Problem("limit", text, "an integer from 1 to 100"))
    return int(text)
