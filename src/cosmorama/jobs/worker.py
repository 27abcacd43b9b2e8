"""Has claimed jobs made, and records how they ended."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from cosmorama.engine.pool import ModelPool
from cosmorama.errors import (
    CancelledError,
    CosmoramaError,
    DeadlineExceededError,
    JobNotFoundError,
    NotReadyError,
    StorageFullError,
    StoreUnavailableError,
    WorkerDiedError,
    WorkerError,
)
from cosmorama.jobs.channel import Channels, Observer
from cosmorama.jobs.files import Artifacts, Published, TempDir, discard, restore_media
from cosmorama.jobs.model import Job, JobError
from cosmorama.jobs.store import Claim, Finish, Store
from cosmorama.logs import about
from cosmorama.media.source import mime_type, suffix
from cosmorama.progress import Progress

log = logging.getLogger(__name__)

MAX_BLAME = 6
"""How much suspicion a job may come under before it is given up."""
WORKER_DIED, SERVER_DIED = 2, 1
"""How much a death weighs: a worker's falls on the job at work, a server's on all that it held, whatever ended it."""
STORE_RETRIES_S = (0.2, 1.0, 3.0)
"""Waits between attempts to use the artifact store, before the job fails of it."""
STOP_S = 8.0
"""For how long a stop waits for the database to take what runs back into the queue."""
RECORD_RETRY_S = 1.0
"""Wait between attempts to record an end: as long as the database is down, there is nothing better to do."""
CANCELLED = JobError.of(CancelledError("cancelled"))
_T = TypeVar("_T")
Reason = Literal["cancel", "lost", "stop"]


@dataclass(slots=True, eq=False)
class Running:
    """A job this server has claimed.

    Attributes:
        claim: The claim.
        job: As it was claimed, with the progress since.
        begun: Whether its task has taken its first step. One that is cancelled before never runs at all, and nobody
            would write down how the job ended.
        generating: Whether it takes a place in the worker; false while its result is stored.
        stuck: Whether its clip waits for a store that cannot be written.
        task: What runs it.
        reason: Why the task is being cancelled, if it is.
        error: What the job ends with then.
    """

    claim: Claim
    job: Job
    begun: bool = False
    generating: bool = True
    stuck: bool = False
    task: asyncio.Task[None] | None = None
    reason: Reason | None = None
    error: JobError | None = None

    @property
    def name(self) -> str:
        """The generation's name at the worker."""
        return f"{self.claim.job_id}.{self.claim.attempt}"


