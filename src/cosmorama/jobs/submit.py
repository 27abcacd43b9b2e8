"""How a request becomes a job on the disk: checks, inline media, the queue's limits, and one flush for many."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from secrets import token_hex
from typing import Any

from cosmorama.engine.pool import ModelPool
from cosmorama.engine.scheduler import PRIORITIES, Priority
from cosmorama.errors import InvalidRequestError, NotReadyError, Problem, QueueFullError
from cosmorama.jobs.files import Artifacts, place_media, take_media
from cosmorama.jobs.model import Job, StoreUnavailableError
from cosmorama.jobs.queue import Board
from cosmorama.jobs.store import Limits, NewJob, Store, fingerprint
from cosmorama.jobs.webhooks import check_url
from cosmorama.request import GenerationRequest, Usual
from cosmorama.resolve import resolve
from cosmorama.settings import Settings

MAX_LABELS = 16

DEADLINES = "a number of seconds, more than 0 and at most 1000000000"


def is_deadline(seconds: float) -> bool:
    """Whether a job can be given so much time; see `DEADLINES`."""
    return 0 < seconds <= 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How a job is to be treated, apart from what it is to make; the fields are the arguments of `Jobs.submit`."""

    dialect: str
    priority: Priority = "normal"
    idempotency_key: str | None = None
    deadline_s: float | None = None
    owner: str = ""
    webhook_url: str | None = None
    metadata: Mapping[str, str]
    attached: bool = False

    def check(self, *, webhooks: bool) -> None:
        """Check everything that no model is needed for; `webhooks`: whether this server sends any.

        Raises:
            InvalidRequestError: a value is outside its range.
        """
        problems = []
        key, labels = self.idempotency_key, self.metadata
        if self.priority not in PRIORITIES:
            problems.append(Problem("priority", self.priority, f"one of {', '.join(PRIORITIES)}"))
        if key is not None and not 1 <= len(key) <= 255:
            problems.append(Problem("Idempotency-Key", key, "1 to 255 characters"))
        if self.deadline_s is not None and not is_deadline(self.deadline_s):
            problems.append(Problem("deadline_s", self.deadline_s, DEADLINES))
        if len(labels) > MAX_LABELS or any(len(name) > 64 or len(value) > 512 for name, value in labels.items()):
            accepted = f"at most {MAX_LABELS} names of 64 and values of 512 characters"
            problems.append(Problem("metadata", labels, accepted))
        if problems:
            raise InvalidRequestError(*problems)
        if self.webhook_url is None:
            return
        if not webhooks:
            raise InvalidRequestError(
                Problem("webhook_url", self.webhook_url, "none: this server has no webhook secret")
            )
        check_url(self.webhook_url)


