"""What is done for one request, unit by unit: begun, sampled, previewed, decoded and written."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from cosmorama.engine.embeddings import EmbeddingCache, Reader
from cosmorama.engine.estimate import Estimator
from cosmorama.engine.job import EngineJob, timed
from cosmorama.engine.outcome import Decision, Outcome
from cosmorama.engine.prepare import Frames, PreparedRequest
from cosmorama.engine.rollout import Rollout
from cosmorama.errors import FramesRefusedError
from cosmorama.guardrails.checks import Guardrails
from cosmorama.logs import about
from cosmorama.media.read import resampled
from cosmorama.media.write import VideoWriter
from cosmorama.progress import Progress
from cosmorama.world.base import World
from cosmorama.world.faults import breaks_the_process

log = logging.getLogger(__name__)

PREVIEWS = 8
"""Of a whole generation, where somebody watches it."""
PREVIEW_SIDE_PX, PREVIEW_QUALITY = 320, 75


class Maker:
    """Makes clips with one model, of several requests in turns: whatever belongs to one is in its job."""

    def __init__(
        self,
        world: World,
        guardrails: Guardrails,
        estimator: Estimator,
        report: Callable[[EngineJob, Progress], None],
    ) -> None:
        self._world, self._guardrails, self._estimator, self._report = world, guardrails, estimator, report
        self._embeddings = EmbeddingCache(world.encode_text)
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="write")

    def close(self) -> None:
        """Let go of its thread, once that has written what it has."""
        self._writing.shutdown(wait=True)

    def work(self, job: EngineJob, prepared: PreparedRequest) -> Outcome | None:
        """Do the next unit of work; what was made, once it is whole."""
        if job.rollout is None:
            job.reader = Reader(self._embeddings)
            job.rollout = Rollout(self._world, prepared, job.reader)
            self._report(job, job.rollout.progress)
        if job.rollout.clean == job.shown:
            before = job.rollout.progress
            with timed(job, before.stage) as spent:
                progress = job.rollout.advance()
            # What held steps take says nothing about evaluated ones.
            done = (progress.share or 0.0) - (before.share or 0.0)
            if done > 0 and not job.request.reuse:
                self._estimator.denoised(job.request, job.request.steps * done, spent())
            self._report(job, progress)
            self._preview(job, job.rollout, progress)
            return None
        return self._decode(job, job.rollout)

    def _preview(self, job: EngineJob, rollout: Rollout, progress: Progress) -> None:
        if not job.watched or job.on_preview is None or rollout.done or progress.step % -(-progress.total // PREVIEWS):
            return
        with timed(job, "preview"):
            try:
                frame = rollout.preview()
                picture = None if frame is None else _jpeg(self._guardrails.passed(frame[None])[0])
            except FramesRefusedError:
                return
            except Exception as error:
                if breaks_the_process(error):
                    raise
                log.exception("no preview of job %s", job.name)
                return
        if picture is not None:
            job.on_preview(picture)

    def _decode(self, job: EngineJob, rollout: Rollout) -> Outcome | None:
        request, result = rollout.prepared.request, rollout.prepared.request.result
        if job.frames is None:
            job.frames = rollout.decode(job.shown)
            if request.target is not None:
                job.frames = resampled(job.frames, request.fps, request.target, rollout.frames_before(job.shown))
            job.frames = _without(job.frames, job.written - job.written_before)
        if job.writer is None:
            job.writer = job.resources.enter_context(
                VideoWriter(
                    job.output,
                    width=result.width,
                    height=result.height,
                    fps=result.fps,
                    output=request.output,
                    metadata=rollout.parameters(),
                )
            )
        begun = time.perf_counter()
        with timed(job, "decode"):
            chunk = next(job.frames, None)
        # Until here the frames before these were being written; where that failed, who knows what of them is there.
        job.retried = True
        job.join()
        if chunk is not None:
            if self._guardrails.frames is not None:
                with timed(job, "guardrail"):
                    decoded, chunk = chunk, self._guardrails.passed(chunk)
                    job.altered = job.altered or not np.array_equal(chunk, decoded)
            job.writing = self._writing.submit(_write, job, job.writer, chunk)
            job.written += len(chunk)
            self._estimator.decoded(job.request, len(chunk), time.perf_counter() - begun)
            # While chunks are still to be sampled, denoising is what there is to wait for.
            self._report(job, Progress("decode", job.written, result.frames) if rollout.done else rollout.progress)
            return None
        job.shown, job.frames, job.written_before = rollout.clean, None, job.written
        if not rollout.done:
            return None
        with timed(job, "write"):
            job.writer.attach(rollout.actions)
            job.resources.close()
        assert request.seed is not None
        assert job.reader is not None
        reader, prompt = job.reader, rollout.prepared.prompt
        frames = self._guardrails.frames_check
        shown = [] if frames is None else [Decision(frames, "frames", "altered" if job.altered else "passed")]
        return Outcome(
            path=job.output,
            seed=request.seed,
            prompt=prompt,
            width=result.width,
            height=result.height,
            frames=job.written,
            fps=result.fps,
            timings=dict(job.timings),
            action=rollout.actions,
            counts={"steps": rollout.index, "evaluations": rollout.evaluations} | reader.counts | self._decisions(job),
            warnings=(*rollout.warnings, *reader.told(prompt)),
            checks=(*job.checks, *shown),
        )

    def _decisions(self, job: EngineJob) -> dict[str, int]:
        """What the guardrails of this engine let pass of a job."""
        decisions = {}
        if self._guardrails.prompts:
            decisions["prompts_passed"] = 1
        if self._guardrails.frames is not None:
            decisions["clips_altered" if job.altered else "clips_passed"] = 1
        return decisions


def _write(job: EngineJob, writer: VideoWriter, frames: Frames) -> None:
    """Write frames, in a thread beside the one that decodes the next."""
    with about(job.name), timed(job, "write"):
        writer.write(frames)


def _without(chunks: Iterator[Frames], written: int) -> Iterator[Frames]:
    """Frames after the first `written`, which an attempt before this one has written."""
    for chunk in chunks:
        left = chunk[written:]
        written -= len(chunk) - len(left)
        if len(left):
            yield left


def _jpeg(frame: Frames) -> bytes:
    """A frame, uint8 `[H, W, 3]`, as a small JPEG."""
    picture = Image.fromarray(frame)
    picture.thumbnail((PREVIEW_SIDE_PX, PREVIEW_SIDE_PX), Image.Resampling.BOX)
    buffer = io.BytesIO()
    picture.save(buffer, "jpeg", quality=PREVIEW_QUALITY)
    return buffer.getvalue()
