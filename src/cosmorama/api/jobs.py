"""Jobs over HTTP: `POST /v1/jobs` in any wire format, then look, follow, fetch, cancel, and lay clips side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.sse import EventSourceResponse
from pydantic import Field, TypeAdapter

from cosmorama.api.body import body_limit, json_body, page_answer, read_json, read_object
from cosmorama.api.clips import CONTENT, DiscardedFile, Variant, content_answer
from cosmorama.api.dialects import DIALECTS
from cosmorama.api.dialects.base import action_answer, choose, wording
from cosmorama.api.dialects.wire import Few, WireModel
from cosmorama.api.services import Services, ServicesOf, options_of, owner_of, page_limit, while_wanted
from cosmorama.errors import InvalidRequestError, JobConflictError, Problem
from cosmorama.jobs.channel import JobEvent, number
from cosmorama.jobs.files import discard
from cosmorama.jobs.model import STATES, Job, JobOptions, job_options
from cosmorama.jobs.service import Jobs

_OPTIONS = {
    name: field
    for name, field in TypeAdapter(JobOptions).json_schema()["properties"].items()
    if name not in ("idempotency_key",)
}
"""What a body of `POST /v1/jobs` may hold beside `dialect` and the wire format's own fields."""
KEEP_ALIVE_S = 15.0
NO_BUFFERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""Proxies are to pass events on as they come."""

router = APIRouter(prefix="/v1", tags=["jobs"])

_JOB: dict[str, Any] = {"description": "The job.", "content": {"application/json": {"schema": {"type": "object"}}}}
_BODY: dict[str, Any] = {
    "type": "object",
    "description": "A body of `POST /v1/infer` in any wire format, and these fields, all optional.",
    "properties": {
        "dialect": {"enum": [dialect.name for dialect in DIALECTS], "description": "Default: by shape."},
        **_OPTIONS,
    },
    "additionalProperties": True,
}


@router.post(
    "/jobs",
    summary="Accept a generation and answer at once",
    status_code=202,
    responses={202: _JOB, 409: {"description": "The Idempotency-Key was used for another request."}},
    openapi_extra=json_body(_BODY),
)
async def submit(request: Request, services: ServicesOf, dialect: str | None = None) -> Response:
    """The job is on the disk when this answers. An `Idempotency-Key` makes it safe to send again."""
    settings = services.settings
    body = await read_object(request, body_limit(settings.max_input_bytes))
    if (named := body.pop("dialect", None)) is not None and not isinstance(named, str):
        raise InvalidRequestError(Problem("dialect", named, "a string"))
    options = options_of(request) | job_options({name: body.pop(name, None) for name in _OPTIONS})
    spoken = choose(DIALECTS, body, dialect or named)
    generation = spoken.read(body, settings)
    with wording(generation):
        job = await services.jobs.submit(generation, dialect=spoken.name, owner=owner_of(request), **options)
    return JSONResponse(job.summary(), 202, headers={"Location": f"/v1/jobs/{job.id}"})


@router.get("/jobs", summary="List jobs, newest first", responses={200: {"description": "A page of jobs."}})
async def list_jobs(
    request: Request,
    services: ServicesOf,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before.")] = None,
    limit: Annotated[str, Query(description="1 to 100.")] = "20",
    state: Annotated[str | None, Query(description=", ".join(STATES))] = None,
) -> Response:
    """A page of the caller's jobs."""
    most = page_limit(limit)
    if state is not None and state not in STATES:
        raise InvalidRequestError(Problem("state", state, f"one of {', '.join(STATES)}"))
    owner = owner_of(request)
    page = await services.jobs.list(cursor=cursor, limit=most, state=state, owner=owner)
    return await page_answer(
        lambda: {"object": "list", "data": [job.summary() for job in page.jobs], "next_cursor": page.cursor},
        len(page.jobs),
    )


@router.get("/jobs/{job_id}", summary="A job as it is now", responses={200: _JOB})
async def get(job_id: str, request: Request, services: ServicesOf) -> Response:
    """Its state, stage, place in the queue and ETA; at the end its result or its error."""
    job = await services.jobs.get(job_id, owner=owner_of(request))
    return JSONResponse(job.summary())


