"""Takes jobs from the queue, has them made, records how they ended; keeps claims alive, and clears away."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from cosmorama.engine.scheduler import PREPARING, PREPARING_PER_OWNER, Candidate, admit, prepares_slowly
from cosmorama.engine.workers import Workers
from cosmorama.errors import (
    CancelledError,
    CosmoramaError,
    DeadlineExceededError,
    ModelNotFoundError,
    NotReadyError,
    StorageFullError,
    WorkerDiedError,
    WorkerError,
)
from cosmorama.jobs.files import Artifacts, Published, Scratch, restore_media
from cosmorama.jobs.model import FINAL, Feeds, Job, JobError, Observer, StoreUnavailableError
from cosmorama.jobs.queue import Lookout
from cosmorama.jobs.store import Finish, Hold, Store, Upkeep, pack_outcome
from cosmorama.logs import about
from cosmorama.media.write import mime_type, suffix
from cosmorama.progress import Progress
from cosmorama.request import ResolvedRequest
from cosmorama.settings import Settings

log = logging.getLogger(__name__)

MAX_BLAME = 6

"""How much suspicion a job may come under before it is given up."""

WORKER_DIED, SERVER_DIED = 2, 1

"""How much a death weighs: a worker's falls on the job at work, a server's on all that it held, whatever ended it."""

STORE_RETRIES_S = (0.2, 1.0, 3.0)

"""Waits between attempts to use the artifact store, before the job fails of it."""

RECORD_RETRY_S = 1.0

"""Wait between attempts to record an end: as long as the database is down, there is nothing better to do."""

CANCELLED = JobError.of(CancelledError("cancelled"))

_T = TypeVar("_T")

Reason = Literal["cancel", "lost", "stop"]


@dataclass(slots=True, eq=False)
class Running:
    """A job this server has claimed.

    Attributes:
        hold: The claim.
        job: As it was claimed, with the progress since.
        generating: Whether it takes a place in the worker; false while its result is stored.
        task: What runs it.
        reason: Why the task is being cancelled, if it is.
        error: What the job ends with then.
    """

    hold: Hold
    job: Job
    generating: bool = True
    task: asyncio.Task[None] | None = None
    reason: Reason | None = None
    error: JobError | None = None

    @property
    def name(self) -> str:
        """The generation's name at the worker."""
        return f"{self.hold.job_id}.{self.hold.attempt}"


