"""The engine: owns one world model and advances the requests it holds, one unit of work per `step()`."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_any
from pathlib import Path

from cosmorama.engine.children import Children
from cosmorama.engine.estimate import Estimator
from cosmorama.engine.job import EngineJob, timed
from cosmorama.engine.making import Maker
from cosmorama.engine.outcome import Decision, Outcome
from cosmorama.engine.prepare import PreparedRequest, Preparer
from cosmorama.engine.preparing import Preparing
from cosmorama.engine.scheduler import Candidate, Priority, admit, order, prepares_slowly
from cosmorama.errors import (
    CancelledError,
    CosmoramaError,
    NotEnoughMemoryError,
    StorageFullError,
    WorkerError,
)
from cosmorama.guardrails.checks import Guardrails
from cosmorama.logs import about
from cosmorama.progress import Progress, ProgressCallback
from cosmorama.request import DEFAULT_NEGATIVE_PROMPT, Capabilities, GenerationRequest, ResolvedRequest
from cosmorama.resolve import resolve
from cosmorama.world.base import BrokenModelError, World
from cosmorama.world.faults import breaks_the_process, explained, free_memory

log = logging.getLogger(__name__)

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Engine:
    """Advances several requests, at every step the one that the scheduler puts first. Not thread-safe.

    Results do not depend on what else is in flight: every rollout has its own noise, history and latents.
    """

    def __init__(
        self,
        world: World,
        preparer: Preparer | None = None,
        guardrails: Guardrails | None = None,
        *,
        max_active: int = 2,
        children: Children | None = None,
    ) -> None:
        """Take over a model.

        Args:
            world: The model.
            preparer: How inputs are fetched and read.
            guardrails: What has to pass.
            max_active: Requests that compute at once; one more where it goes before all of them.
            children: Where slow preparations run; None: in threads of this process, which nothing can stop.
        """
        self.capabilities: Capabilities = world.capabilities
        self.device = world.device
        self._preparer = preparer or Preparer()
        self._guardrails = guardrails or Guardrails()
        self._max_active = max_active
        self._waiting: list[EngineJob] = []
        self._active: list[EngineJob] = []
        self._estimator = Estimator()
        self._finished: list[tuple[str, Outcome | CosmoramaError]] = []
        self._maker = Maker(world, self._guardrails, self._estimator, self._report)
        self._children = children
        self._preparing = Preparing((lambda name: None) if children is None else children.stop)
        # Prompts without media; they never wait behind a picture.
        self._threads = ThreadPoolExecutor(max_active + 1, thread_name_prefix="prompt")
        self._prepared, self._tell = multiprocessing.Pipe(duplex=False)
        self._told = False

    @property
    def pending(self) -> int:
        """Requests accepted and not finished."""
        return len(self._waiting) + len(self._active)

    def submit(
        self,
        job: str,
        request: GenerationRequest,
        *,
        output: Path,
        on_progress: ProgressCallback | None = None,
        on_preview: Callable[[bytes], None] | None = None,
        priority: Priority = "normal",
        age_s: float = 0.0,
        owner: str = "",
    ) -> None:
        """Accept a request under the name `job`; its file will be written to `output`.

        The rest is as in `Worker.generate`; of one owner only so many are prepared at once.

        Raises:
            InvalidRequestError: at once, when the model cannot make this.
        """
        resolved = resolve(request, self.capabilities)
        accepted_at = time.monotonic() - age_s
        report = on_progress or (lambda progress: None)
        accepted = EngineJob(job, resolved, output, report, on_preview, priority, accepted_at, owner)
        self._waiting.append(accepted)
        if prepares_slowly(resolved, expanded_elsewhere=self._preparer.expands_elsewhere):
            self._report(accepted, Progress("prepare"))
            accepted.preparing = self._preparing.begin(job, owner, lambda: self._prepare_apart(accepted))
            accepted.preparing.add_done_callback(self._wake)

    def watch(self, job: str, watched: bool) -> None:
        """Begin or end making previews of a request."""
        for candidate in (*self._waiting, *self._active):
            if candidate.name == job:
                candidate.watched = watched

    def cancel(self, job: str) -> None:
        """Stop a request before its next unit of work. A request that has already finished stays so."""
        for candidate in (*self._waiting, *self._active):
            if candidate.name == job:
                candidate.cancelled = True

    def finished(self) -> list[tuple[str, Outcome | CosmoramaError]]:
        """Results since the last call, in the order in which they came."""
        drained, self._finished = self._finished, []
        return drained

    def step(self) -> bool:
        """Advance one request by one unit of work; False when none could be advanced now.

        Raises:
            BrokenModelError: the model cannot go on. Any other error is the end of one request.
        """
        self._activate()
        by_name = {job.name: job for job in self._active}
        return any(self._advance(by_name[next_.name]) for next_ in order(map(self._candidate, self._active)))

    def wait(self, *others: Connection) -> None:
        """After a step that could advance nothing: return once inputs are prepared, or one of `others` can be read."""
        wait_for_any([self._prepared, *others])
        while self._prepared.poll():
            self._prepared.recv_bytes()
        self._told = False  # last: of what was prepared just before, the next step takes notice anyway

    def make(self, request: GenerationRequest, output: Path, *, on_progress: ProgressCallback | None = None) -> Outcome:
        """Make one request, from its inputs to its file; no other is held.

        Raises:
            CosmoramaError: what it ended with.
        """
        self.submit("alone", request, output=output, on_progress=on_progress)
        while self.pending:
            # A step that could advance nothing may have ended what was wrong with its inputs: nobody wakes for that.
            if not self.step() and self.pending:
                self.wait()
        ((_, result),) = self.finished()
        if isinstance(result, CosmoramaError):
            raise result
        return result

    def close(self) -> None:
        """Give up what is in flight and release threads and half-written files."""
        self._maker.close()  # first: a file that a thread writes to cannot be given up
        for job in (*self._waiting, *self._active):
            self._finish(job, CancelledError("the engine was closed"))
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._children is not None:
            self._children.close()
        self._tell.close()
        self._prepared.close()

    def _activate(self) -> None:
        for job in [job for job in (*self._active, *self._waiting) if job.cancelled]:
            self._finish(job, CancelledError("cancelled"))
        for job in list(self._waiting):
            if (begun := job.preparing) is not None and begun.done() and begun.exception() is not None:
                self._advance(job)
        while chosen := admit(
            [self._candidate(job) for job in self._active],
            [self._candidate(job) for job in self._waiting if job.preparing is None or job.preparing.done()],
            self._max_active,
        ):
            job = next(job for job in self._waiting if job.name == chosen.name)
            self._waiting.remove(job)
            self._active.append(job)
            if job.preparing is None:
                self._report(job, Progress("prepare"))
                job.preparing = self._threads.submit(self._prepare, job, self._preparer)
                job.preparing.add_done_callback(self._wake)

    def _wake(self, preparing: Future[PreparedRequest]) -> None:
        # Not for every request: where nobody waits, nobody empties the pipe.
        if not self._told:
            self._told = True
            with suppress(OSError):  # closed meanwhile
                self._tell.send_bytes(b"\0")

    def _candidate(self, job: EngineJob) -> Candidate:
        remaining_s = self._estimator.remaining_s(job.request, job.progress)
        return Candidate(job.name, job.priority, time.monotonic() - job.accepted_at, remaining_s)

    def _report(self, job: EngineJob, progress: Progress) -> None:
        remaining_s = self._estimator.remaining_s(job.request, progress) if self._estimator.measured else None
        job.progress = replace(progress, remaining_s=remaining_s)
        job.on_progress(job.progress)

    def _prepare_apart(self, job: EngineJob) -> PreparedRequest:
        if self._children is None:
            return self._prepare(job, self._preparer)
        return self._prepare(job, partial(self._children.prepare, job.name, cancelled=lambda: job.cancelled))

    def _prepare(
        self, job: EngineJob, prepare: Callable[[ResolvedRequest, Capabilities], PreparedRequest]
    ) -> PreparedRequest:
        given = (job.request.prompt or "").strip()
        with about(job.name), timed(job, "prepare"):
            self._check(job, given, "prompt")
            # A model's own negative prompt, and the vendor's, name what they are against.
            if job.request.negative_prompt not in (self.capabilities.defaults.negative_prompt, DEFAULT_NEGATIVE_PROMPT):
                self._check(job, job.request.negative_prompt, "negative prompt")
            prepared = prepare(job.request, self.capabilities)
            if prepared.prompt != given:
                self._check(job, prepared.prompt, "expanded prompt" if given else "description")
            return prepared

    def check(self, text: str, called: str) -> None:
        """Let a text pass, called as in `Decision.on`.

        Raises:
            PromptRefusedError: a guardrail does not let it.
        """
        self._guardrails.check_prompt(text, called)

    def _check(self, job: EngineJob, text: str, called: str) -> None:
        self.check(text, called)
        if text:
            job.checks += [Decision(check, called, "passed") for check in self._guardrails.prompt_checks]

    def _advance(self, job: EngineJob) -> bool:
        """One unit of work for `job`, whose failure is its own; False while it waits for its inputs."""
        preparing = job.preparing
        assert preparing is not None
        if not preparing.done():
            return False
        with about(job.name):
            failure = self._attempt(job, preparing)
            if isinstance(failure, NotEnoughMemoryError):
                # Only out here, where no traceback holds the failed unit's tensors any more, is there memory to free.
                free_memory()
                if not job.retried:  # what others had for a moment is often enough
                    job.retried, job.frames = True, None
                    log.warning("job %s ran out of memory; its unit of work is done again", job.name)
                    failure = self._attempt(job, preparing)
                    free_memory()
            if failure is not None:
                self._finish(job, failure)
        return True

    def _attempt(self, job: EngineJob, preparing: Future[PreparedRequest]) -> CosmoramaError | None:
        """One unit of work; what the job ends with if it failed.

        Raises:
            BrokenModelError: it failed in a way that everything after it would fail as well.
        """
        try:
            outcome = self._maker.work(job, preparing.result())
        except BrokenModelError as broken:
            if broken.error is not None:
                self._finish(job, broken.error)
            raise
        except Exception as error:  # noqa: BLE001  # one generation's failure is its own
            return self._judged(job, error)
        job.retried = False
        if outcome is not None:
            log.debug("made in %.2f s of work: %s", sum(outcome.timings.values()), outcome.timings)
            self._finish(job, outcome)
        return None

    def _judged(self, job: EngineJob, error: Exception) -> CosmoramaError:
        if breaks_the_process(error):
            log.critical("the device failed while job %s was made", job.name, exc_info=error)
            raise BrokenModelError(f"{type(error).__name__}: {error}") from error
        if isinstance(error, CosmoramaError):
            return error.with_traceback(None)
        if (explanation := explained(error, job.request)) is not None:
            # As text: a log record would hold on to the traceback, and that to the failed unit's tensors.
            log.error("job %s has too little memory\n%s", job.name, "".join(traceback.format_exception(error)))
            return explanation
        log.error("job %s failed", job.name, exc_info=error)
        return _failure(error)

    def _finish(self, job: EngineJob, result: Outcome | CosmoramaError) -> None:
        job.cancelled = True  # for what still prepares it
        self._preparing.drop(job.name)
        if job in self._waiting:
            self._waiting.remove(job)
        if job in self._active:
            self._active.remove(job)
        with suppress(Exception):  # the file is given up, or every frame was joined
            job.join()
        if isinstance(result, CosmoramaError):
            # Leaving the writer's context with the error makes it remove the half-written file. What goes wrong then
            # (a full disk, a folder that is gone) concerns nobody else's clip.
            try:
                job.resources.__exit__(type(result), result, None)
            except Exception:
                log.exception("job %s: what it had open cannot be closed", job.name)
        else:
            self._report(job, Progress("done"))
        self._finished.append((job.name, result))


def _failure(error: Exception) -> CosmoramaError:
    """What the client of a generation that failed by `error` is told: nothing of the server's files."""
    number, reason = getattr(error, "errno", None), getattr(error, "strerror", None)
    if number in _NO_ROOM:
        return StorageFullError("there is no room left on the server's disk for the clip")
    if isinstance(error, OSError) or reason:
        return WorkerError(f"the clip could not be written: {reason or type(error).__name__}")
    return WorkerError(f"the generation failed inside the model: {type(error).__name__}: {error}")
