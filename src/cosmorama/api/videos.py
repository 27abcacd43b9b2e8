"""OpenAI's Videos API: the official client works with this server as its base URL."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from cosmorama.api.body import body_limit, json_body, off_loop, page_answer, read_bytes, read_form, read_object
from cosmorama.api.clips import CONTENT, Variant, content_answer
from cosmorama.api.dialects import openai_videos
from cosmorama.api.dialects.base import action_answer, named, wording
from cosmorama.api.dialects.openai_extras import CONTROL
from cosmorama.api.dialects.wire import WireError, validate
from cosmorama.api.errors import BodyError
from cosmorama.api.errors import answer as answer_to
from cosmorama.api.services import Services, ServicesOf, options_of, owner_of, page_limit
from cosmorama.errors import CosmoramaError, InvalidRequestError, JobNotFoundError, MediaError, Problem
from cosmorama.jobs.model import Job, State
from cosmorama.progress import Progress
from cosmorama.request import GenerationRequest, Size

POLL_AFTER_MS = 500
"""What the official client is told about how often to ask."""
REMIXED_FROM = "remixed_from_video_id"
"""The label of a job that is a remix."""
_STATUS: dict[State, str] = {
    "queued": "queued",
    "running": "in_progress",
    "succeeded": "completed",
    "failed": "failed",
    "cancelled": "failed",
}
_DENOISING = (2, 90)
_DECODING = (90, 99)
"""From and to which per cent of the whole the two long stages go."""


class OpenAIRoute(APIRoute):
    """A route whose errors are in OpenAI's words: `param` besides the message, and 400 for an invalid request."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's handler, with its errors answered."""
        handler = super().get_route_handler()

        async def answered(request: Request) -> Response:
            try:
                return await handler(request)
            except CosmoramaError as error:
                return _error(request, error)

        return answered


def _error(request: Request, error: CosmoramaError) -> JSONResponse:
    usual = answer_to(error)
    param = None
    if isinstance(error, InvalidRequestError):
        param = error.problems[0].field
    elif isinstance(error, (MediaError, WireError)):
        param = error.field or None
    invalid = usual.status_code == 422
    body = {
        "error": {
            "message": str(error),
            "type": "invalid_request_error" if usual.status_code < 500 else "server_error",
            "param": param,
            "code": error.kind,
        }
    }
    headers = {name: value for name, value in usual.headers.items() if name == "retry-after"}
    return JSONResponse(body, 400 if invalid else usual.status_code, headers)


router = APIRouter(prefix="/v1/videos", tags=["videos"], route_class=OpenAIRoute)

_VIDEO: dict[str, Any] = {"description": "The video.", "content": {"application/json": {"schema": {"type": "object"}}}}
SCHEMA = {"$ref": "#/components/schemas/VideoBody"}
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": SCHEMA} for kind in ("application/json", "multipart/form-data")},
    }
}
_REMIX = json_body(openai_videos.RemixBody.model_json_schema())


@router.post("", summary="Begin a video", responses={200: _VIDEO}, openapi_extra=BODY)
async def create(request: Request, services: ServicesOf) -> Response:
    """Accept a generation, as a form or as JSON, and answer with the video as it is now: queued."""
    return await begin_video(request, await generation_of(request, services), services)


@router.get("", summary="List videos", responses={200: {"description": "A page of videos."}})
async def list_videos(
    request: Request,
    services: ServicesOf,
    after: Annotated[str | None, Query(description="The page begins after this video.")] = None,
    limit: Annotated[str, Query(description="1 to 100.")] = "20",
    order: Annotated[str, Query(description="By time of creation: asc or desc.")] = "desc",
) -> Response:
    """The caller's videos, newest first."""
    most = page_limit(limit)
    if order not in ("asc", "desc"):
        raise InvalidRequestError(Problem("order", order, "asc or desc"))
    try:
        page = await services.jobs.list(
            cursor=after, limit=most, owner=owner_of(request), dialect=openai_videos.NAME, ascending=order == "asc"
        )
    except InvalidRequestError as error:
        raise error.renamed({"cursor": "after"}) from None

    def written() -> dict[str, Any]:
        data = [video_object(job) for job in page.jobs]
        ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
        return {"object": "list", "data": data, **ends, "has_more": page.cursor is not None}

    return await page_answer(written, len(page.jobs))