class Runner:
    """Runs claimed jobs, each in a task.

    Args:
        store: Where jobs are.
        artifacts, temp: Where inputs are and results go; where clips are made.
        supervisor: Who makes them.
        channels: Who is told.
        on_change: Called when a place has become free; with whether observers were told what became of the job.
        observer: Told of what happens to jobs here.
    """

    def __init__(
        self,
        store: Store,
        artifacts: Artifacts,
        temp: TempDir,
        supervisor: ModelPool,
        channels: Channels,
        *,
        on_change: Callable[[bool], None],
        observer: Observer,
    ) -> None:
        self.running: dict[str, Running] = {}
        self.unwritable: str | None = None
        """Why nothing can be stored now, in words: until that is over nothing is begun."""
        self._background: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._store = store
        self._artifacts = artifacts
        self._temp = temp
        self._supervisor = supervisor
        self._channels = channels
        self._on_change = on_change
        self._observer = observer

    @property
    def progress(self) -> dict[str, Progress]:
        """How far the jobs are that run here, by id."""
        return {job_id: running.job.progress for job_id, running in self.running.items()}

    def start(self, claim: Claim, job: Job) -> None:
        """Run a claimed job."""
        self._observer.started(job)
        running = self.running[job.id] = Running(claim, job)
        if channel := self._channels.find(job.id):
            channel.update(job)
        with about(job.id):
            log.info("begun, attempt %d", claim.attempt)
            running.task = asyncio.create_task(self._run(running), name=running.name)

    def interrupt(self, job_id: str, reason: Reason, error: JobError = CANCELLED) -> asyncio.Task[None] | None:
        """Stop running a job: its client cancels it, the claim is lost, or the server stops; the task to wait for.

        A clip that is made already is stored all the same.
        """
        running = self.running.get(job_id)
        if running is None or running.task is None:
            return None
        if running.reason is None and (running.generating or running.stuck):
            running.reason, running.error = reason, error
            if running.begun:
                running.task.cancel()
        return running.task

    async def stop(self) -> None:
        """Put everything back into the queue, as far as the store lets it be: the rest is taken over by who starts."""
        self._stopping = True
        tasks = [task for job_id in list(self.running) if (task := self.interrupt(job_id, "stop")) is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=STOP_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def recover(self, claim: Claim, *, blame: bool) -> None:
        """Decide about a claim that no task is at: the job is finished already, to be cancelled, or to begin anew."""
        published = await asyncio.to_thread(self._artifacts.published, claim.job_id, claim.attempt)
        if published is not None:
            ended = await self._store.finish(claim, _success(published))
        else:
            ended = await self._give_back(claim, "the server died", SERVER_DIED if blame else 0)
        if ended is not None:
            self.ended(ended)
        self._channels.touch(claim.job_id)

    def ended(self, job: Job) -> None:
        """A job came to its end by this server's hand, wherever it was: tell of it, once, and let its files go."""
        self._observer.ended(job)
        if job.state != "succeeded":
            self._later(self._remove_files(job.id))

    async def _remove_files(self, job_id: str) -> None:
        """Remove what was sent with a job that made nothing, and what it left; clearing sees to what this misses."""
        with suppress(StoreUnavailableError):
            await asyncio.to_thread(self._artifacts.remove, job_id)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        """Have something done that nobody waits for."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _run(self, running: Running) -> None:
        job = running.job
        clip: Path | None = None
        finish: Finish | None = None
        died, weight = "", 0
        with self._channels.using(job.id) as channel:
            running.begun = True
            try:
                if running.reason is not None:
                    raise asyncio.CancelledError
                clip = self._temp.place(suffix(job.request.output))
                finish = await self._make(running, clip)
            except asyncio.CancelledError:
                running.reason = running.reason or "lost"  # the process ends: nothing is known any more
                if running.reason == "cancel":
                    finish = Finish("cancelled", running.error)
            except WorkerDiedError as error:
                died, weight = str(error), WORKER_DIED if error.suspect else SERVER_DIED if error.with_server else 0
            except NotReadyError:
                pass
            except StoreUnavailableError as error:  # its inputs cannot be had now; nothing is begun until they can
                log.warning("job %s goes back into the queue: %s", job.id, error.logged)
                self.unwritable = str(error)
            except CosmoramaError as error:
                finish = Finish("failed", JobError.of(error.renamed(dict(job.request.names))))
            except OSError as error:
                log.error("job %s: %s", job.id, error)
                full = StorageFullError(f"the server has no place to make the clip in ({error.strerror})")
                finish = Finish("failed", JobError.of(full))
            except Exception as error:
                log.exception("job %s failed", job.id)
                finish = Finish("failed", JobError.of(WorkerError(f"the server failed: {type(error).__name__}")))
            finally:
                running.generating = False
            ended: Job | None = None
            try:
                ended = await self._record(running, finish, died, weight)
            except StoreUnavailableError as error:
                log.warning("job %s: %s", job.id, error.logged)
            finally:
                if self.running.get(job.id) is running:  # given back, it may have been claimed again already
                    del self.running[job.id]
                    channel.job = ended
                channel.touch()
                self._on_change(ended is not None)
                if clip is not None:
                    self._later(self._discard(running.name, clip))

    async def _record(self, running: Running, finish: Finish | None, died: str, weight: int) -> Job | None:
        """Write down how a run came to its end; the job if it is over."""
        claim = running.claim
        if running.reason == "lost":
            return None
        if running.reason == "stop":
            ended = await self._store.release(claim)
        elif finish is None:
            ended = await self._persist(lambda: self._give_back(claim, died, weight, running.job.progress))
        else:
            ended = await self._persist(lambda: self._store.finish(claim, finish))
            if ended is None and finish.state == "succeeded":  # it was somebody else's by then
                self._later(self._remove_unless_kept(claim, finish.result_key))
        if ended is not None:
            self.ended(ended)
            log.info("%s after %.1f s", ended.state, (ended.finished_at or 0) - ended.created_at)
        return ended

    async def _remove_unless_kept(self, claim: Claim, key: str | None) -> None:
        """Remove a clip that was published under a claim that is lost, unless it is the job's now: whoever took the job
        over has found it, or it was recorded and the answer was lost."""
        with suppress(StoreUnavailableError):
            try:
                while (job := await self._persist(lambda: self._store.get(claim.job_id))).state == "running":
                    if job.attempts != claim.attempt:
                        break
                    await asyncio.sleep(RECORD_RETRY_S)  # whoever took it over is about to decide
                kept = job.result is not None and job.result.key == key
            except JobNotFoundError:
                kept = False
            if not kept:
                await asyncio.to_thread(self._artifacts.remove_attempt, claim.job_id, claim.attempt)

    async def _discard(self, name: str, clip: Path) -> None:
        """Remove the folder that a clip was made in, once the worker, which writes into it, has let go of it."""
        await self._supervisor.released(name)
        await asyncio.to_thread(discard, clip)

    async def _make(self, running: Running, clip: Path) -> Finish:
        job, claim = running.job, running.claim
        request, begun_at = job.request, time.monotonic()
        if request.mode != "text2world":
            request = await self._patiently(lambda: restore_media(request, self._artifacts.read))
        left_s = None if claim.left_s is None else max(claim.left_s - (time.monotonic() - begun_at), 0)
        try:
            async with asyncio.timeout(left_s):
                with self._supervisor.worker(request.model) as worker:
                    outcome = await worker.generate(
                        request,
                        output=clip,
                        name=running.name,
                        priority=job.priority,
                        age_s=self._store.database.time() - job.created_at,
                        owner=job.owner,
                        on_progress=lambda progress: self._advanced(running, progress),
                        on_preview=lambda jpeg: self._previewed(job.id, jpeg),
                    )
        except TimeoutError:
            raise DeadlineExceededError("the job was not finished by its deadline") from None
        running.generating = False
        self._observer.made(job, outcome)
        self._on_change(True)
        while True:
            try:
                published = await self._patiently(
                    lambda: self._artifacts.publish(
                        outcome.path,
                        job.id,
                        claim.attempt,
                        media_type=mime_type(request.output),
                        outcome=outcome,
                        durable=not job.attached,
                    )
                )
            except StoreUnavailableError as error:
                # The clip is made; it waits here, and nothing else is begun, until it can be stored.
                running.stuck, self.unwritable = True, str(error)
                await asyncio.sleep(STORE_RETRIES_S[-1])
            else:
                return _success(published)

    def _advanced(self, running: Running, progress: Progress) -> None:
        running.job = replace(running.job, state="running", progress=progress, eta_s=progress.remaining_s)
        self._observer.advanced(running.job)
        if channel := self._channels.find(running.job.id):
            channel.update(running.job)
            if progress.stage == "prepare":  # the worker knows it now
                self.show_previews(running.job.id)

    def _previewed(self, job_id: str, jpeg: bytes) -> None:
        if channel := self._channels.find(job_id):
            channel.show(jpeg)

    def show_previews(self, job_id: str) -> None:
        """Have previews made of a job while somebody besides its own task watches it."""
        running, channel = self.running.get(job_id), self._channels.find(job_id)
        if running is not None and channel is not None:
            self._supervisor.watch(running.name, channel.previewing > 0)

    async def _give_back(self, claim: Claim, reason: str, blame: int, progress: Progress | None = None) -> Job | None:
        """Put a job whose process died back into the queue, or end it if it is suspected too much; the job then."""
        message = f"{reason}; the job was begun {claim.attempt} times, came to no end, and is given up"
        finish = Finish("failed", JobError.of(WorkerError(message)))
        return await self._store.release(claim, blame, MAX_BLAME, finish, progress)

    async def _patiently(self, use: Callable[[], _T]) -> _T:
        """Use the artifact store, which may be away for a moment."""
        for wait_s in STORE_RETRIES_S:
            try:
                return await asyncio.to_thread(use)
            except StoreUnavailableError as error:
                log.warning("%s", error.logged)
                self.unwritable = str(error)  # nothing is begun meanwhile; the next probe says when it is over
                await asyncio.sleep(wait_s)
        return await asyncio.to_thread(use)

    async def _persist(self, record: Callable[[], Awaitable[_T]]) -> _T:
        """Record something in the database, however long it takes to come back.

        Raises:
            StoreUnavailableError: this server stops meanwhile. What was published is found by who takes over.
        """
        while True:
            try:
                return await record()
            except StoreUnavailableError as error:
                log.warning("%s", error.logged)
                if self._stopping:
                    raise
                await asyncio.sleep(RECORD_RETRY_S)


def _success(published: Published) -> Finish:
    return Finish(
        "succeeded",
        outcome=published.outcome,
        media_type=published.media_type,
        result_key=published.key,
        result_bytes=published.bytes,
    )
