"""What a server does with the queue all the time: claiming, heartbeat, ending what nobody else ends, clearing away."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from cosmorama.engine.pool import ModelPool
from cosmorama.engine.scheduler import PREPARING, PREPARING_PER_OWNER, admit, prepares_slowly
from cosmorama.errors import (
    CancelledError,
    DeadlineExceededError,
    ModelNotFoundError,
    NotReadyError,
    StoreUnavailableError,
)
from cosmorama.jobs.channel import Channels, Observer
from cosmorama.jobs.files import Artifacts
from cosmorama.jobs.model import FINAL, JobError
from cosmorama.jobs.queue import QueueView
from cosmorama.jobs.store import Claim, Store
from cosmorama.jobs.worker import CANCELLED, Runner, Running
from cosmorama.progress import Progress
from cosmorama.request import ResolvedRequest
from cosmorama.settings import Settings

log = logging.getLogger(__name__)

TICK_S = 1.0
"""How often what other servers did is looked for; what happens on this one is acted on at once."""
CLEAR_EVERY_S = 300.0
CLAIM_FROM = 128
"""So many jobs are named in one claim: the first of them that no other server takes at that moment is got."""
PROBE_EVERY_S = 5.0
"""How often it is seen whether the artifact store can be written."""
PROBE_S = 10.0
"""After so long without an answer it cannot."""


class Dispatcher:
    """Keeps a server's claims alive and its worker busy: claiming, heartbeat, clearing and more, each in a loop.

    Attributes:
        away: Why nothing can be accepted or begun, in words: the database or the artifact store cannot be used.
        vanished: The same where the store itself was taken away: what is accepted would be lost with it.
        alone: Says whether no other server shares the store now.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        artifacts: Artifacts,
        supervisor: ModelPool,
        channels: Channels,
        queue: QueueView,
        runner: Runner,
        observer: Observer,
        server: str,
    ) -> None:
        self.draining = False
        self.away: str | None = None
        self.vanished: str | None = None
        self.alone: Callable[[], Awaitable[bool]] = _yes
        self._settings = settings
        self._store = store
        self._artifacts = artifacts
        self._supervisor = supervisor
        self._channels = channels
        self._queue = queue
        self._runner = runner
        self._observer = observer
        self._stale = True
        self._server = server
        self._woken = asyncio.Event()
        self._told: dict[Claim, Progress] = {}
        self._unknown_files: set[str] = set()
        self._refresh_at = 0.0
        self._probing: asyncio.Future[StoreUnavailableError | None] | None = None
        self._beat_now, self._probe_now = asyncio.Event(), asyncio.Event()
        # A claim that is in the store and not yet in `runner.running` looks to the heartbeat like one that was lost,
        # and to who cancels the job like one of another server.
        self.claiming = asyncio.Lock()

    def wake(self, *, reread: bool = True) -> None:
        """Claim what can be claimed now; `reread`: the queue changed in a way that only the store knows."""
        self._stale = self._stale or reread
        self._woken.set()

    def beat_now(self) -> None:
        """Look now for what became of the jobs that run here: one of them was cancelled on another server."""
        self._beat_now.set()

    async def run(self) -> None:
        """Go on until cancelled."""
        lease_s = self._store.lease_s
        async with asyncio.TaskGroup() as loops:
            loops.create_task(self._loop(self._claim, self._woken, TICK_S))
            loops.create_task(self._loop(self._heartbeat, self._beat_now, min(TICK_S, lease_s / 4)))
            loops.create_task(self._loop(self._probe, self._probe_now, PROBE_EVERY_S))
            loops.create_task(self._loop(self._expire, asyncio.Event(), lease_s / 5))
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

    async def _heartbeat(self) -> None:
        """Say that this server lives, see what became of its claims, and whether its stores can be used."""
        try:
            self._store.database.check()
            self.vanished = None
        except StoreUnavailableError as error:
            self.away = self.vanished = str(error)
            raise
        try:
            async with self.claiming:
                await self._renew()
        except StoreUnavailableError as error:
            self.away = str(error)
            raise
        self.away = self._runner.unwritable

    async def _probe(self) -> None:
        """See whether the artifact store can be written; apart from the heartbeat, since it may not answer for long."""
        runner, was = self._runner, self._runner.unwritable
        if self._probing is None:
            self._probing = asyncio.ensure_future(asyncio.to_thread(self._unwritable))
        await asyncio.wait({self._probing}, timeout=PROBE_S)
        error: StoreUnavailableError | None = StoreUnavailableError(
            "the artifact store does not answer; try again later"
        )
        if self._probing.done():
            error, self._probing = self._probing.result(), None
        runner.unwritable = None if error is None else str(error)
        if error is not None:  # jobs are refused: it is found soon that they can be accepted again
            asyncio.get_running_loop().call_later(TICK_S, self._probe_now.set)
        if error is not None and was is None:
            log.error("%s; nothing is accepted or begun until it can", error.logged)
        elif error is None and was is not None:
            self.wake()

    def _unwritable(self) -> StoreUnavailableError | None:
        try:
            self._artifacts.probe()
        except StoreUnavailableError as error:
            return error
        return None

    async def _renew(self) -> None:
        runner = self._runner
        held = {running.claim: running for running in runner.running.values()}
        moved = {h: r.job.progress for h, r in held.items() if r.generating and self._told.get(h) != r.job.progress}
        if moved:
            await self._store.advance(moved)
        self._told = {claim: running.job.progress for claim, running in held.items()}
        beat = await self._store.heartbeat(self._server)
        for claim in held.keys() - beat.keys():
            if claim.job_id in runner.running:  # it may have ended meanwhile
                runner.interrupt(claim.job_id, "lost")
        for claim, error in beat.items():
            if claim in held and error is not None:
                runner.interrupt(claim.job_id, "cancel", error)
            elif claim not in held and claim.job_id not in runner.running:
                # Its answer was lost with the connection to the database: nobody runs it.
                await runner.recover(claim, blame=False)
                self.wake()

    async def _expire(self) -> None:
        """End what is late or wanted by nobody, and take over what dead servers ran."""
        gone = JobError.of(CancelledError("the client that waited for it, or the server that it waited at, is gone"))
        late = JobError.of(DeadlineExceededError("the job was not finished by its deadline"))
        # First what is taken over: between two looks the other way round, a server that ran its own client's job would
        # be found dead as the one only, and the job be begun anew for nobody.
        taken = await self._store.take_over_expired(self._server)
        ended = await self._store.end_unwanted(self._server, gone, late, CANCELLED)
        # What a newer server wrote is left to it; without one, nobody would ever come for it.
        if self._queue.unreadable and await self.alone():
            unreadable = await self._store.end_unreadable(self._queue.unreadable)
            ended += unreadable
            for job in unreadable:
                log.error("job %s: its request cannot be read by this release", job.id)
        for job in ended:
            self._runner.ended(job)
            self._channels.touch(job.id)
        for claim in taken:
            log.warning("job %s: its server gives no sign of life; taken over", claim.job_id)
            await self._runner.recover(claim, blame=True)
        if ended or taken:
            self.wake()

    async def _claim(self) -> None:
        """Claim what the scheduler puts first, while its model's worker has room."""
        while True:
            now = time.monotonic()
            if self._stale or now >= self._refresh_at:
                self._stale, self._refresh_at = False, now + TICK_S
                await self._queue.refresh()
                for job_id in self._queue.gone:
                    self._observer.left(job_id)
            if self.draining or self._runner.unwritable is not None:
                return
            chosen = self._choose()
            if not chosen:
                return
            async with self.claiming:
                claimed = await self._store.claim(chosen, self._server)
                if claimed is not None:
                    claim, job = claimed
                    self._runner.start(claim, job)
                    self._channels.touch(job.id)
            # What others took before it is known to the store alone.
            self._stale = self._stale or claimed is None or claimed[0].job_id != chosen[0]

    def _choose(self) -> list[str]:
        """What may begin now, of one model and best first: `CLAIM_FROM` jobs, since others may be taken meanwhile.

        Of each model nothing goes before its first. What only waits for its inputs takes no place of those that
        compute; so many may wait beside them.
        """
        queue, chosen, found, refused = self._queue, list[str](), "", set[str]()
        # Of those that a process may have died of one at a time: if another dies, it was not all of them.
        suspected = any(map(queue.suspect, self._runner.running))
        for candidate in queue.ordered():
            job = queue.jobs[candidate.name]
            if job.state != "queued" or (suspected and job.suspect):
                continue
            try:
                model = self._supervisor.find(job.request.model)
            except (ModelNotFoundError, NotReadyError):  # another server's, or not to be told yet
                continue
            if model in refused or (chosen and model != found):
                continue
            here = [r for r in self._runner.running.values() if r.generating and self._makes(r, model)]
            waiting = [r.job.owner for r in here if self._waits_for_inputs(r)]
            if self._prepares_slowly(job.request) and (
                len(waiting) >= PREPARING or waiting.count(job.owner) >= PREPARING_PER_OWNER
            ):
                continue  # it would only wait there, and who needs no preparing is not to wait behind it
            held = [queue.candidate(r.job) for r in here if not self._waits_for_inputs(r)]
            taken = bool(chosen) or self._supervisor.takes(model)
            if taken and admit(held, [candidate], self._supervisor.places) is not None:
                chosen.append(job.id)
                found = model
            else:
                refused.add(model)
            if len(chosen) == CLAIM_FROM or len(refused) == len(self._supervisor.names):
                break
        return chosen

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
        while ids := await self._store.expired(self._settings.retention_s):
            for job_id in ids:
                await asyncio.to_thread(self._artifacts.remove, job_id)
            await self._store.remove(ids)
        while ids := await self._store.over(self._settings.max_artifact_bytes):
            await self._store.drop_contents(ids)  # first, so that nobody is promised what is gone
            for job_id in ids:
                await asyncio.to_thread(self._artifacts.remove, job_id)
        stored = await asyncio.to_thread(lambda: list(self._artifacts.jobs()))
        known = await self._store.results(stored)
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