@router.post("/characters", include_in_schema=False)
@router.get("/characters/{character_id}", include_in_schema=False)
async def characters(request: Request, services: ServicesOf) -> None:
    """Refused in words, after the upload was read: a client that still sends does not listen."""
    await read_bytes(request, body_limit(services.settings.max_input_bytes))
    raise InvalidRequestError(Problem("characters", "an upload", openai_videos.NO_CHARACTERS))


@router.get("/{video_id}", summary="A video as it is now", responses={200: _VIDEO})
async def retrieve(video_id: str, request: Request, services: ServicesOf) -> Response:
    """Its status, and how many per cent are done."""
    job = await video_of(video_id, request, services)
    headers = {} if job.final else {"openai-poll-after-ms": str(POLL_AFTER_MS)}
    return JSONResponse(video_object(job), headers=headers)


@router.delete("/{video_id}", summary="Delete a video", responses={200: {"description": "It is gone."}})
async def delete(video_id: str, request: Request, services: ServicesOf) -> Response:
    """Remove a video and its files; one that is being made is cancelled first."""
    job = await video_of(video_id, request, services)
    await services.jobs.delete(job.id, owner=job.owner)
    return JSONResponse({"id": video_id, "object": "video.deleted", "deleted": True})


@router.head("/{video_id}/content", include_in_schema=False)
@router.get("/{video_id}/content", **CONTENT)
async def content(
    video_id: str,
    request: Request,
    services: ServicesOf,
    variant: Variant = "video",
) -> Response:
    """The file of a completed video, its first frame (WebP), or sixteen of its moments on a sheet (JPEG)."""
    job = await video_of(video_id, request, services)
    return await content_answer(request, services, job, variant)


@router.post("/edits", summary="Make a video again with another prompt", responses={200: _VIDEO}, openapi_extra=_REMIX)
@router.post(
    "/{video_id}/remix", summary="Make a video again with another prompt", responses={200: _VIDEO}, openapi_extra=_REMIX
)
async def remix(request: Request, services: ServicesOf, video_id: str | None = None) -> Response:
    """Begin a video with the inputs, the settings and the seed of another, and a new prompt.

    An uploaded clip has none of these: the new video follows its edges, of a model that has such a control.
    """
    given, upload, source = await source_of(request, services, video_id, "remixed")
    prompt = validate(given, openai_videos.RemixBody).prompt
    if source is not None:
        async with services.again.turn(owner_of(request)):
            again = replace(await services.jobs.restored(source), prompt=prompt)
            return await begin_video(request, again, services, labels={REMIXED_FROM: source.id})
    fields = {"prompt": prompt, "extra_params": '{"edge": {}}'}
    edit = openai_videos.parse_form(fields, services.settings, upload, "video_reference")
    edit = replace(edit, width=None, height=None)
    names = {**openai_videos.WIRE_NAMES, **dict.fromkeys(("field=transfer", "controls", "image", "video"), "video")}
    names["mode=transfer"] = "an upload, of which the edges are followed (transfer)"
    return await begin_video(request, named(edit, names), services)


async def source_of(
    request: Request, services: Services, video_id: str | None, verb: str
) -> tuple[dict[str, Any], bytes | None, Job | None]:
    """What is made of a finished video, which the path or the body names, or of an uploaded clip: the body's other
    fields, and the one or the other."""
    limit, upload = body_limit(services.settings.max_input_bytes), None
    if is_form(request):
        fields, files = await read_form(request, ("video",), limit)
        upload = files.get("video")
        given: dict[str, Any] = {name: text for name, text in fields.items() if "[" not in name}
        named = given.pop("video", fields.get("video[id]"))
    else:
        given = await read_object(request, limit, or_form=True)
        named = given.pop("video", None)
    named = named.get("id") if isinstance(named, dict) else named
    if upload is not None and video_id is None:
        return given, upload, None
    if not isinstance(video_id or named, str):
        raise InvalidRequestError(Problem("video", named, "an object with the id of a finished video"))
    source = await video_of(str(video_id or named), request, services)
    if source.state != "succeeded":
        raise BodyError(f"{source.id} is not completed, and only a completed video can be {verb}", status=409)
    return given, None, source


