"""Takes jobs from the queue, has them made, records how they ended; keeps claims alive, and clears away."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from cosmorama.engine.pool import ModelPool
from cosmorama.engine.scheduler import PREPARING, PREPARING_PER_OWNER, Candidate, admit, prepares_slowly
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
        hold: The claim.
        job: As it was claimed, with the progress since.
        begun: Whether its task has taken its first step. One that is cancelled before never runs at all, and nobody
            would write down how the job ended.
        generating: Whether it takes a place in the worker; false while its result is stored.
        stuck: Whether its clip waits for a store that cannot be written.
        task: What runs it.
        reason: Why the task is being cancelled, if it is.
        error: What the job ends with then.
    """

    hold: Hold
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
        supervisor: ModelPool,
        feeds: Feeds,
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

    async def settle(self, hold: Hold, *, cancelled: JobError | None, blame: bool) -> None:
        """Decide about a claim that no task is at: the job is finished already, to be cancelled, or to begin anew."""
        published = await asyncio.to_thread(self._artifacts.published, hold.job_id, hold.attempt)
        if published is not None:
            ended = await self._call(self._store.finish, hold, _success(published))
        elif cancelled is not None:
            ended = await self._call(self._store.finish, hold, Finish("cancelled", cancelled))
        else:
            ended = await self._give_back(hold, "the server died", SERVER_DIED if blame else 0)
        if ended is not None:
            self.ended(ended)
        self._feeds.touch(hold.job_id)

    def ended(self, job: Job) -> None:
        """A job came to its end by this server's hand, wherever it was: tell of it, once, and let its files go."""
        self._observer.ended(job, job.state, job.error)
        if job.state != "succeeded":
            self._later(self._remove_files(job.id))

    def left(self, job_id: str) -> None:
        """A job came to its end by another server's hand."""
        self._observer.left(job_id)

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
        with self._feeds.using(job.id) as feed:
            running.begun = True
            try:
                if running.reason is not None:
                    raise asyncio.CancelledError
                clip = self._scratch.place(suffix(job.request.output))
                finish = await self._make(running, clip)
            except asyncio.CancelledError:
                running.reason = running.reason or "lost"  # the process ends: nothing is known any more
                if running.reason == "cancel":
                    finish = Finish("cancelled", running.error)
            except WorkerDiedError as error:
                died, weight = str(error), WORKER_DIED if error.suspect else 0
            except NotReadyError:
                pass
            except StoreUnavailableError as error:  # its inputs cannot be had now; nothing is begun until they can
                log.warning("job %s goes back into the queue: %s", job.id, error.logged)
                self.unwritable = str(error)
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
                ended = await self._record(running, finish, died, weight)
            except StoreUnavailableError as error:
                log.warning("job %s: %s", job.id, error.logged)
            finally:
                if self.running.get(job.id) is running:  # given back, it may have been claimed again already
                    del self.running[job.id]
                    feed.job = ended
                feed.touch()
                self._on_change(ended is not None)
                if clip is not None:
                    self._later(self._discard(running.name, clip))

    async def _record(self, running: Running, finish: Finish | None, died: str, weight: int) -> Job | None:
        """Write down how a run came to its end; the job if it is over."""
        hold = running.hold
        if running.reason == "lost":
            return None
        if running.reason == "stop":
            await self._call(self._store.release, hold)
            return None
        if finish is None:
            ended: Job | None = await self._persist(lambda: self._give_back(hold, died, weight))
        else:
            ended = await self._persist(lambda: self._call(self._store.finish, hold, finish))
            if ended is None and finish.state == "succeeded":  # it was somebody else's by then
                with suppress(StoreUnavailableError):
                    await asyncio.to_thread(self._artifacts.remove_attempt, hold.job_id, hold.attempt)
        if ended is not None:
            self.ended(ended)
            log.info("%s after %.1f s", ended.state, time.time() - ended.created_at)
        return ended

    async def _discard(self, name: str, clip: Path) -> None:
        """Remove the folder that a clip was made in, once the worker, which writes into it, has let go of it."""
        await self._supervisor.released(name)
        await asyncio.to_thread(self._scratch.discard, clip)

    async def _make(self, running: Running, clip: Path) -> Finish:
        job, hold = running.job, running.hold
        request, begun_at = job.request, time.monotonic()
        if request.mode != "text2world":
            request = await self._patiently(lambda: restore_media(request, self._artifacts.read))
        left_s = None if hold.left_s is None else max(hold.left_s - (time.monotonic() - begun_at), 0)
        try:
            async with asyncio.timeout(left_s):
                with self._supervisor.worker(request.model) as worker:
                    outcome = await worker.generate(
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
        while True:
            try:
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
            except StoreUnavailableError as error:
                # The clip is made; it waits here, and nothing else is begun, until it can be stored.
                running.stuck, self.unwritable = True, str(error)
                await asyncio.sleep(STORE_RETRIES_S[-1])
            else:
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

    async def _give_back(self, hold: Hold, reason: str, blame: int) -> Job | None:
        """Put a job whose process died back into the queue, or end it if it is suspected too much; the job then."""
        message = f"{reason}; the job was begun {hold.attempt} times, came to no end, and is given up"
        finish = Finish("failed", JobError.of(WorkerError(message)))
        ended: Job | None = await self._call(self._store.release, hold, blame, MAX_BLAME, finish)
        return ended

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


TICK_S = 1.0

"""How often what other servers did is looked for; what happens on this one is acted on at once."""

CLEAR_EVERY_S = 300.0
PROBE_EVERY_S = 5.0
"""How often it is seen whether the artifact store can be written."""


class Dispatcher:
    """Keeps a server's claims alive and its worker busy: claiming, heartbeat and clearing, each in a loop of its own.

    Attributes:
        away: Why nothing can be accepted or begun, in words: the database or the artifact store cannot be used.
        vanished: The same where the store itself was taken away: what is accepted would be lost with it.
        alone: Says whether no other server shares the store now.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        call: Callable[..., Awaitable[Any]],
        artifacts: Artifacts,
        supervisor: ModelPool,
        feeds: Feeds,
        lookout: Lookout,
        server: str,
    ) -> None:
        self.runner: Runner | None = None
        self.draining = False
        self.away: str | None = None
        self.vanished: str | None = None
        self.alone: Callable[[], Awaitable[bool]] = _yes
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
        self._look_at = self._probe_at = 0.0
        self._beat_now = asyncio.Event()
        # A claim that is in the store and not yet in `runner.running` looks to the heartbeat like one that was lost,
        # and to who cancels the job like one of another server.
        self.claiming = asyncio.Lock()

    def wake(self) -> None:
        """Read the queue now: something changed, or a place is free."""
        self._stale = True
        self._woken.set()

    def beat_now(self) -> None:
        """Look now for what became of the jobs that run here: one of them was cancelled on another server."""
        self._beat_now.set()

    def moved(self) -> None:
        """Look at the board now: something came to it, or a place is free; it need not be read anew."""
        self._woken.set()

    async def run(self, runner: Runner) -> None:
        """Go on until cancelled."""
        self.runner = runner
        lease_s = self._store.lease_s
        async with asyncio.TaskGroup() as loops:
            loops.create_task(self._loop(lambda: self._fill(runner), self._woken, TICK_S))
            loops.create_task(self._loop(lambda: self._heartbeat(runner), self._beat_now, min(TICK_S, lease_s / 4)))
            loops.create_task(self._loop(lambda: self._sweep(runner), asyncio.Event(), lease_s / 5))
            loops.create_task(self._loop(self._clear, asyncio.Event(), CLEAR_EVERY_S))

    async def _loop(self, turn: Callable[[], Awaitable[None]], woken: asyncio.Event, every_s: float) -> None:
        """Take turns, after each wake and at least so often; an error is one turn's."""
        away = False
        while True:
            woken.clear()
            try:
                await turn()
                away = False
            except StoreUnavailableError as error:
                if not away:
                    log.error("%s; what runs goes on, and the queue waits", error.logged)
                away = True
            except Exception:
                log.exception("a turn of the dispatcher failed")
            # Not `wait_for`: in Python 3.11 it swallows a cancellation that comes together with a wake.
            with suppress(TimeoutError):
                async with asyncio.timeout(every_s if not away else TICK_S / 2):
                    await woken.wait()
            if away:
                await asyncio.sleep(TICK_S / 2)

    async def _heartbeat(self, runner: Runner) -> None:
        """Say that this server lives, see what became of its claims, and whether its stores can be used."""
        try:
            self._store.database.check()
            self.vanished = None
        except StoreUnavailableError as error:
            self.away = self.vanished = str(error)
            raise
        try:
            async with self.claiming:
                await self._beat(runner)
        except StoreUnavailableError as error:
            self.away = str(error)
            raise
        now = time.monotonic()
        if now >= self._probe_at:
            self._probe_at = now + PROBE_EVERY_S
            was = runner.unwritable
            try:
                await asyncio.to_thread(self._artifacts.probe)
                runner.unwritable = None
            except StoreUnavailableError as error:
                if was is None:
                    log.error("%s; nothing is accepted or begun until it can", error.logged)
                runner.unwritable = str(error)
            if was is not None and runner.unwritable is None:
                self.wake()
        self.away = runner.unwritable

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
            for job in await self._call(end, error):
                runner.ended(job)
                self._feeds.touch(job.id)
                self.wake()
        # What a newer server wrote is left to it; without one, nobody would ever come for it.
        if self._lookout.unreadable and await self.alone():
            for job in await self._call(self._upkeep.end_unreadable, self._lookout.unreadable):
                log.error("job %s: its request cannot be read by this release", job.id)
                runner.ended(job)
                self._feeds.touch(job.id)
        for hold, to_cancel in await self._call(self._upkeep.seize, self._server):
            log.warning("job %s: its server gives no sign of life; taken over", hold.job_id)
            await runner.settle(hold, cancelled=to_cancel, blame=True)
            self.wake()

    async def _fill(self, runner: Runner) -> None:
        """Claim what the scheduler puts first, while its model's worker has room."""
        while True:
            now = time.monotonic()
            if self._stale or now >= self._look_at:
                self._stale, self._look_at = False, now + TICK_S
                await self._lookout.look()
                for job_id in self._lookout.board.gone:
                    runner.left(job_id)
            if self.draining or runner.unwritable is not None:
                return
            chosen = self._choose(runner)
            if chosen is None:
                return
            self._stale = True  # unless it is ours now, the board does not know what became of it
            async with self.claiming:
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
                chosen = admit(held, [candidate], self._supervisor.places)
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
        """Remove what is too old or too much, and files that belong to nothing: a little at a time."""
        while ids := await self._call(self._upkeep.expired, self._settings.retention_s):
            for job_id in ids:
                await asyncio.to_thread(self._artifacts.remove, job_id)
            await self._call(self._upkeep.remove, ids)
        while ids := await self._call(self._upkeep.over, self._settings.max_artifact_bytes):
            await self._call(self._upkeep.drop_contents, ids)  # first, so that nobody is promised what is gone
            for job_id in ids:
                await asyncio.to_thread(self._artifacts.remove, job_id)
        stored = await asyncio.to_thread(lambda: list(self._artifacts.jobs()))
        known = await self._call(self._upkeep.results, stored)
        for job_id, (state, key) in known.items():
            if state in FINAL and key is None:
                await asyncio.to_thread(self._artifacts.remove, job_id, inputs=state != "succeeded")
        # Inputs are stored before their job is accepted: only what is unknown twice is nobody's.
        unknown = set(stored) - known.keys()
        for job_id in unknown & self._unknown_files:
            await asyncio.to_thread(self._artifacts.remove, job_id)
        self._unknown_files = unknown


async def _yes() -> bool:
    return True