class Intake:
    """Accepts requests.

    Args:
        settings: The limits, and what is used where a request does not say.
        store, call: The store, and how to call its blocking methods.
        artifacts: Where inline media goes.
        supervisor: Who knows what the models take.
        board: Who knows when the next place is free.
        server: The name that jobs for clients of this process are marked with.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        call: Callable[..., Awaitable[Any]],
        artifacts: Artifacts,
        supervisor: ModelPool,
        board: Board,
        server: str,
    ) -> None:
        self._settings = settings
        self._store = store
        self._call = call
        self._artifacts = artifacts
        self._supervisor = supervisor
        self._board = board
        self._server = server
        self._arriving: list[tuple[NewJob, asyncio.Future[str]]] = []
        self._accepting: asyncio.Task[None] | None = None

    @property
    def _limits(self) -> Limits:
        """How many jobs may be unfinished; those that run are the workers' of the whole fleet."""
        return Limits(self._settings.max_queue, self._supervisor.places, self._settings.max_jobs_per_key)

    async def accept(self, request: GenerationRequest, terms: Terms) -> Job | str:
        """Make a job of a request; the id of an earlier job, where the idempotency key was used for it.

        Raises:
            CosmoramaError: as `Jobs.submit`.
        """
        terms.check(webhooks=self._settings.webhook_secret is not None)
        new, blobs = await self._new(request, terms)
        # Media is large: what the queue has no room for is not written down first.
        foreseen = await self._call(self._store.foresee, new, self._limits) if blobs else None
        if foreseen is not None:
            return self._told(foreseen)
        accepted = ""
        try:
            for where, blob in blobs.items():
                await asyncio.to_thread(self._artifacts.put, f"inputs/{new.id}/{where}", blob)
            accepted = await self._put(new)
        finally:
            if blobs and accepted != new.id:
                with suppress(StoreUnavailableError):
                    await asyncio.to_thread(self._artifacts.remove, new.id)
        return new.job if accepted == new.id else accepted

    async def stop(self) -> None:
        """Refuse what is being accepted; what the store has by now it keeps."""
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.gather(self._accepting, return_exceptions=True)

    async def _new(self, request: GenerationRequest, terms: Terms) -> tuple[NewJob, dict[str, bytes]]:
        """The job, checked against its model, and its inline media."""
        model = self._supervisor.find(request.model)
        capabilities = await self._supervisor.capabilities_of(model)
        if terms.attached and not self._supervisor.ready:  # who waits on a connection is told now
            raise NotReadyError(self._supervisor.reason)
        # With its seed drawn here, a request that is begun a second time stays the same request.
        bare = replace(resolve(_with_defaults(request, self._settings), capabilities), model=model)
        blobs: dict[str, bytes] = {}
        if request.mode != "text2world":
            bare, blobs = await asyncio.to_thread(take_media, bare, self._settings.max_input_bytes)
        job_id, now = f"job_{token_hex(12)}", time.time()
        new = NewJob(
            id=job_id,
            request=place_media(bare, f"inputs/{job_id}") if blobs else bare,
            dialect=terms.dialect,
            model=model,
            owner=terms.owner,
            priority=terms.priority,
            fingerprint=""
            if terms.idempotency_key is None
            else fingerprint(terms.dialect, replace(bare, seed=request.seed), blobs),
            created_at=now,
            labels=terms.metadata,
            idempotency_key=terms.idempotency_key,
            deadline_s=terms.deadline_s,
            webhook_url=terms.webhook_url,
            waiter=self._server if terms.attached else None,
            blob_bytes=sum(map(len, blobs.values())),
        )
        return new, blobs

    async def _put(self, new: NewJob) -> str:
        """Put a job on the disk, together with those that arrive meanwhile: a flush costs the same for all of them."""
        accepted: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._arriving.append((new, accepted))
        if len(self._arriving) == 1:
            self._accepting = asyncio.create_task(self._put_all())
        return await accepted

    async def _put_all(self) -> None:
        while self._arriving:
            batch = list(self._arriving)
            try:
                answers = await self._call(self._store.accept, [new for new, _ in batch], self._limits)
            except BaseException as error:
                answers = [error if isinstance(error, Exception) else NotReadyError("stopping")] * len(batch)
            del self._arriving[: len(batch)]
            for (_, accepted), answer in zip(batch, answers, strict=True):
                if accepted.done():
                    continue
                try:
                    accepted.set_result(self._told(answer))
                except Exception as error:
                    accepted.set_exception(error)

    def _told(self, answer: str | Exception) -> str:
        """The store's answer: a job's id, or an error to raise."""
        if isinstance(answer, str):
            return answer
        if isinstance(answer, QueueFullError):
            answer.retry_after_s = self._board.next_free_s
        raise answer


def _with_defaults(request: GenerationRequest, settings: Settings) -> GenerationRequest:
    """The request with the server's choice where it made none; a model that does not take it goes without."""
    if request.reuse is not None or not settings.reuse:
        return request
    return replace(request, usual=replace(request.usual or Usual(), reuse=settings.reuse))
