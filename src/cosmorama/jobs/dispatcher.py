"""The heartbeat of a server's jobs: signs of life, claims, takeovers, deadlines, and clearing away."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

from cosmorama.engine.scheduler import Candidate, admit
from cosmorama.engine.workers import Workers
from cosmorama.errors import CancelledError, DeadlineExceededError, ModelNotFoundError, NotReadyError
from cosmorama.jobs.artifacts import Artifacts
from cosmorama.jobs.feed import Feeds
from cosmorama.jobs.lookout import Lookout
from cosmorama.jobs.record import FINAL, JobError, StoreUnavailableError
from cosmorama.jobs.runner import CANCELLED, Runner, Running
from cosmorama.jobs.store import Hold, Store
from cosmorama.jobs.upkeep import Upkeep
from cosmorama.progress import Progress
from cosmorama.settings import Settings

log = logging.getLogger(__name__)

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
        """The first of the queue that may begin now; of each model, only its first may."""
        board, seen = self._lookout.board, set[str]()
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
            seen.add(model)
            if self._supervisor.takes(model):
                held = [board.running(r.job) for r in runner.running.values() if r.generating and self._makes(r, model)]
                chosen = admit(held, [candidate], self._settings.max_active)
                if chosen is not None:
                    return chosen
            if len(seen) == len(self._supervisor.names):
                break
        return None

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
