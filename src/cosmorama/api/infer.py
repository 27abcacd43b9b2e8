"""`POST /v1/infer`: generate a clip, in any of the wire formats that NIM for Cosmos has had on this path.

`POST /v1/upsample` and `POST /v1/caption` take the same bodies and make no clip, but the text that it would be made of,
to be read and edited first. Inputs are read in processes that can be ended, as those of generations are.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response

from cosmorama import logs
from cosmorama.api.body import body_limit, read_object
from cosmorama.api.dialects import SHAPED
from cosmorama.api.dialects.base import Dialect, choose, wording
from cosmorama.api.dialects.predict import EXAMPLES
from cosmorama.api.services import Services, ServicesOf, client_gone, ended, options_of, owner_of, release, while_wanted
from cosmorama.engine.children import Children
from cosmorama.engine.outcome import Outcome
from cosmorama.errors import CancelledError, CosmoramaError, DeadlineExceededError, InvalidRequestError, Problem
from cosmorama.guardrails.checks import Guardrails
from cosmorama.guardrails.words import BlockedWords
from cosmorama.jobs.model import Job
from cosmorama.jobs.service import Jobs
from cosmorama.request import GenerationRequest
from cosmorama.resolve import resolve
from cosmorama.settings import Settings

if TYPE_CHECKING:
    from cosmorama.engine.prepare import PreparedRequest

log = logging.getLogger(__name__)

_BODIES = [dialect.body.__name__ for dialect in reversed(SHAPED)]

BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in _BODIES]},
            "examples": EXAMPLES,
        }
    },
}


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

router = APIRouter()


@router.post(
    "/v1/infer",
    summary="Generate a world from text, an image or a video",
    tags=["generation"],
    response_class=Response,
    responses={
        200: {
            "description": "The clip. With `Accept: video/mp4`, the file itself instead of JSON.",
            "content": {"application/json": {"schema": _ANSWER}, "video/mp4": {}, "image/jpeg": {}},
        }
    },
    openapi_extra={"requestBody": BODY},
)
async def infer(request: Request, services: ServicesOf) -> Response:
    """Generate a clip and answer when it is finished. Going away cancels it."""
    generation, dialect, _ = await _asked(request, services)
    with wording(generation):
        outcome = await generate(request, generation, services, dialect=dialect.name)
    return dialect.answer(request, generation, outcome)


async def _asked(request: Request, services: Services) -> tuple[GenerationRequest, Dialect, Mapping[str, Any]]:
    """What a body describes, its wire format, and the body."""
    settings = services.settings
    body = await read_object(request, body_limit(settings.max_input_bytes))
    dialect = choose(SHAPED, body, None if settings.dialect == "auto" else settings.dialect)
    return dialect.read(body, settings), dialect, body


async def generate(
    request: Request, generation: GenerationRequest, services: Services, *, dialect: str = "predict1", number: int = 0
) -> Outcome:
    """Generate a clip, the one of this number, for the client behind `request`. The caller has to `discard` the clip.

    Without an `Idempotency-Key` the job is for this connection only: it is cancelled when the client goes away, and its
    clip is not kept. With one it goes on, and the same request with the same key gives the same clip later.

    Raises:
        CosmoramaError: whatever `Jobs.submit` raises, or what the generation failed of; no file is left then.
        DeadlineExceededError: the server's limit, or the client's own, has passed.
        CancelledError: the client went away.
    """
    jobs, options = services.jobs, options_of(request)
    attached = "idempotency_key" not in options
    if number and not attached:
        options["idempotency_key"] = f"{number}.{options['idempotency_key']}"[:255]
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


class ElsewhereError(CosmoramaError):
    """What was asked for is done by other servers than this one (HTTP 501)."""

    status = 501
    kind = "not_here"


_TEXT: dict[int | str, dict[str, Any]] = {
    200: {"description": "The text, the model that it is for, and warnings where there are some."}
}


@dataclass(slots=True)
class Writers:
    """The processes in which texts are written, which begin with the first one."""

    settings: Settings
    children: Children | None = None

    async def prepared(
        self, generation: GenerationRequest, services: Services, owner: str
    ) -> tuple[PreparedRequest, str]:
        """A request with its text, and the model that it is for.

        Raises:
            CosmoramaError: as a generation of it would.
            QueueFullError: too many of this owner are waited for.
        """
        model = services.supervisor.find(generation.model)
        capabilities = await services.supervisor.capabilities_of(model)
        resolved = resolve(generation, capabilities)
        if self.settings.text_guardrail and self.settings.role == "api":
            raise ElsewhereError("the text guardrail runs beside a model, and this server has none; ask one that has")
        if self.children is None:
            from cosmorama.engine.inputs import preparer_of  # brings what looks at pictures; few servers are asked

            setup = partial(logs.configure, self.settings, "reader")
            self.children = Children(preparer_of(self.settings), setup=setup)
        name, given = f"text_{token_hex(8)}", (resolved.prompt or "").strip()
        turns = services.texts if resolved.mode == "text2world" else services.captions
        async with turns.turn(owner) as call:
            await self._pass(given, "prompt", services, model)
            try:
                prepared = await call(self.children.prepare, name, resolved, capabilities)
            except asyncio.CancelledError:
                self.children.stop(name)
                raise
            if prepared.prompt != given:
                await self._pass(prepared.prompt, "expanded prompt" if given else "description", services, model)
            return prepared, model

    async def _pass(self, text: str, called: str, services: Services, model: str) -> None:
        """Ask the guardrails: the networks are in the process of the model, the words may be anywhere."""
        if not self.settings.text_guardrail:
            if self.settings.blocked_words is not None:
                Guardrails((BlockedWords(self.settings.blocked_words),)).check_prompt(text, called)
        elif text:
            with services.supervisor.worker(model) as worker:
                await worker.check(text, called)

    def close(self) -> None:
        """End the processes."""
        if self.children is not None:
            self.children.close()


@router.post(
    "/v1/upsample",
    summary="Write a prompt out",
    tags=["texts"],
    responses=_TEXT,
    openapi_extra={"requestBody": BODY},
)
async def upsample(request: Request, services: ServicesOf) -> dict[str, Any]:
    """The longer text that a prompt becomes before a clip is made of it, by the server's way of writing it out."""
    generation, _, _ = await _asked(request, services)
    given = (generation.prompt or "").strip()
    if not given:
        raise InvalidRequestError(Problem("prompt", generation.prompt, "a text to write out"))
    prepared, model = await _prepared(request, replace(generation, prompt_upsampling=True), services)
    warnings = [*prepared.request.warnings, *prepared.warnings]
    if prepared.prompt == given and not warnings:
        warnings.append("nothing was added to the prompt: the model would read it as it stands")
    return {"prompt": given, "upsampled_prompt": prepared.prompt, "model": model, "warnings": warnings}


@router.post(
    "/v1/caption",
    summary="Describe a picture or a clip",
    tags=["texts"],
    responses=_TEXT,
    openapi_extra={"requestBody": BODY},
)
async def caption(request: Request, services: ServicesOf) -> dict[str, Any]:
    """The description that stands for a prompt where a picture or a clip comes without one."""
    generation, _, body = await _asked(request, services)
    if generation.image is None and generation.video is None:
        given = next((name for name in ("video", "input_reference") if name in body), generation.called("image"))
        raise InvalidRequestError(Problem(given, body.get(given), "a picture or a clip to describe"))
    described = replace(generation, prompt=None, prompt_upsampling=False)
    prepared, model = await _prepared(request, described, services)
    return {
        "caption": prepared.prompt,
        "model": model,
        "warnings": [*prepared.request.warnings, *prepared.warnings],
    }


async def _prepared(request: Request, generation: GenerationRequest, services: Services) -> tuple[PreparedRequest, str]:
    writers: Writers = request.app.state.writers
    # Size and rate decide nothing here that would be worth a refusal.
    generation = replace(generation, fit=True)
    with wording(generation):
        return await while_wanted(request, writers.prepared(generation, services, owner_of(request)))