@router.patch(
    "/jobs/{job_id}",
    summary="Change a job's labels",
    responses={200: _JOB},
    openapi_extra=json_body({"type": "object", "required": ["metadata"]}),
)
async def relabel(job_id: str, request: Request, services: ServicesOf) -> Response:
    """`{"metadata": {"starred": "yes", "old": null}}` sets and removes labels; nothing else changes."""
    body = await read_object(request, body_limit(services.settings.max_input_bytes))
    for name in body.keys() - {"metadata"}:
        raise InvalidRequestError(Problem(name, body[name], "no value: only metadata can be changed"))
    labels = body.get("metadata")
    if not isinstance(labels, dict) or any(not isinstance(label, str | None) for label in labels.values()):
        raise InvalidRequestError(Problem("metadata", labels, "an object whose values are strings or null"))
    return JSONResponse((await services.jobs.relabel(job_id, labels, owner=owner_of(request))).summary())


@router.delete("/jobs/{job_id}", summary="Remove a job and its clip", responses={200: {"description": "It is gone."}})
async def delete(job_id: str, request: Request, services: ServicesOf) -> Response:
    """One that is not over is cancelled first. To keep the job and its end, cancel it instead."""
    await services.jobs.delete(job_id, owner=owner_of(request))
    return JSONResponse({"id": job_id, "object": "job", "deleted": True})


@router.post("/jobs/{job_id}/cancel", summary="Cancel a job", responses={200: _JOB})
async def cancel(job_id: str, request: Request, services: ServicesOf) -> Response:
    """Stop a job within one denoising step. One that is over stays as it is, with its clip."""
    job = await services.jobs.cancel(job_id, owner=owner_of(request))
    return JSONResponse(job.summary())


@router.get(
    "/jobs/{job_id}/events",
    summary="Follow a job",
    response_class=StreamingResponse,  # the other class would have FastAPI write each event for each watcher
    responses={200: {"description": "Server-sent events: `status`, `preview`, and one of the final states."}},
)
async def events(job_id: str, request: Request, services: ServicesOf) -> Response:
    """Events from the present state to the end. `Last-Event-ID` leaves out what was seen; 204 if that was the end."""
    owner = owner_of(request)
    job = await services.jobs.get(job_id, owner=owner)
    last = request.headers.get("last-event-id", "")
    after = int(last) if last.isdecimal() and len(last) < 19 else 0
    if job.final and after >= number(job):
        return Response(status_code=204)
    if not job.final:
        services.jobs.check_watchers(job)
    return EventSourceResponse(_stream(services.jobs, job_id, after), headers=NO_BUFFERS)


@router.head("/jobs/{job_id}/content", include_in_schema=False)
@router.get("/jobs/{job_id}/content", **CONTENT)
async def content(
    job_id: str,
    request: Request,
    services: ServicesOf,
    variant: Variant = "video",
) -> Response:
    """The file of a succeeded job, or the part of it that a `Range` header names; its first frame (thumbnail, WebP),
    or sixteen of its moments on a sheet (JPEG).
    """
    job = await services.jobs.get(job_id, owner=owner_of(request))
    return await content_answer(request, services, job, variant)


@router.get(
    "/jobs/{job_id}/inputs/{where}", summary="A picture or clip that came with the job", response_class=Response
)
async def given(job_id: str, where: str, request: Request, services: ServicesOf) -> Response:
    """The bytes that came inline with the request: `image`, `video`, or `controls.0.source` and so on."""
    path = await services.jobs.checkout_input(job_id, where, owner=owner_of(request))
    # They are the client's own, and may be anything: no browser is to make a page of them.
    return DiscardedFile(path, 200, {"X-Content-Type-Options": "nosniff"}, media_type="application/octet-stream")


@router.get("/jobs/{job_id}/answer", summary="The answer in the job's own wire format", response_class=Response)
async def answer(job_id: str, request: Request, services: ServicesOf) -> Response:
    """What the synchronous request would have been answered with."""
    job = await services.jobs.get(job_id, owner=owner_of(request))
    spoken = choose(DIALECTS, {}, job.dialect)
    if job.error is not None:
        raise job.error.exception()
    path = await services.jobs.checkout(job)
    assert job.result is not None
    return spoken.answer(request, job.request, replace(job.result.outcome, path=path))


