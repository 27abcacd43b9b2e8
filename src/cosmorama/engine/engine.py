"""The engine: owns one world model and advances the requests it holds, one unit of work per `step()`."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cosmorama.engine.embeddings import EmbeddingCache
from cosmorama.engine.outcome import Outcome
from cosmorama.engine.prepare import Frames, PreparedRequest, Preparer
from cosmorama.engine.rollout import Rollout
from cosmorama.errors import CancelledError, CosmoramaError, WorkerError
from cosmorama.media.write import VideoWriter
from cosmorama.progress import Progress, ProgressCallback, Stage
from cosmorama.request import Capabilities, GenerationRequest, resolve
from cosmorama.world.base import World

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Job:
    name: str
    request: GenerationRequest
    output: Path
    on_progress: ProgressCallback
    preparing: Future[PreparedRequest] | None = None
    rollout: Rollout | None = None
    frames: Iterator[Frames] | None = None
    writer: VideoWriter | None = None
    written: int = 0
    cancelled: bool = False
    timings: dict[str, float] = field(default_factory=dict)
    resources: ExitStack = field(default_factory=ExitStack)


class Engine:
    """Advances several requests in turn. Not thread-safe: one thread (the worker's loop) calls it.

    Results do not depend on what else is in flight: every rollout has its own noise, history and latents.
    """

    def __init__(self, world: World, preparer: Preparer | None = None, *, max_active: int = 2) -> None:
        self.capabilities: Capabilities = world.capabilities
        self._world = world
        self._preparer = preparer or Preparer()
        self._max_active = max_active
        self._waiting: deque[_Job] = deque()
        self._active: deque[_Job] = deque()
        self._finished: list[tuple[str, Outcome | CosmoramaError]] = []
        self._embeddings = EmbeddingCache(world.encode_text)
        self._threads = ThreadPoolExecutor(max_active, thread_name_prefix="prepare")

    @property
    def pending(self) -> int:
        """Requests accepted and not finished."""
        return len(self._waiting) + len(self._active)

    def submit(
        self, job: str, request: GenerationRequest, *, output: Path, on_progress: ProgressCallback | None = None
    ) -> None:
        """Accept a request under the name `job`; its file will be written to `output`.

        Raises:
            InvalidRequestError: at once, when the model cannot make this.
        """
        resolved = resolve(request, self.capabilities)
        self._waiting.append(_Job(job, resolved, output, on_progress or (lambda progress: None)))

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
        """Advance one request by one unit of work; False when none could be advanced now."""
        self._activate()
        for _ in range(len(self._active)):
            job = self._active[0]
            self._active.rotate(-1)
            if self._advance(job):
                return True
        return False

    def close(self) -> None:
        """Give up what is in flight and release threads and half-written files."""
        for job in (*self._waiting, *self._active):
            self._finish(job, CancelledError("the engine was closed"))
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _activate(self) -> None:
        for job in [job for job in self._waiting if job.cancelled]:
            self._finish(job, CancelledError("cancelled before it started"))
        while self._waiting and len(self._active) < self._max_active:
            job = self._waiting.popleft()
            self._active.append(job)
            job.on_progress(Progress("prepare"))
            job.preparing = self._threads.submit(self._prepare, job)

    def _prepare(self, job: _Job) -> PreparedRequest:
        with _timed(job, "prepare"):
            return self._preparer(job.request, self.capabilities)

    def _advance(self, job: _Job) -> bool:
        """One unit of work for `job`, whose failure is its own; False while it waits for its inputs."""
        if job.cancelled:
            self._finish(job, CancelledError("cancelled"))
            return True
        assert job.preparing is not None
        if not job.preparing.done():
            return False
        try:
            outcome = self._work(job, job.preparing.result())
        except CosmoramaError as error:
            self._finish(job, error)
        except Exception as error:
            log.exception("job %s failed", job.name)
            self._finish(job, WorkerError(f"the generation failed inside the model: {type(error).__name__}: {error}"))
        else:
            if outcome is not None:
                self._finish(job, outcome)
        return True

    def _work(self, job: _Job, prepared: PreparedRequest) -> Outcome | None:
        if job.rollout is None:
            job.rollout = Rollout(self._world, prepared, self._embeddings)
        if not job.rollout.done:
            with _timed(job, job.rollout.progress.stage):
                job.on_progress(job.rollout.advance())
            return None
        return self._decode(job, job.rollout)

    def _decode(self, job: _Job, rollout: Rollout) -> Outcome | None:
        request = rollout.prepared.request
        if job.frames is None or job.writer is None:
            job.frames = rollout.decode()
            job.writer = job.resources.enter_context(
                VideoWriter(
                    job.output, width=request.width, height=request.height, fps=request.fps, output=request.output
                )
            )
        with _timed(job, "decode"):
            chunk = next(job.frames, None)
        if chunk is not None:
            with _timed(job, "write"):
                job.writer.write(chunk)
            job.written += len(chunk)
            job.on_progress(Progress("decode", job.written, request.frames))
            return None
        with _timed(job, "write"):
            job.resources.close()
        assert request.seed is not None
        return Outcome(
            path=job.output,
            seed=request.seed,
            prompt=rollout.prepared.prompt,
            width=request.width,
            height=request.height,
            frames=job.written,
            fps=request.fps,
            timings=dict(job.timings),
        )

    def _finish(self, job: _Job, result: Outcome | CosmoramaError) -> None:
        if job in self._waiting:
            self._waiting.remove(job)
        if job in self._active:
            self._active.remove(job)
        if isinstance(result, CosmoramaError):
            # Leaving the writer's context with the error makes it remove the half-written file.
            job.resources.__exit__(type(result), result, None)
        else:
            job.on_progress(Progress("done"))
        self._finished.append((job.name, result))


@contextmanager
def _timed(job: _Job, stage: Stage | str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        job.timings[stage] = job.timings.get(stage, 0.0) + time.perf_counter() - start
