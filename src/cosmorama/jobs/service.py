"""The jobs of a server: submit, look, wait, cancel. What routes and dialects program against."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import token_hex
from typing import Any, Unpack

from sqlalchemy.exc import DBAPIError

from cosmorama.engine.pool import ModelPool
from cosmorama.errors import (
    CancelledError,
    ContentGoneError,
    InvalidRequestError,
    JobConflictError,
    JobNotFoundError,
    NotReadyError,
    Problem,
    QueueFullError,
    StoreUnavailableError,
)
from cosmorama.jobs.channel import Channels, JobEvent, Observer, Observers, number, status
from cosmorama.jobs.database import Database, first_line
from cosmorama.jobs.files import Artifacts, Content, TempDir, discard, media_of, place_media, restore_media, take_media
from cosmorama.jobs.fleet import Fleet
from cosmorama.jobs.loops import Dispatcher
from cosmorama.jobs.model import Job, JobError, JobOptions, State, job_options
from cosmorama.jobs.queue import QueueView
from cosmorama.jobs.store import Limits, Store, fingerprint, timed_id
from cosmorama.jobs.webhooks import Webhooks, check_url
from cosmorama.jobs.worker import STOP_S, Runner
from cosmorama.media.source import suffix
from cosmorama.request import GenerationRequest, Usual
from cosmorama.resolve import resolve
from cosmorama.settings import Settings

log = logging.getLogger(__name__)

POLL_S = 1.0
"""How often a job that another server runs is looked at, for those who wait for it here."""
MAX_PAGE = 100
MAX_WATCHERS = 2000
"""Followers of jobs on this server at a time."""
FEW_WATCHERS, WATCHERS_PER_S, MAX_PAUSE_S = 10, 600, 0.5
"""Of one job: up to so many are told of every step; more are told so often that all of them are so many a second."""


@dataclass(frozen=True, slots=True)
class Page:
    """Some jobs, newest first; `cursor` continues after them, None at the end."""

    jobs: tuple[Job, ...]
    cursor: str | None


class Jobs:
    """The jobs of one server process. All methods are for one event loop.

    `owner` None sees every job; otherwise those of that owner only.

    Args:
        settings: Where jobs are kept, and their limits.
        supervisor: Who makes them.
        observer: Told of what happens to jobs here.

    Raises:
        InvalidRequestError: the database URL or the artifact URL is none.
        OSError: the state folder cannot be written.
    """

    def __init__(self, settings: Settings, supervisor: ModelPool, *, observer: Observer | None = None) -> None:
        self._settings = settings
        self._supervisor = supervisor
        folder = settings.state_dir
        url = settings.database_url
        database = Database(f"sqlite:///{folder / 'jobs.sqlite3'}" if url is None else url.get_secret_value())
        self._store = Store(database, settings.lease_s)
        self._artifacts = Artifacts(settings.artifacts or folder / "artifacts")
        self._temp = TempDir(folder / "scratch")
        self._channels = Channels()
        self._queue = QueueView(self._store)
        self._observer = Observers(self._queue, observer or Observer())
        server = self._temp.server
        kept, channels, observer = (self._store, self._artifacts), self._channels, self._observer
        self._runner = Runner(*kept, self._temp, supervisor, channels, on_change=self._changed, observer=observer)
        self._dispatcher = Dispatcher(
            settings, *kept, supervisor, channels, self._queue, self._runner, observer, server
        )
        self._fleet = Fleet(
            self._store,
            server=server,
            settings=settings,
            supervisor=supervisor,
            channels=self._channels,
            runner=self._runner,
            dispatcher=self._dispatcher,
            follow=self.events,
        )
        secret = settings.webhook_secret
        self._webhooks = None
        if secret is not None:
            self._webhooks = Webhooks(self._store, secret.get_secret_value(), allow_private=settings.allow_private_urls)
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False
        self._watchers: Counter[str] = Counter()

    @property
    def watching(self) -> int:
        """How many follow jobs here."""
        return self._watchers.total()

    @property
    def queued(self) -> int:
        """Jobs that wait for their turn, as last seen."""
        return self._queue.queued

    async def start(self) -> None:
        """Open the store, and begin to work on what is in it.

        Raises:
            StoreUnavailableError: the database is not there, lets us do nothing, or another version made it.
        """
        try:
            await self._store.create()
            await self._fleet.start()
        except (StoreUnavailableError, DBAPIError) as error:
            why = error.detail if isinstance(error, StoreUnavailableError) else first_line(error)
            raise StoreUnavailableError(
                f"the job store cannot be used: {why or error} (COSMORAMA_DATABASE_URL says where it is)"
            ) from error
        self._supervisor.on_ready = self._on_ready
        self._dispatcher.alone = self._is_alone
        self._spawn(self._dispatcher.run())
        self._spawn(self._fleet.run())
        if self._webhooks is not None:
            self._spawn(self._webhooks.run())

    @property
    def draining(self) -> bool:
        """Whether `drain` was called: nothing is accepted any more."""
        return self._dispatcher.draining

    @property
    def away(self) -> str | None:
        """In words, why nothing can be accepted now: the database or the artifact store cannot be used; else None."""
        return self._dispatcher.away

    async def _is_alone(self) -> bool:
        """Whether no other server that could work on the queue shares the store now."""
        members = await self._fleet.register.members()
        return not any(each.alive and each.role != "api" and each.id != self._temp.server for each in members)

    async def drain(self, limit_s: float) -> int:
        """Accept nothing and begin nothing any more, and let what runs come to its end, for `limit_s` at most.

        Returns:
            How many jobs are left for another server, or for this one when it is started again.
        """
        self._dispatcher.draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while tasks := [running.task for running in self._runner.running.values() if running.task is not None]:
                    await asyncio.wait(tasks)
        with suppress(StoreUnavailableError):
            await self._queue.refresh()
        return len(self._queue.jobs)

    async def stop(self) -> None:
        """Put what runs back into the queue and close the store. To be called before the supervisor stops.

        `close` is to be called after it: until then a worker may still write.
        """
        self._stopped = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._runner.stop()
        with suppress(TimeoutError):  # without the database; whoever takes over finds out
            async with asyncio.timeout(STOP_S):
                await self._fleet.leave()
        self._store.database.close()

    def close(self) -> None:
        """Remove the folder that clips were made in."""
        self._temp.close()

    async def submit(
        self,
        request: GenerationRequest,
        *,
        dialect: str,
        owner: str = "",
        attached: bool = False,
        **options: Unpack[JobOptions],
    ) -> Job:
        """Accept a request. When this returns, the job survives anything that happens to this process.

        Args:
            request: Checked against the model here; inline media goes to the artifact store.
            dialect: Name of the wire format, for those who ask for the answer later.
            owner: Whose job it is.
            attached: A client waits for it on this very process: if the process dies, nobody does, and the job is
                cancelled instead of finished.
            **options: How it is to be treated, apart from what it is to make.

        Raises:
            InvalidRequestError: the model cannot make this, or an option is outside its range.
            MediaError: an inline picture or clip is not valid base64 or too large.
            NotReadyError: no model is loaded now.
            QueueFullError: too many jobs wait already, or too many of this owner; says how many and when to come again.
            JobConflictError: the idempotency key was used for another request.
            StoreUnavailableError: the database or the artifact store is down or full.
        """
        if (away := self._runner.unwritable or self._dispatcher.vanished) is not None:
            raise StoreUnavailableError(away)
        if self.draining:
            raise NotReadyError("the server is about to end and accepts nothing new")
        options = job_options(options)
        if (url := options.get("webhook_url")) is not None:
            if self._webhooks is None:
                raise InvalidRequestError(Problem("webhook_url", url, "none: this server has no webhook secret"))
            check_url(url, allow_private=self._settings.allow_private_urls)
        job, blobs, told = await self._prepared(request, dialect, owner, attached, options)
        accepted = await self._accepted(job, blobs, told, options.get("deadline_s"))
        if accepted != job.id:
            return await self.get(accepted)
        self._observer.accepted(job)
        self._dispatcher.wake(reread=False)
        if attached:  # who waits for the clip does not ask where it stands
            return job
        return (await self._placed((job,)))[0]

    async def _prepared(
        self, request: GenerationRequest, dialect: str, owner: str, attached: bool, options: JobOptions
    ) -> tuple[Job, dict[str, bytes], str]:
        """A job, checked against its model, its inline media, and its fingerprint if it has an idempotency key."""
        model = self._supervisor.find(request.model)
        capabilities = await self._supervisor.capabilities_of(model)
        if attached and not self._supervisor.ready:  # who waits on a connection is told now
            raise NotReadyError(self._supervisor.reason)
        asked = request
        if request.reuse is None and self._settings.reuse:  # the server's choice; a model without it goes without
            asked = replace(request, usual=replace(request.usual or Usual(), reuse=self._settings.reuse))
        # With its seed drawn here, a request that is begun a second time stays the same request.
        # What a client calls single values is told at once; only fields are named later.
        names = tuple(each for each in request.names if "=" not in each[0] and each[0] != each[1])
        bare, blobs = replace(resolve(asked, capabilities), model=model, names=names), dict[str, bytes]()
        if request.mode != "text2world":
            bare, blobs = await asyncio.to_thread(take_media, bare, self._settings.max_input_bytes)
        now, deadline_s = self._store.database.time(), options.get("deadline_s")
        job_id = timed_id(now, token_hex(8))
        job = Job(
            id=job_id,
            state="queued",
            dialect=dialect,
            model=model,
            owner=owner,
            request=place_media(bare, f"inputs/{job_id}") if blobs else bare,
            priority=options.get("priority", "normal"),
            created_at=now,
            metadata=options.get("metadata", {}),
            deadline_at=None if deadline_s is None else now + deadline_s,
            idempotency_key=options.get("idempotency_key"),
            webhook_url=options.get("webhook_url"),
            attached=attached,
        )
        keyed = job.idempotency_key is not None
        return job, blobs, fingerprint(dialect, replace(bare, seed=request.seed, names=()), blobs) if keyed else ""

    async def _accepted(self, job: Job, blobs: dict[str, bytes], told: str, deadline_s: float | None) -> str:
        """Put a job and its media on the disk; its id, or that of the earlier job with its key and fingerprint."""
        # Those that run are the workers' of the whole fleet.
        settings, places = self._settings, self._supervisor.places
        half = (settings.max_queue + places + 1) // 2 if len(settings.api_keys) > 1 else None
        limits = Limits(settings.max_queue, places, settings.max_jobs_per_key or half)
        accepted = ""
        try:
            if blobs:  # they are large: what the queue has no room for is not written down first
                earlier = await self._store.would_accept(job, limits, told)
                if earlier is not None:
                    return earlier
            for where, blob in blobs.items():
                await asyncio.to_thread(self._artifacts.put, f"inputs/{job.id}/{where}", blob)
            accepted = await self._store.accept(
                job,
                limits,
                fingerprint=told,
                deadline_s=deadline_s,
                waiter=self._temp.server if job.attached else None,
                input_bytes=sum(map(len, blobs.values())),
            )
        except QueueFullError as error:
            error.retry_after_s = self._queue.next_free_s
            raise
        finally:
            if blobs and accepted != job.id:
                with suppress(StoreUnavailableError):
                    await asyncio.to_thread(self._artifacts.remove, job.id)
        return accepted

    async def _placed(self, jobs: tuple[Job, ...]) -> tuple[Job, ...]:
        return await self._queue.placed(jobs, self._runner.progress)

    async def get(self, job_id: str, *, owner: str | None = None) -> Job:
        """The job as it is now.

        Raises:
            JobNotFoundError: there is none of that id, or it is not this owner's.
        """
        return (await self._placed((await self._store.get(job_id, owner),)))[0]

    async def list(
        self,
        *,
        cursor: str | None = None,
        limit: int = 20,
        state: State | None = None,
        owner: str | None = None,
        dialect: str | None = None,
        ascending: bool = False,
    ) -> Page:
        """Jobs, newest first (oldest first if `ascending`), `limit` (1 to 100) at a time.

        `cursor` is that of the page before, or a job's id: the page begins after it.

        Raises:
            InvalidRequestError: a cursor that is no job of this server, a limit outside its range.
        """
        if not 1 <= limit <= MAX_PAGE:
            raise InvalidRequestError(Problem("limit", limit, f"an integer from 1 to {MAX_PAGE}"))
        try:
            found, more = await self._store.page(
                cursor=cursor, limit=limit, state=state, owner=owner, dialect=dialect, ascending=ascending
            )
        except JobNotFoundError:
            accepted = "the next_cursor of a page, or the id of a job"
            raise InvalidRequestError(Problem("cursor", cursor, accepted)) from None
        return Page(await self._placed(tuple(found)), more)

    async def restored(self, job: Job) -> GenerationRequest:
        """The request of a job with its inline media in place, so that it can be submitted again.

        Raises:
            StoreUnavailableError: the artifact store is away.
        """
        return await asyncio.to_thread(restore_media, job.request, self._artifacts.read)

    async def checkout_input(self, job_id: str, where: str, *, owner: str | None = None) -> Path:
        """As `checkout`, a picture or clip that came inline with a job, by where it stands there, such as `image`.

        Raises:
            JobNotFoundError: as `get`, or nothing came inline there.
            ContentGoneError, StoreUnavailableError: as `checkout`.
        """
        source = media_of((await self.get(job_id, owner=owner)).request).get(where)
        if not isinstance(source, Path):
            raise JobNotFoundError(f"job {job_id} has no input {where[:80]!r} of its own")
        return await self._copied(str(source), "")

    async def cancel(self, job_id: str, *, owner: str | None = None, reason: str = "cancelled") -> Job:
        """Stop a job within one denoising step. A job that is over stays as it is; either way its state is returned.

        Where another server runs the job, it is still `running` in the answer, and stops within about a second.

        Args:
            job_id: Which.
            owner: Whose.
            reason: What the job's error will say.

        Raises:
            JobNotFoundError: as `get`.
        """
        await self._store.get(job_id, owner)
        error = JobError.of(CancelledError(reason))
        ended = await self._store.cancel(job_id, error)
        if ended is not None:
            self._runner.ended(ended)
        async with self._dispatcher.claiming:
            task = self._runner.interrupt(job_id, "cancel", error)
        if task is not None:
            await asyncio.wait((task,))
        self._channels.touch(job_id)
        self._dispatcher.wake()
        return await self.get(job_id, owner=owner)

    async def relabel(self, job_id: str, labels: Mapping[str, str | None], *, owner: str | None = None) -> Job:
        """Set some of a job's labels, and remove those that are None; the others stay.

        Raises:
            InvalidRequestError: more labels than a job may have, or longer ones.
            JobNotFoundError: as `get`.
        """

        def changed(own: Mapping[str, str]) -> Mapping[str, str]:
            new = {name: value for name, value in {**own, **labels}.items() if value is not None}
            return job_options({"metadata": new})["metadata"]

        await self._store.get(job_id, owner)
        await self._store.relabel(job_id, changed)
        return await self.get(job_id, owner=owner)

    async def delete(self, job_id: str, *, owner: str | None = None) -> None:
        """Cancel the job if it is not over, and remove it and its files.

        Raises:
            JobNotFoundError: as `get`.
            JobConflictError: another server runs it and does not stop.
        """
        job = await self.cancel(job_id, owner=owner)
        if not job.final:
            try:
                await self.wait(job_id, timeout_s=10 * POLL_S)
            except TimeoutError:
                raise JobConflictError(f"job {job_id} still runs on another server; it is being cancelled") from None
        await self._store.remove([job_id])  # first, so that nobody is promised files that are gone
        with suppress(StoreUnavailableError):  # clearing sees to what is nobody's
            await asyncio.to_thread(self._artifacts.remove, job_id)

    async def wait(self, job_id: str, timeout_s: float | None = None) -> Job:
        """The job once it is over.

        Raises:
            TimeoutError: it was not over in time; it goes on.
            JobNotFoundError: as `get`.
        """
        async with asyncio.timeout(timeout_s):
            with self._channels.using(job_id) as channel:
                while True:
                    seen = channel.version
                    job = channel.job or await self._store.get(job_id)
                    if job.final:
                        return job
                    await channel.change(seen, POLL_S)

    async def events(self, job_id: str, *, after: int = 0, owner: str | None = None) -> AsyncGenerator[JobEvent]:
        """What happens to the job, from its present state until its end, events after number `after` only.

        Raises:
            NotReadyError, QueueFullError: as `check_watchers`.
            JobNotFoundError: as `get`, at the first step of the iteration.
        """
        job = await self.get(job_id, owner=owner)
        if job.final:  # whoever comes now is told the end alone, even while somebody else's feed has a last preview
            if number(job) > after:
                yield status(job)
            return
        self.check_watchers(job)
        with self._channels.using(job_id) as channel:
            channel.previewing += 1
            self._watchers[job.owner] += 1
            self._runner.show_previews(job_id)
            try:
                while True:
                    seen, preview = channel.version, channel.preview
                    told = await channel.told(lambda: self.get(job_id), POLL_S / 2)
                    assert told.job is not None
                    job = told.job
                    news = [event for event in (told, preview) if event is not None and event.number > after]
                    for event in sorted(news, key=lambda event: event.number):
                        after = event.number
                        yield event
                    if job.final:
                        return
                    self._fleet.watch(job_id)
                    # The more watch, the seldomer each is told of steps: the loop that tells them serves everybody.
                    if channel.previewing > FEW_WATCHERS:
                        await asyncio.sleep(min(channel.previewing / WATCHERS_PER_S, MAX_PAUSE_S))
                    await channel.change(seen, POLL_S)
            finally:
                channel.previewing -= 1
                self._watchers[job.owner] -= 1
                self._runner.show_previews(job_id)

    def check_watchers(self, job: Job) -> None:
        """Refuse one more who follows a job, if there are too many, or too many with the key that it belongs to.

        Raises:
            NotReadyError, QueueFullError: there are.
        """
        own, instead = self._watchers[job.owner], "ask for the job's state instead"
        if self.watching >= MAX_WATCHERS:
            raise NotReadyError(f"{self.watching} clients follow jobs here already; {instead}")
        if job.owner and own >= MAX_WATCHERS // 2:
            raise QueueFullError(f"{own} clients with this key follow jobs here already; {instead}")

    def content(self, job: Job) -> Content:
        """The clip of a succeeded job.

        Raises:
            JobConflictError: the job has not succeeded (yet); says what its state is.
            ContentGoneError: the clip was removed.
        """
        if not job.readable:
            raise JobConflictError(f"job {job.id} was written by another release of the server, and cannot be read")
        if job.result is None:
            raise JobConflictError(f"job {job.id} is {job.state}; only a job that succeeded has a clip")
        key = job.result.key
        if key is None:
            raise ContentGoneError(f"the clip of job {job.id} was removed")
        name = f"{job.id}{suffix(job.request.output)}"
        path = self._artifacts.local_path(key)
        if path is not None and not path.exists():
            raise ContentGoneError(f"the clip of job {job.id} is gone from the artifact store")
        return Content(path, job.result.media_type, job.result.bytes, name)

    async def checkout(self, job: Job) -> Path:
        """A private local copy of the clip, in a folder of its own; the caller deletes the folder (`api.clips`).

        Raises:
            JobConflictError, ContentGoneError: as `content`.
            StoreUnavailableError: the artifact store is away.
        """
        suffix = Path(self.content(job).name).suffix
        assert job.result is not None
        assert job.result.key is not None
        return await self._copied(job.result.key, suffix)

    async def _copied(self, key: str, suffix: str) -> Path:
        target = self._temp.place(suffix)
        try:
            await asyncio.to_thread(self._artifacts.checkout, key, target)
        except BaseException:
            discard(target)
            raise
        return target

    def forget_content(self, job_id: str) -> None:
        """Remove a job's files, soon: who waited for them has them."""
        self._spawn(self._drop(job_id))

    async def _drop(self, job_id: str) -> None:
        with suppress(StoreUnavailableError):
            await self._store.drop_contents([job_id])
            await asyncio.to_thread(self._artifacts.remove, job_id)

    def _changed(self, known: bool) -> None:
        self._dispatcher.wake(reread=not known)
        if self._webhooks is not None:
            self._webhooks.wake()

    def _on_ready(self) -> None:
        if not self._stopped:  # a worker may be there at the very end
            self._spawn(self._learn())

    async def _learn(self) -> None:
        """Before the first generation, expect what the last ones took."""
        if not self._queue.estimator.measured:
            with suppress(StoreUnavailableError):
                for request, outcome in await self._store.recent(self._supervisor.names[0]):
                    self._queue.estimator.finished(request, outcome.timings)
        self._dispatcher.wake()

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("a part of the job service ended", exc_info=error)

        task.add_done_callback(done)
