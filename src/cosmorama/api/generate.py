"""One synchronous generation: a job, somebody who waits for it, and what becomes of it when he goes away."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace

from fastapi import Request

from cosmorama.api.services import Services
from cosmorama.api.submission import submission_of
from cosmorama.engine.outcome import Outcome
from cosmorama.errors import CancelledError, DeadlineExceededError
from cosmorama.jobs.record import Job
from cosmorama.jobs.service import Jobs
from cosmorama.request import GenerationRequest

log = logging.getLogger(__name__)


async def generate(
    request: Request, generation: GenerationRequest, services: Services, *, dialect: str = "predict1"
) -> Outcome:
    """Generate a clip for the client behind `request`. The caller has to `discard` the clip.

    Without an `Idempotency-Key` the job is for this connection only: it is cancelled when the client goes away, and its
    clip is not kept. With one it goes on, and the same request with the same key gives the same clip later.

    Raises:
        CosmoramaError: whatever `Jobs.submit` raises, or what the generation failed of; no file is left then.
        DeadlineExceededError: the server's limit, or the client's own, has passed.
        CancelledError: the client went away.
    """
    jobs, asked = services.jobs, submission_of(request)
    attached = asked.idempotency_key is None
    job = await jobs.submit(
        generation,
        dialect=dialect,
        priority=asked.priority,
        idempotency_key=asked.idempotency_key,
        deadline_s=asked.deadline_s,
        owner=asked.owner,
        attached=attached,
    )
    try:
        job = await _finished(request, job, jobs, services.settings.request_timeout_s)
    except BaseException:
        if attached:
            await asyncio.shield(_abandon(job, jobs))
        raise
    if job.error is not None:
        raise job.error.exception()
    assert job.result is not None
    path = await jobs.checkout(job)
    if attached:
        jobs.forget_content(job.id)
    return replace(job.result.outcome, path=path)


async def _finished(request: Request, job: Job, jobs: Jobs, limit_s: float) -> Job:
    finished = asyncio.create_task(jobs.wait(job.id))
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait((finished, gone), timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        if finished.done():
            return finished.result()
        if gone.done():
            raise CancelledError("the client went away")
        raise DeadlineExceededError(f"the generation was not finished within this server's limit of {limit_s:g} s")
    finally:
        for task in (finished, gone):
            if not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task


async def _abandon(job: Job, jobs: Jobs) -> None:
    log.info("job %s: nobody waits for it any more; it is cancelled", job.id)
    job = await jobs.cancel(job.id)
    if job.result is not None:  # it was finished in the same moment
        jobs.forget_content(job.id)


async def _gone(request: Request) -> None:
    # The body has been read, so the next thing that can be received is the client's leaving.
    while (await request.receive())["type"] != "http.disconnect":
        pass
