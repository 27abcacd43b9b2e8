"""The jobs of a server: submit, look, wait, cancel. What routes and dialects program against."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cosmorama.engine.pool import ModelPool
from cosmorama.engine.scheduler import Priority
from cosmorama.errors import CancelledError, InvalidRequestError, NotReadyError, Problem
from cosmorama.jobs.files import Artifacts, Content, Scratch, media_of, restore_media
from cosmorama.jobs.fleet import Fleet
from cosmorama.jobs.model import (
    ContentGoneError,
    Feeds,
    Job,
    JobConflictError,
    JobError,
    JobEvent,
    JobNotFoundError,
    Observer,
    Observers,
    State,
    StoreUnavailableError,
    number,
    status,
)
from cosmorama.jobs.queue import Board, Lookout
from cosmorama.jobs.store import Database, Hold, Store, Upkeep
from cosmorama.jobs.submit import Intake, Terms
from cosmorama.jobs.webhooks import Webhooks
from cosmorama.jobs.worker import STOP_S, Dispatcher, Runner
from cosmorama.media.write import suffix
from cosmorama.progress import Progress
from cosmorama.request import GenerationRequest
from cosmorama.settings import Settings

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

    Attributes:
        watching: How many follow jobs here.

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
        # SQLite has one writer at a time anyway; queueing for it here is fairer than its own waiting.
        self._threads = ThreadPoolExecutor(1 if database.is_sqlite else 4, thread_name_prefix="jobs")
        self._store = Store(database, settings.lease_s)
        self._upkeep = Upkeep(self._store)
        self._artifacts = Artifacts(settings.artifacts or folder / "artifacts")
        self._scratch = Scratch(folder / "scratch")
        self._feeds, self._board = Feeds(), Board()
        self._lookout = Lookout(self._upkeep, self._call, self._board)
        self._observer = observer or Observer()
        server = self._scratch.server
        self._intake = Intake(settings, self._store, self._call, self._artifacts, supervisor, self._board, server)
        self._dispatcher = Dispatcher(
            settings,
            self._store,
            self._call,
            self._artifacts,
            supervisor,
            self._feeds,
            self._lookout,
            server,
        )
        self._runner = Runner(
            self._store,
            self._call,
            self._artifacts,
            self._scratch,
            supervisor,
            self._feeds,
            on_change=self._changed,
            observer=Observers((self._board, self._observer)),
        )
        self._fleet = Fleet(
            self._store,
            self._call,
            server=server,
            role=settings.role,
            supervisor=supervisor,
            places=settings.places,
            feeds=self._feeds,
            local=_Local(self, self._runner, self._dispatcher),
        )
        secret = settings.webhook_secret
        self._webhooks = None
        if secret is not None:
            self._webhooks = Webhooks(
                self._store, self._call, secret.get_secret_value(), allow_private=settings.allow_private_urls
            )
        self._tasks: set[asyncio.Task[None]] = set()
        self.watching = 0

    @property
    def queued(self) -> int:
        """Jobs that wait for their turn, as last seen."""
        return self._board.queued

    async def start(self) -> None:
        """Open the store, and begin to work on what is in it.

        Raises:
            StoreUnavailableError: the database is not there, or another version made it.
        """
        await self._call(self._store.database.create)
        await self._call(self._fleet.register.create)
        self._supervisor.on_ready = self._on_ready
        self._dispatcher.alone = self._is_alone
        self._spawn(self._dispatcher.run(self._runner))
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
        members = await self._call(self._fleet.register.members)
        return not any(each.alive and each.role != "api" and each.id != self._scratch.server for each in members)

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
            await self._lookout.look()
        return len(self._board.jobs)

    async def stop(self) -> None:
        """Put what runs back into the queue and close the store. To be called before the supervisor stops.

        `close` is to be called after it: until then a worker may still write.
        """
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._intake.stop()
        await self._runner.stop()
        with suppress(TimeoutError):  # without the database; whoever takes over finds out
            async with asyncio.timeout(STOP_S):
                await self._fleet.leave()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._store.database.close()

    def close(self) -> None:
        """Remove the folder that clips were made in."""
        self._scratch.close()

    async def submit(
        self,
        request: GenerationRequest,
        *,
        dialect: str,
        priority: Priority = "normal",
        idempotency_key: str | None = None,
        deadline_s: float | None = None,
        owner: str = "",
        webhook_url: str | None = None,
        metadata: Mapping[str, str] | None = None,
        attached: bool = False,
    ) -> Job:
        """Accept a request. When this returns, the job survives anything that happens to this process.

        Args:
            request: Checked against the model here; inline media goes to the artifact store.
            dialect: Name of the wire format, for those who ask for the answer later.
            priority: Class of service.
            idempotency_key: The same key and owner give the same job again, as it is by now.
            deadline_s: Seconds from now after which the job fails if it is not finished; None: no limit.
            owner: Whose job it is.
            webhook_url: Told when the job is over.
            metadata: The client's own labels: at most 16, names up to 64 and values up to 512 characters.
            attached: A client waits for it on this very process: if the process dies, nobody does, and the job is
                cancelled instead of finished.

        Raises:
            InvalidRequestError: the model cannot make this.
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
        terms = Terms(
            dialect=dialect,
            priority=priority,
            idempotency_key=idempotency_key,
            deadline_s=deadline_s,
            owner=owner,
            webhook_url=webhook_url,
            metadata=metadata or {},
            attached=attached,
        )
        accepted = await self._intake.accept(request, terms)
        if isinstance(accepted, str):
            return await self.get(accepted)
        self._board.add(accepted)
        self._dispatcher.moved()
        self._observer.accepted(accepted)
        if attached:  # who waits for the clip does not ask where it stands
            return accepted
        return (await self._lookout.placed((accepted,), self._runner.progress))[0]

    async def get(self, job_id: str, *, owner: str | None = None) -> Job:
        """The job as it is now.

        Raises:
            JobNotFoundError: there is none of that id, or it is not this owner's.
        """
        job: Job = await self._call(self._store.get, job_id, owner)
        return (await self._lookout.placed((job,), self._runner.progress))[0]

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
            found, more = await self._call(
                lambda: self._store.page(
                    cursor=cursor, limit=limit, state=state, owner=owner, dialect=dialect, ascending=ascending
                )
            )
        except JobNotFoundError:
            accepted = "the next_cursor of a page, or the id of a job"
            raise InvalidRequestError(Problem("cursor", cursor, accepted)) from None
        return Page(await self._lookout.placed(tuple(found), self._runner.progress), more)

    async def restored(self, job: Job) -> GenerationRequest:
        """The request of a job with its inline media in place, so that it can be submitted again.

        Raises:
            StoreUnavailableError: the artifact store is away.
        """
        return await asyncio.to_thread(restore_media, job.request, self._artifacts.read)

    async def read_input(self, job_id: str, where: str, *, owner: str | None = None) -> bytes:
        """A picture or clip that came inline with a job, by where it stands in the request, such as `image`.

        Raises:
            JobNotFoundError: as `get`, or nothing came inline there.
            StoreUnavailableError: the artifact store is away.
        """
        source = media_of((await self.get(job_id, owner=owner)).request).get(where)
        if not isinstance(source, Path):
            raise JobNotFoundError(f"job {job_id} has no input {where[:80]!r} of its own")
        return await asyncio.to_thread(self._artifacts.read, str(source))

    async def cancel(self, job_id: str, *, owner: str | None = None) -> Job:
        """Stop a job within one denoising step. A job that is over stays as it is; either way its state is returned.

        Where another server runs the job, it is still `running` in the answer, and stops within about a second.

        Raises:
            JobNotFoundError: as `get`.
        """
        job: Job = await self._call(self._store.get, job_id, owner)
        error = JobError.of(CancelledError("cancelled"))
        if await self._call(self._store.cancel, job_id, error) == "queued":
            self._runner.ended(replace(job, state="cancelled", error=error))
        async with self._dispatcher.claiming:
            task = self._runner.interrupt(job_id, "cancel")
        if task is not None:
            await asyncio.wait((task,))
        self._feeds.touch(job_id)
        self._dispatcher.wake()
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
        await self._call(self._store.remove, job_id)  # first, so that nobody is promised files that are gone
        with suppress(StoreUnavailableError):  # clearing sees to what is nobody's
            await asyncio.to_thread(self._artifacts.remove, job_id)

    async def wait(self, job_id: str, timeout_s: float | None = None) -> Job:
        """The job once it is over.

        Raises:
            TimeoutError: it was not over in time; it goes on.
            JobNotFoundError: as `get`.
        """
        async with asyncio.timeout(timeout_s):
            with self._feeds.using(job_id) as feed:
                while True:
                    seen = feed.version
                    job: Job = feed.job or await self._call(self._store.get, job_id)
                    if job.final:
                        return job
                    await feed.change(seen, POLL_S)

    async def events(self, job_id: str, *, after: int = 0, owner: str | None = None) -> AsyncGenerator[JobEvent]:
        """What happens to the job, from its present state until its end, events after number `after` only.

        Raises:
            NotReadyError: more follow jobs here than this server serves.
            JobNotFoundError: as `get`, at the first step of the iteration.
        """
        job = await self.get(job_id, owner=owner)
        if job.final:  # whoever comes now is told the end alone, even while somebody else's feed has a last preview
            if number(job) > after:
                yield status(job)
            return
        self.check_watchers()
        with self._feeds.using(job_id) as feed:
            feed.previewing += 1
            self.watching += 1
            self._runner.show_previews(job_id)
            try:
                while True:
                    seen, preview = feed.version, feed.preview
                    told = await feed.told(lambda: self.get(job_id), POLL_S / 2)
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
                    if feed.previewing > FEW_WATCHERS:
                        await asyncio.sleep(min(feed.previewing / WATCHERS_PER_S, MAX_PAUSE_S))
                    await feed.change(seen, POLL_S)
            finally:
                feed.previewing -= 1
                self.watching -= 1
                self._runner.show_previews(job_id)

    def check_watchers(self) -> None:
        """Refuse one more who follows a job, if there are too many.

        Raises:
            NotReadyError: there are.
        """
        if self.watching >= MAX_WATCHERS:
            raise NotReadyError(f"{self.watching} clients follow jobs here already; ask for the job's state instead")

    async def open_content(self, job_id: str, *, owner: str | None = None) -> Content:
        """The clip of a succeeded job.

        Raises:
            JobNotFoundError: as `get`.
            JobConflictError: the job has not succeeded (yet); says what its state is.
            ContentGoneError: the clip was removed.
        """
        return self._content(await self.get(job_id, owner=owner))

    def _content(self, job: Job) -> Content:
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
        return Content(self._artifacts, key, path, job.result.media_type, job.result.bytes, name)

    async def checkout(self, job: Job) -> Path:
        """A private local copy of the clip, in a folder of its own; the caller deletes the folder (`api.clips`).

        Raises:
            JobConflictError, ContentGoneError: as `open_content`.
            StoreUnavailableError: the artifact store is away.
        """
        content = self._content(job)
        target = self._scratch.place(Path(content.name).suffix)
        try:
            await asyncio.to_thread(self._artifacts.checkout, content.key, target)
        except BaseException:
            self._scratch.discard(target)
            raise
        return target

    def forget_content(self, job_id: str) -> None:
        """Remove a job's files, soon: who waited for them has them."""
        self._spawn(self._drop(job_id))

    async def _drop(self, job_id: str) -> None:
        with suppress(StoreUnavailableError):
            await self._call(self._store.drop_content, job_id)
            await asyncio.to_thread(self._artifacts.remove, job_id)

    async def _call(self, method: Callable[..., Any], *arguments: Any) -> Any:
        """Call a blocking method of the store in its own thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, method, *arguments)

    def _changed(self, known: bool) -> None:
        if known:
            self._dispatcher.moved()
        else:
            self._dispatcher.wake()
        if self._webhooks is not None:
            self._webhooks.wake()

    def _on_ready(self) -> None:
        self._spawn(self._learn())

    async def _learn(self) -> None:
        """Before the first generation, expect what the last ones took."""
        if not self._board.estimator.measured:
            with suppress(StoreUnavailableError):
                for request, outcome in await self._call(self._upkeep.recent, self._supervisor.names[0]):
                    self._board.estimator.finished(request, outcome.timings)
        self._dispatcher.wake()

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@dataclass(frozen=True, slots=True)
class _Local:
    """What the fleet sees of the jobs here."""

    jobs: Jobs
    runner: Runner
    dispatcher: Dispatcher

    def progress(self) -> dict[str, tuple[Hold, Progress]]:
        return {job_id: (each.hold, each.job.progress) for job_id, each in self.runner.running.items()}

    def queue_changed(self) -> None:
        self.dispatcher.wake()

    def cancelled(self, job_id: str) -> None:
        if job_id in self.runner.running:
            self.dispatcher.beat_now()

    def follow(self, job_id: str) -> AsyncIterator[JobEvent]:
        return self.jobs.events(job_id)
