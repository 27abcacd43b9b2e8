"""The parent's side of the worker process: hands it work, keeps it alive, never blocks the event loop."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cosmorama.engine.outcome import Outcome
from cosmorama.engine.process import WorkerProcess
from cosmorama.engine.worker import Advanced, Cancel, Event, Finished, LoadFailed, Ready, Stop, Submit
from cosmorama.errors import CosmoramaError, NotReadyError, QueueFullError, WorkerError
from cosmorama.progress import Progress, ProgressCallback
from cosmorama.request import Capabilities, GenerationRequest, resolve
from cosmorama.settings import Settings

log = logging.getLogger(__name__)

BACKOFF_S = (0.0, 1.0, 5.0, 15.0, 60.0)
"""Waits before the first, second, ... restart in a row; the last one repeats."""
STOP_GRACE_S = 10.0
MAX_ATTEMPTS = 3
"""How many workers a request may be handed to, in case it is the request that kills them before they can say so."""


@dataclass(slots=True, eq=False)
class _Job:
    request: GenerationRequest
    output: Path
    on_progress: ProgressCallback
    result: asyncio.Future[Outcome]
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    attempts: int = 0
    started_at: float | None = None

    @property
    def running(self) -> bool:
        return self.started_at is not None


class Supervisor:
    """Owns the worker process. All methods are for one event loop.

    Attributes:
        ready: Whether a generation can be accepted.
        reason: In words, why it is not.
        capabilities: What the model takes, once one was loaded.
        restarts: How often the worker had to be started again.
    """

    def __init__(self, settings: Settings) -> None:
        self.ready = False
        self.reason = "the model is loading"
        self.capabilities: Capabilities | None = None
        self.restarts = 0
        self._settings = settings
        self._jobs: dict[str, _Job] = {}
        self._worker: WorkerProcess | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._stopping = False
        self._load_error = ""
        self._failures = 0
        self._typical_s = 30.0

    @property
    def active(self) -> int:
        """Generations being worked on."""
        return sum(job.running for job in self._jobs.values())

    @property
    def queued(self) -> int:
        """Generations accepted and not begun."""
        return len(self._jobs) - self.active

    @property
    def worker_pid(self) -> int | None:
        """Process id of the worker, if there is one now."""
        return self._worker.pid if self._worker else None

    @property
    def retry_after_s(self) -> int:
        """A guess at when a refused client may come again."""
        return max(1, round(self._typical_s)) if self.ready else 5

    async def start(self) -> None:
        """Start the worker; returns before the model is loaded."""
        self._stopping = False
        self._keeper = asyncio.create_task(self._keep_alive())

    async def stop(self) -> None:
        """Ask the worker to stop, end it if it does not, and fail what was in flight."""
        self._stopping = True
        self.ready, self.reason = False, "the server is stopping"
        if self._worker is not None:
            self._worker.send(Stop())
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._worker.ended), STOP_GRACE_S)
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
        self._fail_all(WorkerError("the server stopped before the generation finished"))

    async def generate(
        self, request: GenerationRequest, *, output: Path, on_progress: ProgressCallback | None = None
    ) -> Outcome:
        """Generate a clip into `output`. Cancelling the calling task cancels the generation within one step.

        Raises:
            InvalidRequestError: the model cannot make this.
            NotReadyError: no model is loaded now.
            QueueFullError: too many generations wait already.
            MediaError: the image or video cannot be used.
            WorkerError: the worker died or failed while it made this.
        """
        if not self.ready or self.capabilities is None:
            raise NotReadyError(self.reason)
        # With its seed drawn here, a request that is handed to a second worker stays the same request.
        request = resolve(request, self.capabilities)
        if len(self._jobs) >= self._settings.max_active + self._settings.max_queue:
            raise QueueFullError(f"{self.queued} generations are waiting already; try again later")
        result: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        job = _Job(request, output, on_progress or (lambda progress: None), result)
        self._jobs[job.name] = job
        self._hand_over(job)
        try:
            return await job.result
        except asyncio.CancelledError:
            if self._worker is not None:
                self._worker.send(Cancel(job.name))
            raise

    def _hand_over(self, job: _Job) -> None:
        if job.result.done() or self._worker is None:  # cancelled while no worker was there
            del self._jobs[job.name]
            return
        job.attempts += 1
        self._worker.send(Submit(job.name, job.request, job.output))

    async def _keep_alive(self) -> None:
        while True:
            self._load_error = ""
            worker = self._worker = WorkerProcess(self._settings, self._on_event)
            try:
                await asyncio.to_thread(worker.start)
                code = await worker.ended
            finally:
                worker.kill()
                self._worker = None
            if self._stopping:
                return
            self._on_death(code)
            delay = BACKOFF_S[min(self._failures, len(BACKOFF_S)) - 1]
            log.error("%s; starting another worker in %g s", self.reason, delay)
            await asyncio.sleep(delay)
            self.restarts += 1

    def _on_event(self, event: Event) -> None:
        match event:
            case Ready(capabilities):
                self.capabilities = capabilities
                self.ready, self.reason = True, "ready"
                for job in list(self._jobs.values()):
                    self._hand_over(job)
            case LoadFailed(reason):
                self._load_error = reason
                self.reason = f"the model could not be loaded: {reason}"
            case Advanced(name, progress) if name in self._jobs:
                self._on_progress(self._jobs[name], progress)
            case Finished(name, result) if name in self._jobs:
                self._failures = 0
                self._finish(self._jobs.pop(name), result)

    def _on_progress(self, job: _Job, progress: Progress) -> None:
        if job.started_at is None and progress.stage != "queued":
            job.started_at = time.monotonic()
        if job.result.done():
            return
        try:
            job.on_progress(progress)
        except Exception:
            log.exception("a progress callback failed")

    def _finish(self, job: _Job, result: Outcome | CosmoramaError) -> None:
        if job.result.done():
            if isinstance(result, Outcome):  # finished while it was being cancelled: nobody waits for the file
                result.path.unlink(missing_ok=True)
        elif isinstance(result, CosmoramaError):
            job.result.set_exception(result)
        else:
            if job.started_at is not None:
                self._typical_s = 0.5 * self._typical_s + 0.5 * (time.monotonic() - job.started_at)
            job.result.set_result(result)

    def _on_death(self, code: int) -> None:
        was_ready, self.ready = self.ready, False
        self._failures += 1
        if was_ready:
            self.reason = f"the worker process died ({_exit_in_words(code)})"
        elif not self._load_error:
            self.reason = f"the worker process died while it loaded the model ({_exit_in_words(code)})"
        if not was_ready:
            self._fail_all(NotReadyError(self.reason))
        for name, job in list(self._jobs.items()):
            if job.running or job.attempts >= MAX_ATTEMPTS:
                del self._jobs[name]
                self._finish(job, WorkerError(f"{self.reason} while it ran this generation; it can be sent again"))

    def _fail_all(self, error: CosmoramaError) -> None:
        while self._jobs:
            _, job = self._jobs.popitem()
            self._finish(job, error)


def _exit_in_words(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"