class Runner:
    """Runs claimed jobs, each in a task.

    Args:
        store, call: The store, and how to call its blocking methods.
        artifacts, scratch: Where inputs are and results go; where clips are made.
        supervisor: Who makes them.
        feeds: Who is told.
        on_change: Called when a place has become free; with whether observers were told what became of the job.
        observer: Told of what happens to jobs here.
    """

    def __init__(
        self,
        store: Store,
        call: Callable[..., Awaitable[Any]],
        artifacts: Artifacts,
        scratch: Scratch,
        supervisor: Workers,
        feeds: Feeds,
        *,
        on_change: Callable[[bool], None],
        observer: Observer,
    ) -> None:
        self.running: dict[str, Running] = {}
        self._discarding: set[asyncio.Task[None]] = set()
        self._store = store
        self._call = call
        self._artifacts = artifacts
        self._scratch = scratch
        self._supervisor = supervisor
        self._feeds = feeds
        self._on_change = on_change
        self._observer = observer

    @property
    def progress(self) -> dict[str, Progress]:
        """How far the jobs are that run here, by id."""
        return {job_id: running.job.progress for job_id, running in self.running.items()}

    def start(self, hold: Hold, job: Job) -> None:
        """Run a claimed job."""
        self._observer.started(job)
        running = self.running[job.id] = Running(hold, job)
        if feed := self._feeds.find(job.id):
            feed.update(job)
        with about(job.id):
            running.task = asyncio.create_task(self._run(running), name=running.name)

    def interrupt(self, job_id: str, reason: Reason, error: JobError = CANCELLED) -> asyncio.Task[None] | None:
        """Stop running a job: its client cancels it, the claim is lost, or the server stops; the task to wait for.

        A clip that is made already is stored all the same.
        """
        running = self.running.get(job_id)
        if running is None or running.task is None:
            return None
        if running.reason is None and running.generating:
            running.reason, running.error = reason, error
            running.task.cancel()
        return running.task

    async def stop(self) -> None:
        """Put everything back into the queue."""
        tasks = [self.interrupt(job_id, "stop") for job_id in list(self.running)]
        await asyncio.gather(*(task for task in tasks if task is not None), return_exceptions=True)

    async def settle(self, hold: Hold, *, cancelled: JobError | None, blame: bool) -> None:
        """Decide about a claim that no task is at: the job is finished already, to be cancelled, or to begin anew."""
        published = await asyncio.to_thread(self._artifacts.published, hold.job_id, hold.attempt)
        if published is not None:
            await self._call(self._store.finish, hold, _success(published))
        elif cancelled is not None:
            await self._call(self._store.finish, hold, Finish("cancelled", cancelled))
        else:
            finish = await self._give_back(hold, "the server died", SERVER_DIED if blame else 0)
            if finish is not None:
                await self._call(self._store.finish, hold, finish)
        self._feeds.touch(hold.job_id)

    async def _run(self, running: Running) -> None:
        hold, job = running.hold, running.job
        clip: Path | None = None
        with self._feeds.using(job.id) as feed:
            try:
                clip = self._scratch.place(suffix(job.request.output))
                finish = await self._make(running, clip)
            except asyncio.CancelledError:
                finish = None
                if running.reason == "cancel":
                    finish = Finish("cancelled", running.error)
            except WorkerDiedError as error:
                finish = await self._persist(self._give_back, hold, str(error), WORKER_DIED if error.suspect else 0)
            except NotReadyError:
                finish = await self._persist(self._give_back, hold, "", 0)
            except CosmoramaError as error:
                finish = Finish("failed", JobError.of(error))
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
                if running.reason == "stop":
                    await self._call(self._store.release, hold)
                elif finish is not None and running.reason != "lost":
                    ended = await self._persist(self._store.finish, hold, finish)
                    self._observer.ended(job, finish.state, finish.error)
                    log.info("%s after %.1f s", finish.state, time.time() - job.created_at)
                    if finish.state != "succeeded":
                        await asyncio.to_thread(self._artifacts.remove, job.id, inputs=False)
            except StoreUnavailableError as error:
                log.warning("job %s: %s", job.id, error)
            finally:
                if self.running.get(job.id) is running:  # given back, it may have been claimed again already
                    del self.running[job.id]
                    feed.job = ended
                feed.touch()
                self._on_change(ended is not None)
                # Nobody waits for this.
                if clip is not None:
                    discarding = asyncio.create_task(self._discard(running.name, clip))
                    self._discarding.add(discarding)
                    discarding.add_done_callback(self._discarding.discard)

    async def _discard(self, name: str, clip: Path) -> None:
        """Remove the folder that a clip was made in, once the worker, which writes into it, has let go of it."""
        await self._supervisor.released(name)
        await asyncio.to_thread(self._scratch.discard, clip)

    async def _make(self, running: Running, clip: Path) -> Finish:
        job, hold = running.job, running.hold
        request = job.request
        if request.mode != "text2world":
            request = await self._patiently(lambda: restore_media(request, self._artifacts.read))
        left_s = None if job.deadline_at is None else max(job.deadline_at - time.time(), 0)
        try:
            async with asyncio.timeout(left_s):
                outcome = await self._supervisor.generate(
                    request,
                    output=clip,
                    name=running.name,
                    priority=job.priority,
                    age_s=time.time() - job.created_at,
                    owner=job.owner,
                    on_progress=lambda progress: self._advanced(running, progress),
                    on_preview=lambda jpeg: self._previewed(job.id, jpeg),
                )
        except TimeoutError:
            raise DeadlineExceededError("the job was not finished by its deadline") from None
        running.generating = False
        self._observer.made(job, outcome)
        self._on_change(True)
        published = await self._patiently(
            lambda: self._artifacts.publish(
                outcome.path,
                job.id,
                hold.attempt,
                media_type=mime_type(request.output),
                outcome=pack_outcome(outcome),
                durable=not job.attached,
            )
        )
        return _success(published)

    def _advanced(self, running: Running, progress: Progress) -> None:
        running.job = replace(running.job, state="running", progress=progress, eta_s=progress.remaining_s)
        self._observer.advanced(running.job)
        if feed := self._feeds.find(running.job.id):
            feed.update(running.job)
            if progress.stage == "prepare":  # the worker knows it now
                self.show_previews(running.job.id)

    def _previewed(self, job_id: str, jpeg: bytes) -> None:
        if feed := self._feeds.find(job_id):
            feed.show(jpeg)

    def show_previews(self, job_id: str) -> None:
        """Have previews made of a job while somebody besides its own task watches it."""
        running, feed = self.running.get(job_id), self._feeds.find(job_id)
        if running is not None and feed is not None:
            self._supervisor.watch(running.name, feed.previewing > 0)

    async def _give_back(self, hold: Hold, reason: str, blame: int) -> Finish | None:
        """Put a job whose process died back into the queue, or say how it ends if it is suspected too much."""
        if blame and (await self._call(self._store.blame, hold, blame) or 0) >= MAX_BLAME:
            message = f"{reason}; the job was begun {hold.attempt} times, came to no end, and is given up"
            return Finish("failed", JobError.of(WorkerError(message)))
        await self._call(self._store.release, hold)
        return None

    async def _patiently(self, use: Callable[[], _T]) -> _T:
        """Use the artifact store, which may be away for a moment."""
        for wait_s in STORE_RETRIES_S:
            try:
                return await asyncio.to_thread(use)
            except StoreUnavailableError as error:
                log.warning("%s", error)
                await asyncio.sleep(wait_s)
        return await asyncio.to_thread(use)

    async def _persist(self, method: Callable[..., Any], *arguments: Any) -> Any:
        """Record something in the database, however long it takes to come back."""
        while True:
            try:
                if asyncio.iscoroutinefunction(method):
                    return await method(*arguments)
                return await self._call(method, *arguments)
            except StoreUnavailableError as error:
                log.warning("%s", error)
                await asyncio.sleep(RECORD_RETRY_S)