async def generation_of(request: Request, services: Services) -> GenerationRequest:
    """What the body, a form or JSON, asks for, with what it calls a request's fields."""
    settings = services.settings
    limit = body_limit(settings.max_input_bytes)
    if is_form(request):
        fields, files = await read_form(request, (*openai_videos.UPLOADS, CONTROL), limit)
        control = files.pop(CONTROL, None)
        if len(files) > 1:
            raise BodyError(f"the form has the files {' and '.join(files)}, which are one field; send one of them")
        called, upload = next(iter(files.items()), ("input_reference", None))
        parse = partial(openai_videos.parse_form, upload=upload, called=called, control=control)
        form = replace(openai_videos.DIALECT, parse=parse)
        # Some of the texts may be objects, which are parsed like bodies.
        given = {name: text for name, text in fields.items() if text not in ("", "null") or name == "prompt"}
        read = partial(form.read, given if upload is None else {called: "", **given}, settings)
        return await off_loop(read, sum(map(len, fields.values())))
    return openai_videos.DIALECT.read(await read_object(request, limit, or_form=True), settings)


def is_form(request: Request) -> bool:
    """Whether the body is a multipart form."""
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


async def begin_video(
    request: Request, generation: GenerationRequest, services: Services, *, labels: dict[str, str] | None = None
) -> Response:
    """Accept a generation, and answer with the video as it is now."""
    options = options_of(request) | {"metadata": labels or {}}
    generation = generation if generation.names else named(generation, openai_videos.WIRE_NAMES)
    with wording(generation):
        job = await services.jobs.submit(generation, dialect=openai_videos.NAME, owner=owner_of(request), **options)
    return JSONResponse(video_object(job), headers={"openai-poll-after-ms": str(POLL_AFTER_MS)})


async def video_of(video_id: str, request: Request, services: Services) -> Job:
    """The caller's video of that id; jobs of other wire formats are none."""
    try:
        job = await services.jobs.get(video_id, owner=owner_of(request))
    except JobNotFoundError:
        job = None
    if job is None or job.dialect != openai_videos.NAME:
        raise JobNotFoundError(f"there is no video {video_id}")
    return job


def video_object(job: Job) -> dict[str, Any]:
    """A job as OpenAI's `video` object; a cancelled job has failed."""
    made = job.request.result if job.result is None else job.result.outcome
    error = None if job.error is None else {"code": job.error.type, "message": job.error.text}
    return {
        "id": job.id,
        "object": "video",
        "model": job.model,
        "status": _STATUS[job.state],
        "progress": percent(job.progress, job.state),
        "created_at": int(job.created_at),
        "completed_at": int(job.finished_at) if job.state == "succeeded" and job.finished_at else None,
        "expires_at": None,
        "prompt": job.request.prompt,
        "seconds": f"{made.frames / made.fps:g}",
        "size": str(Size(made.width, made.height)),
        "seed": job.request.seed,
        "num_outputs": int(job.state == "succeeded"),  # which SGLang's benchmark counts
        "remixed_from_video_id": job.metadata.get(REMIXED_FROM),
        "warnings": list(job.warnings),
        "guardrails": [check.model_dump() for check in job.checks],
        "action": None if job.result is None else action_answer(job.request, job.result.outcome),
        "error": error,
    }


def percent(progress: Progress, state: State) -> int:
    """How much of a job is done, 0 to 100: by denoising steps, then by decoded frames."""
    if state == "succeeded":
        return 100
    if progress.stage == "done":  # made, and being put in its place
        return _DECODING[1]
    low, high = {"denoise": _DENOISING, "decode": _DECODING}.get(progress.stage, (0, 0))
    if not progress.total:
        return {"encode": 1}.get(progress.stage, low)
    return low + math.floor((high - low) * progress.step / progress.total)
