"""The parent's side of the worker process: hands it work, keeps it alive, never blocks the event loop."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cosmorama.engine.outcome import Outcome
from cosmorama.engine.process import WorkerProcess
from cosmorama.engine.scheduler import Priority
from cosmorama.engine.watchdog import Watchdog
from cosmorama.engine.worker import (
    Advanced,
    Broken,
    Cancel,
    Check,
    Checked,
    Event,
    Finished,
    LoadFailed,
    Previewed,
    Ready,
    Stop,
    Submit,
    Watch,
)
from cosmorama.errors import CosmoramaError, NotReadyError, WorkerDiedError
from cosmorama.progress import Progress, ProgressCallback
from cosmorama.request import Capabilities, GenerationRequest, ResolvedRequest
from cosmorama.resolve import resolve
from cosmorama.settings import Settings

log = logging.getLogger(__name__)

PreviewCallback = Callable[[bytes], None]

BACKOFF_S = (0.0, 1.0, 5.0, 15.0, 60.0)
"""Waits before the first, second, ... restart in a row; the last one repeats."""
STOP_GRACE_S = 10.0
LOOK_EVERY_S = 1.0
"""How often a worker is looked at that may hang."""


@dataclass(slots=True, eq=False)
class Held:
    """A generation that a worker has.

    Attributes:
        released: Set when nothing writes its file any more.
        replica: Which replica makes it; empty where that is not known.
    """

    request: ResolvedRequest
    on_progress: ProgressCallback
    on_preview: PreviewCallback
    result: asyncio.Future[Outcome] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    progress: Progress = field(default_factory=lambda: Progress("queued"))
    released: asyncio.Event = field(default_factory=asyncio.Event)
    watched: bool = False
    replica: str = ""


class Worker:
    """Whoever makes clips with one model: a process here, or replicas on a cluster (one worker with many places).

    All methods are for one event loop.

    Attributes:
        ready: Whether a generation can be accepted.
        reason: In words, why it is not.
        capabilities: What the model takes, once one was loaded.
        on_ready: Called when the model was loaded.
    """

    def __init__(self, settings: Settings) -> None:
        self.ready = False
        self.reason = "the model is loading"
        self.capabilities: Capabilities | None = None
        self.on_ready: Callable[[], None] = lambda: None
        self._settings = settings
        self._generations: dict[str, Held] = {}

    @property
    def restarts(self) -> int:
        """How often a process had to be started again."""
        raise NotImplementedError

    @property
    def active(self) -> int:
        """Generations being worked on."""
        return sum(generation.progress.stage != "queued" for generation in self._generations.values())

    @property
    def held(self) -> int:
        """Generations that it has, worked on or not yet."""
        return len(self._generations)

    @property
    def worker_pid(self) -> int | None:
        """Process id, if it is one process of this machine and runs now."""
        return None

    async def start(self) -> None:
        """Begin to load the model; returns before that is done."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Stop, and fail what was in flight."""
        raise NotImplementedError

    async def generate(
        self,
        request: GenerationRequest,
        *,
        output: Path,
        name: str | None = None,
        priority: Priority = "normal",
        age_s: float = 0.0,
        owner: str = "",
        on_progress: ProgressCallback | None = None,
        on_preview: PreviewCallback | None = None,
    ) -> Outcome:
        """Generate a clip into `output`. Cancelling the calling task cancels the generation within one step.

        Args:
            request: What to make.
            output: Where the file will be.
            name: For `watch`; unique among those in flight.
            priority: Class of service.
            age_s: Seconds since the request was accepted.
            owner: Whose it is.
            on_progress: Called at every unit of work.
            on_preview: Called with a small JPEG every few steps while the generation is watched.

        Raises:
            InvalidRequestError: the model cannot make this.
            NotReadyError: no model is loaded now.
            MediaError: the image or video cannot be used.
            WorkerDiedError: the worker died while it had this.
            WorkerError: it failed inside.
        """
        if not self.ready or self.capabilities is None:
            raise NotReadyError(self.reason)
        resolved = resolve(request, self.capabilities)
        wanted = Submit(name or uuid.uuid4().hex, resolved, output, priority, age_s, owner)
        generation = Held(resolved, on_progress or _ignore, on_preview or _ignore)
        self._generations[wanted.job] = generation
        return await self._make(wanted, generation)

    async def _make(self, wanted: Submit, generation: Held) -> Outcome:
        """Generate what is wanted, and forget it when it is over."""
        raise NotImplementedError

    async def check(self, text: str, called: str) -> None:
        """Let a text that no generation has pass the guardrails, called as in `Decision.on`.

        Raises:
            PromptRefusedError: one does not let it.
            NotReadyError: there is nobody to ask, or the answer never came.
        """
        raise NotImplementedError

    async def released(self, name: str) -> None:
        """Return once nothing here writes the generation's file any more."""
        if (generation := self._generations.get(name)) is not None:
            await generation.released.wait()

    def watch(self, name: str, watched: bool) -> None:
        """Begin or end making previews of a generation."""
        raise NotImplementedError


def _ignore(news: object) -> None:
    """Where nobody wants to know."""


