"""What an engine keeps of one request."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cosmorama.engine.embeddings import Reader
from cosmorama.engine.outcome import Decision
from cosmorama.engine.prepare import Frames, PreparedRequest
from cosmorama.engine.rollout import Rollout
from cosmorama.engine.scheduler import Priority
from cosmorama.media.write import VideoWriter
from cosmorama.progress import Progress, ProgressCallback, Stage
from cosmorama.request import ResolvedRequest


@dataclass(slots=True)
class EngineJob:
    """A request that an engine holds, and how far it is."""

    name: str
    request: ResolvedRequest
    output: Path
    on_progress: ProgressCallback
    on_preview: Callable[[bytes], None] | None
    priority: Priority
    accepted_at: float
    owner: str = ""
    """Whose it is."""
    progress: Progress = field(default_factory=lambda: Progress("queued"))
    watched: bool = False
    preparing: Future[PreparedRequest] | None = None
    reader: Reader | None = None
    rollout: Rollout | None = None
    frames: Iterator[Frames] | None = None
    writer: VideoWriter | None = None
    writing: Future[None] | None = None
    """Of the frames decoded last, which are written while the next are decoded."""
    shown: int = 0
    """Chunks of the rollout that are written."""
    written: int = 0
    written_before: int = 0
    """Frames that were written when the chunk being decoded now began."""
    retried: bool = False
    """Whether this unit of work is being done for a second time, since memory ran out the first time."""
    checks: list[Decision] = field(default_factory=list)
    """What guardrails have let pass so far."""
    altered: bool = False
    """Whether a guardrail changed some of its frames."""
    cancelled: bool = False
    timings: dict[str, float] = field(default_factory=dict)
    resources: ExitStack = field(default_factory=ExitStack)

    def join(self) -> None:
        """Wait until the frames handed over last are written, or raise what kept them from being."""
        if (writing := self.writing) is not None:
            writing.exception()  # where the wait is interrupted, it stays known that somebody writes
            self.writing = None
            writing.result()


@contextmanager
def timed(job: EngineJob, stage: Stage | str) -> Iterator[Callable[[], float]]:
    """Adds the time of the block to the stage's; what it gives tells the seconds since the block began, or it took."""
    start = time.perf_counter()
    end: float | None = None
    try:
        yield lambda: (end or time.perf_counter()) - start
    finally:
        end = time.perf_counter()
        job.timings[stage] = job.timings.get(stage, 0.0) + end - start