def _success(published: Published) -> Finish:
    return Finish(
        "succeeded",
        outcome=published.outcome,
        media_type=published.media_type,
        result_key=published.key,
        result_bytes=published.bytes,
    )


TICK_S = 1.0

"""How often what other servers did is looked for; what happens on this one is acted on at once."""

CLEAR_EVERY_S = 300.0


class Dispatcher:
    """Keeps a server's claims alive and its worker busy. One task, so that no two of its looks at the store overlap."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        call: Callable[..., Awaitable[Any]],
        artifacts: Artifacts,
        supervisor: Workers,
        feeds: Feeds,
        lookout: Lookout,
        server: str,
    ) -> None:
        self.runner: Runner | None = None
        self.draining = False
        self._settings = settings
        self._store = store
        self._upkeep = Upkeep(store)
        self._call = call
        self._artifacts = artifacts
        self._supervisor = supervisor
        self._feeds = feeds
        self._lookout = lookout
        self._stale = True
        self._server = server
        self._woken = asyncio.Event()
        self._told: dict[Hold, Progress] = {}
        self._unknown_files: set[str] = set()
        self._next = dict.fromkeys(("beat", "sweep", "look", "clear"), 0.0)

    def wake(self) -> None:
        """Read the queue now: something changed, or a place is free."""
        self._stale = True
        self._woken.set()

    def beat_now(self) -> None:
        """Look now for what became of the jobs that run here: one of them was cancelled on another server."""
        self._next["beat"] = 0.0
        self._woken.set()

    def moved(self) -> None:
        """Look at the board now: something came to it, or a place is free; it need not be read anew."""
        self._woken.set()

    async def run(self, runner: Runner) -> None:
        """Go on until cancelled."""
        self.runner = runner
        away = False
        while True:
            self._woken.clear()
            try:
                await self._turn(runner)
                away = False
            except StoreUnavailableError as error:
                if not away:
                    log.error("%s; what runs goes on, and the queue waits", error)
                away = True
            except Exception:
                log.exception("a turn of the dispatcher failed")
            # Not `wait_for`: in Python 3.11 it swallows a cancellation that comes together with a wake.
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK_S if not away else TICK_S / 2):
                    await self._woken.wait()
            if away:
                await asyncio.sleep(TICK_S / 2)

    async def _turn(self, runner: Runner) -> None:
        # Before what has time, so that who has just come need not wait for it.
        await self._fill(runner)
        # One sign of life per tick is enough, however often something happens.
        if self._is_time("beat", min(TICK_S, self._store.lease_s / 4)):
            await self._beat(runner)
        if self._is_time("sweep", self._store.lease_s / 5):
            await self._sweep(runner)
        if self._is_time("clear", CLEAR_EVERY_S):
            await self._clear()

    def _is_time(self, what: str, every_s: float) -> bool:
        now = time.monotonic()
        if now < self._next[what]:
            return False
        self._next[what] = now + every_s
        return True

    async def _beat(self, runner: Runner) -> None:
        held = {running.hold: running for running in runner.running.values()}
        moved = {h: r.job.progress for h, r in held.items() if r.generating and self._told.get(h) != r.job.progress}
        if moved:
            await self._call(self._store.advance, moved)
        self._told = {hold: running.job.progress for hold, running in held.items()}
        beat = await self._call(self._upkeep.heartbeat, self._server)
        for hold in held.keys() - beat.held:
            if hold.job_id in runner.running:  # it may have ended meanwhile
                runner.interrupt(hold.job_id, "lost")
        for hold in beat.cancelled.keys() & held.keys():
            runner.interrupt(hold.job_id, "cancel", beat.cancelled[hold])
        # A claim whose answer was lost with the connection to the database: nobody runs it.
        for hold in beat.held - held.keys():
            if hold.job_id not in runner.running:
                await runner.settle(hold, cancelled=beat.cancelled.get(hold), blame=False)
                self.wake()

    async def _sweep(self, runner: Runner) -> None:
        gone = JobError.of(CancelledError("the client that waited for it, or the server that it waited at, is gone"))
        late = JobError.of(DeadlineExceededError("the job was not finished by its deadline"))
        for end, error in (
            (partial(self._upkeep.end_abandoned, self._server), gone),
            (self._upkeep.end_overdue, late),
            (self._upkeep.end_cancelled, CANCELLED),
        ):
            for job_id in await self._call(end, error):
                self._feeds.touch(job_id)
                self.wake()
        for hold, to_cancel in await self._call(self._upkeep.seize, self._server):
            log.warning("job %s: its server gives no sign of life; taken over", hold.job_id)
            await runner.settle(hold, cancelled=to_cancel, blame=True)
            self.wake()

    async def _fill(self, runner: Runner) -> None:
        """Claim what the scheduler puts first, while its model's worker has room."""
        while True:
            if self._stale or self._is_time("look", TICK_S):
                self._stale = False
                await self._lookout.look()
            if self.draining:
                return
            chosen = self._choose(runner)
            if chosen is None:
                return
            self._stale = True  # unless it is ours now, the board does not know what became of it
            claimed = await self._call(self._store.claim, chosen.name, self._server)
            if claimed is not None:
                self._stale = False
                hold, job = claimed
                self._lookout.board.claimed(job.id)
                runner.start(hold, job)
                self._feeds.touch(job.id)

    def _choose(self, runner: Runner) -> Candidate | None:
        """The first of the queue that may begin now; of each model, only its first may.

        What only waits for its inputs takes no place of those that compute; so many may wait beside them.
        """
        board, seen = self._lookout.board, set[str]()
        here: dict[str, list[Running]] = {}
        # Of those that a process may have died of one at a time: if another dies, it was not all of them.
        suspected = any(map(board.suspect, runner.running))
        for job, candidate in board.in_order():
            if job.state != "queued" or (suspected and job.suspect):
                continue
            try:
                model = self._supervisor.find(board.model(job))
            except (ModelNotFoundError, NotReadyError):  # another server's, or not to be told yet
                continue
            if model in seen:
                continue
            if model not in here:
                here[model] = [r for r in runner.running.values() if r.generating and self._makes(r, model)]
            waiting = [r.job.owner for r in here[model] if self._waits_for_inputs(r)]
            if self._prepares_slowly(board.request(job)) and (
                len(waiting) >= PREPARING or waiting.count(job.owner) >= PREPARING_PER_OWNER
            ):
                continue  # it would only wait there, and who needs no preparing is not to wait behind it
            seen.add(model)
            if self._supervisor.takes(model):
                held = [board.running(r.job) for r in here[model] if not self._waits_for_inputs(r)]
                chosen = admit(held, [candidate], self._settings.max_active)
                if chosen is not None:
                    return chosen
            if len(seen) == len(self._supervisor.names):
                break
        return None

    def _prepares_slowly(self, request: ResolvedRequest) -> bool:
        endpoint = self._settings.prompt_upsampling_endpoint_url
        expanded = self._settings.prompt_upsampling and endpoint is not None
        return prepares_slowly(request, expanded_elsewhere=expanded)

    def _waits_for_inputs(self, running: Running) -> bool:
        before = running.job.progress.stage in ("queued", "prepare")
        return before and self._prepares_slowly(running.job.request)

    def _makes(self, running: Running, model: str) -> bool:
        try:
            return self._supervisor.find(running.job.request.model) == model
        except (ModelNotFoundError, NotReadyError):
            return False

    async def _clear(self) -> None:
        """Remove what is too old or too much, and files that belong to nothing."""
        for job_id in await self._call(self._upkeep.expired, self._settings.retention_s):
            await asyncio.to_thread(self._artifacts.remove, job_id)
            await self._call(self._store.remove, job_id)
        for job_id in await self._call(self._upkeep.over, self._settings.max_artifact_bytes):
            await asyncio.to_thread(self._artifacts.remove, job_id)
            await self._call(self._store.drop_content, job_id)
        stored = await asyncio.to_thread(lambda: list(self._artifacts.jobs()))
        known = await self._call(self._upkeep.results, stored)
        for job_id, (state, key) in known.items():
            if state in FINAL and key is None:
                await asyncio.to_thread(self._artifacts.remove, job_id, inputs=False)
        # Inputs are stored before their job is accepted: only what is unknown twice is nobody's.
        unknown = set(stored) - known.keys()
        for job_id in unknown & self._unknown_files:
            await asyncio.to_thread(self._artifacts.remove, job_id)
        self._unknown_files = unknown
