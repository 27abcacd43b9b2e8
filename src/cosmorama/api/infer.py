"""`POST /v1/infer`: generate a clip, in any of the wire formats that NIM for Cosmos has had on this path."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request, Response

from cosmorama.api.body import body_limit, read_object
from cosmorama.api.dialects import SHAPED
from cosmorama.api.dialects.base import choose, wording
from cosmorama.api.dialects.predict import EXAMPLES
from cosmorama.api.services import Services, ServicesOf, client_gone, ended, options_of, owner_of, release
from cosmorama.engine.outcome import Outcome
from cosmorama.errors import CancelledError, DeadlineExceededError
from cosmorama.jobs.model import Job
from cosmorama.jobs.service import Jobs
from cosmorama.request import GenerationRequest
from cosmorama.settings import Settings

_BODIES = [dialect.body.__name__ for dialect in reversed(SHAPED)]

_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in _BODIES]},
            "examples": EXAMPLES,
        }
    },
}


def request_body() -> dict[str, Any]:
    """What the routes that take any of the wire formats say of their bodies."""
    return _BODY


_ANSWER: dict[str, Any] = {
    "type": "object",
    "description": "What is in it depends on the wire format of the body; see docs/dialects.md.",
    "properties": {
        "b64_video": {"type": "string", "description": "The clip, in base64."},
        "b64_image": {"type": "string", "description": "For text2image: the picture, a JPEG in base64."},
        "seed": {"type": "integer", "description": "The seed that was used."},
        "upsampled_prompt": {"type": ["string", "null"], "description": "The text that was used."},
        "action": {"type": ["object", "null"], "description": "Actions that the model predicted."},
        "warnings": {
            "type": "array",
            "items": {"type": "string"},
            "description": "Where there are some: what was fitted, replaced, cut or ignored.",
        },
    },
}

router = APIRouter(tags=["generation"])


@router.post(
    "/v1/infer",
    summary="Generate a world from text, an image or a video",
    response_class=Response,
    responses={
        200: {
            "description": "The clip. With `Accept: video/mp4`, the file itself instead of JSON.",
            "content": {"application/json": {"schema": _ANSWER}, "video/mp4": {}, "image/jpeg": {}},
        }
    },
    openapi_extra={"requestBody": _BODY},
)
async def infer(request: Request, services: ServicesOf) -> Response:
    """Generate a clip and answer when it is finished. Going away cancels it."""
    settings = services.settings
    body = await read_object(request, body_limit(settings.max_input_bytes))
    dialect = choose(SHAPED, body, None if settings.dialect == "auto" else settings.dialect)
    generation = dialect.read(body, settings)
    with wording(generation):
        outcome = await generate(request, generation, services, dialect=dialect.name)
    return dialect.answer(request, generation, outcome)


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
    jobs, options = services.jobs, options_of(request)
    attached = "idempotency_key" not in options
    job = await jobs.submit(generation, dialect=dialect, owner=owner_of(request), attached=attached, **options)
    release(request)
    try:
        job = await _finished(request, job, jobs, services.settings)
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


_LATER = 1.5
"""An estimate may be exceeded by half."""


async def _finished(request: Request, job: Job, jobs: Jobs, settings: Settings) -> Job:
    """The job, once it is over.

    The default limit suits short clips. Where nobody has set another one, a job that is expected to take longer, by
    what others took here, has longer: at the limit it goes on for as long as it gets further.
    """
    finished = asyncio.create_task(jobs.wait(job.id))
    gone = asyncio.create_task(client_gone(request))
    limit_s, progress = settings.request_timeout_s, None
    started = asyncio.get_running_loop().time()
    try:
        while True:
            await asyncio.wait((finished, gone), timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if finished.done():
                return finished.result()
            if gone.done():
                raise CancelledError("the client went away")
            job = await jobs.get(job.id)
            stuck = job.progress == progress and job.progress.stage != "queued"
            chosen = "request_timeout_s" in settings.model_fields_set
            if chosen or not job.eta_s or stuck:
                told_s = limit_s if chosen else asyncio.get_running_loop().time() - started
                more = f"; it would take about {job.eta_s:.0f} s more" if job.eta_s else ""
                raise DeadlineExceededError(f"the generation was not finished within the limit of {told_s:g} s{more}")
            limit_s, progress = max(_LATER * job.eta_s, 1.0), job.progress
    finally:
        await ended(finished, gone)


async def _abandon(job: Job, jobs: Jobs) -> None:
    log.info("job %s: nobody waits for it any more; it is cancelled", job.id)
    job = await jobs.cancel(job.id, reason="cancelled: the client that waited for it went away")
    if job.result is not None:  # it was finished in the same moment
        jobs.forget_content(job.id)