@router.get(
    "/jobs/{job_id}/actions", summary="The actions that a job predicted", responses={200: {"description": "Rows."}}
)
async def actions(job_id: str, request: Request, services: ServicesOf) -> Response:
    """Of inverse dynamics and policy: `{"data": [[...], ...], "shape", "domain_id", ...}`, a row per step."""
    job = await services.jobs.get(job_id, owner=owner_of(request))
    predicted = None if job.result is None else action_answer(job.request, job.result.outcome)
    if predicted is None:
        why = f"{job.request.mode} predicts none" if job.state == "succeeded" else f"it is {job.state}"
        raise JobConflictError(f"job {job.id} has no actions: {why}")
    return JSONResponse(predicted)


async def _stream(jobs: Jobs, job_id: str, after: int) -> AsyncIterator[bytes]:
    """The events of a job as they go over the wire, with a comment now and then that keeps the connection open."""
    async with aclosing(jobs.events(job_id, after=after)) as events:
        coming: asyncio.Future[JobEvent] | None = None
        try:
            while True:
                coming = coming or asyncio.ensure_future(anext(events))
                await asyncio.wait((coming,), timeout=KEEP_ALIVE_S)
                if not coming.done():
                    yield b": still there\n\n"
                    continue
                event = coming.result()
                coming = None
                yield b"id: %d\nevent: %s\ndata: %s\n\n" % (event.number, event.kind.encode(), event.payload)
        except StopAsyncIteration:
            return
        finally:
            if coming is not None and not coming.done():
                coming.cancel()
                await asyncio.wait((coming,))


MAX_CELLS = 64
_MAX_BODY_BYTES = 200_000


class SheetBody(WireModel):
    """Which clips go where, and what is written beside them."""

    rows: Few[Few[str | None]] = Field(description="Ids of succeeded jobs from left to right; null: an empty cell.")
    columns: Few[str] = Field(default_factory=list, description="What is written above the columns.")
    row_titles: Few[str] = Field(default_factory=list, description="What is written before the rows.")
    format: Literal["mp4", "png"] = "mp4"
    frame: int | None = Field(None, ge=0, description="For png: which frame, from 0; null: the middle one.")


_FILES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file.", "content": {"video/mp4": {}, "image/png": {}}},
}


@router.post(
    "/sheets",
    summary="Several clips side by side in one file",
    response_class=Response,
    responses=_FILES,
    openapi_extra=json_body(SheetBody.model_json_schema()),
)
async def sheet(request: Request, services: ServicesOf) -> Response:
    """An MP4 that plays all of them in step, or a PNG of one moment."""
    body = await read_json(request, SheetBody, _MAX_BODY_BYTES)
    count = sum(len(row) for row in body.rows)
    if not count or count > MAX_CELLS or not any(any(row) for row in body.rows):
        raise InvalidRequestError(Problem("rows", f"{count} cells", f"1 to {MAX_CELLS}, one of them with a clip"))
    owner = owner_of(request)
    found = [
        [None if name is None else await services.jobs.get(name, owner=owner) for name in row] for row in body.rows
    ]
    output = await while_wanted(request, _made(found, body, services, owner))
    media_type = "video/mp4" if body.format == "mp4" else "image/png"
    return DiscardedFile(output, media_type=media_type, filename=output.name)


async def _made(found: list[list[Job | None]], body: SheetBody, services: Services, owner: str) -> Path:
    """The sheet, in a folder of its own."""
    clips: list[Path] = []
    try:
        async with services.sheets.turn(owner) as call:
            rows = []
            for jobs in found:
                rows.append([None if job is None else await services.jobs.checkout(job) for job in jobs])
                clips += [clip for clip in rows[-1] if clip is not None]
            # Beside the first clip, so that it goes with its folder.
            output = clips[0].with_name(f"sheet.{body.format}")
            await call(_write, rows, body, output)
    except BaseException:
        for clip in clips:
            discard(clip)
        raise
    for clip in clips[1:]:
        discard(clip)
    return output


def _write(rows: list[list[Path | None]], body: SheetBody, output: Path) -> None:
    from cosmorama.grid.sheet import Sheet, write_sheet  # brings decoders, as in `clips`

    write_sheet(Sheet(rows, body.columns, body.row_titles), output, format=body.format, frame=body.frame)