class Supervisor(Worker):
    """Owns the worker process.

    Attributes:
        restarts: How often the worker had to be started again.
        failures: How many workers in a row died before they had finished anything.
    """

    restarts = 0

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.failures = 0
        self._checks: dict[str, asyncio.Future[None]] = {}
        self._advanced_last: str | None = None
        self._worker: WorkerProcess | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._stopping = False
        self._load_error = ""
        self._death = ""
        self._watchdog = Watchdog(settings.hang_s, on_gpu=False)

    @property
    def worker_pid(self) -> int | None:
        return self._worker.pid if self._worker else None

    async def start(self) -> None:
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
        self._lose_all("the server stopped before the generation finished", blame=False)

    async def _make(self, wanted: Submit, generation: Held) -> Outcome:
        assert self._worker is not None  # it is ready
        self._worker.send(wanted)
        try:
            return await generation.result
        except asyncio.CancelledError:
            if self._worker is not None:
                self._worker.send(Cancel(wanted.job))
            raise

    async def check(self, text: str, called: str) -> None:
        if not self.ready or self._worker is None:
            raise NotReadyError(self.reason)
        name = uuid.uuid4().hex
        answer = self._checks[name] = asyncio.get_running_loop().create_future()
        self._worker.send(Check(name, text, called))
        try:
            await answer
        finally:
            self._checks.pop(name, None)

    def watch(self, name: str, watched: bool) -> None:
        if self._worker is not None and name in self._generations:
            self._worker.send(Watch(name, watched))

    async def _keep_alive(self) -> None:
        while True:
            self._load_error = self._death = ""
            self._watchdog = Watchdog(self._settings.hang_s, on_gpu=False)
            worker = self._worker = WorkerProcess(self._settings, self._on_event)
            try:
                await asyncio.to_thread(worker.start)
                code = await self._ended(worker)
            finally:
                worker.kill()
                self._worker = None
            if self._stopping:
                return
            self._on_death(code)
            delay = BACKOFF_S[min(self.failures, len(BACKOFF_S)) - 1]
            log.error("%s; starting another worker in %g s", self.reason, delay)
            await asyncio.sleep(delay)
            self.restarts += 1

    async def _ended(self, worker: WorkerProcess) -> int:
        """Wait for the end of a worker, and bring it about when it hangs; the exit code."""
        loop = asyncio.get_running_loop()
        looked, used = loop.time(), worker.processor_s
        while True:
            await asyncio.wait({worker.ended}, timeout=LOOK_EVERY_S)
            if worker.ended.done():
                return worker.ended.result()
            now, used_now = loop.time(), worker.processor_s
            reason = self._watchdog.overdue(now - looked, used_now - used)
            looked, used = now, used_now
            if reason is not None and not self._death:
                self._death = f"the worker hung: {reason}"
                worker.kill()

    def _on_event(self, event: Event) -> None:
        match event:
            case Ready(capabilities, device):
                self.capabilities = capabilities
                self._watchdog = Watchdog(self._settings.hang_s, on_gpu=device != "cpu")
                self.ready, self.reason = True, "ready"
                self.on_ready()
            case LoadFailed(reason):
                self._load_error = reason
                self.reason = f"the model could not be loaded: {reason}"
            case Broken(reason):
                self._death = f"the worker's model broke: {reason}"
            case Advanced(name, progress) if name in self._generations:
                self._advanced_last = name
                self._watchdog.advanced(name, self._generations[name].request, progress)
                self._on_progress(self._generations[name], progress)
            case Previewed(name, jpeg) if name in self._generations:
                if not self._generations[name].result.done():
                    self._generations[name].on_preview(jpeg)
            case Checked(name, refused) if name in self._checks and not self._checks[name].done():
                if refused is None:
                    self._checks[name].set_result(None)
                else:
                    self._checks[name].set_exception(refused)
            case Finished(name, result) if name in self._generations:
                self.failures = 0
                self._watchdog.ended(name)
                self._finish(self._generations.pop(name), result)

    def _on_progress(self, generation: Held, progress: Progress) -> None:
        generation.progress = progress
        if generation.result.done():
            return
        try:
            generation.on_progress(progress)
        except Exception:
            log.exception("a progress callback failed")

    def _finish(self, generation: Held, result: Outcome | CosmoramaError) -> None:
        generation.released.set()
        if generation.result.done():
            if isinstance(result, Outcome):  # finished while it was being cancelled: nobody waits for the file
                result.path.unlink(missing_ok=True)
        elif isinstance(result, CosmoramaError):
            generation.result.set_exception(result)
        else:
            generation.result.set_result(result)

    def _on_death(self, code: int) -> None:
        was_ready, self.ready = self.ready, False
        self.failures += 1
        if was_ready:
            self.reason = self._death or f"the worker process died ({_exit_in_words(code)})"
        elif not self._load_error:
            self.reason = f"the worker process died while it loaded the model ({_exit_in_words(code)})"
        self._lose_all(self.reason, blame=True)

    def _lose_all(self, reason: str, *, blame: bool) -> None:
        """Fail everything in flight; `blame` what was stepped last: media is read in processes of its own."""
        while self._generations:
            name, generation = self._generations.popitem()
            suspect = blame and name == self._advanced_last
            self._finish(generation, WorkerDiedError(f"{reason} while it made this clip", suspect=suspect))
        self._advanced_last = None
        for answer in self._checks.values():
            if not answer.done():
                answer.set_exception(NotReadyError(reason))


def _exit_in_words(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"
