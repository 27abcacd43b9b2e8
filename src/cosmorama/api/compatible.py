"""Routes that clients of OpenAI, SGLang and vLLM-Omni call besides `/v1/videos`.

`/v1/videos/sync`, and TensorRT-LLM's `/v1/videos/generations`, answer with the clip itself, `/v1/videos/{id}/extend`
goes on with a finished one, `/v1/images/generations` makes stills, `/v1/models/{name}` and `/health` say what everybody
asks.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
import zipfile
from dataclasses import replace
from typing import Any, ClassVar, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from cosmorama.api import info
from cosmorama.api.body import body_limit, json_body, read_bytes, read_object
from cosmorama.api.clips import timing
from cosmorama.api.dialects import openai_videos
from cosmorama.api.dialects.base import action_answer, file_answer, named, wording
from cosmorama.api.dialects.openai_videos import AnyLora, adapters_of, size_from
from cosmorama.api.dialects.wire import DialectBody, alike, names_written, validate
from cosmorama.api.infer import generate
from cosmorama.api.services import Services, ServicesOf, owner_of
from cosmorama.api.videos import BODY, SCHEMA, OpenAIRoute, begin_video, generation_of, is_form, source_of
from cosmorama.engine.outcome import Outcome
from cosmorama.errors import InvalidRequestError, Problem
from cosmorama.jobs.files import discard
from cosmorama.request import MAX_SEED, PROMPT_MAX_CHARACTERS, GenerationRequest, Output

router = APIRouter(tags=["videos"], route_class=OpenAIRoute)
EXTENDED_FROM = "extended_from_video_id"
"""The label of a job that goes on with a video."""


@router.post("/v1/videos/generations", include_in_schema=False)
@router.post(
    "/v1/videos/sync",
    summary="Make a video and answer with it",
    response_class=Response,
    responses={200: {"description": "The clip.", "content": {"video/mp4": {}}}},
    openapi_extra=BODY,
)
async def sync(request: Request, services: ServicesOf) -> Response:
    """The body of `POST /v1/videos`; the answer is the file, once it is made. Going away cancels it."""
    generation = await generation_of(request, services)
    return file_answer(request, generation, await _made(request, generation, services))


async def _made(request: Request, generation: GenerationRequest, services: Services, number: int = 0) -> Outcome:
    with wording(generation):
        return await generate(request, generation, services, dialect=openai_videos.NAME, number=number)


@router.post("/v1/actions/generations", tags=["videos"], summary="Predict a robot's actions", openapi_extra=BODY)
async def actions(request: Request, services: ServicesOf) -> JSONResponse:
    """The body of `POST /v1/videos` with actions, as SGLang's clients send it; the answer has no clip."""
    generation = await generation_of(request, services)
    if generation.task not in ("policy", "inverse_dynamics"):
        raise InvalidRequestError(Problem("action_mode", generation.task, "policy or inverse_dynamics"))
    outcome = await _made(request, generation, services)
    discard(outcome.path)
    action = {"action": action_answer(generation, outcome)}
    told = {"seed": outcome.seed, "warnings": list(outcome.warnings)}
    return JSONResponse({"created": int(time.time()), "data": [action], **told})


@router.post("/v1/videos/extensions", summary="Go on with a video, named in the body", openapi_extra={})
@router.post(
    "/v1/videos/{video_id}/extend",
    summary="Go on with a video",
    openapi_extra=json_body(SCHEMA),
)
async def extend(request: Request, services: ServicesOf, video_id: str | None = None) -> Response:
    """Begin a video that goes on from the last frames of a finished one, and begins with them.

    Prompt, size, rate and sampling are the video's own where the body does not say; the seed is drawn anew. An uploaded
    clip is continued as in `POST /v1/videos`.
    """
    given, upload, source = await source_of(request, services, video_id, "extended")
    if source is None:
        fields = {name: text for name, text in given.items() if text is not None}
        generation = openai_videos.parse_form(fields, services.settings, upload, "video_reference")
        if not {"size", "width"} & fields.keys():
            generation = replace(generation, width=None, height=None)  # not OpenAI's, which is upright
        names = {**openai_videos.WIRE_NAMES, "video": "video", "image": "video"}
        return await begin_video(request, named(generation, names), services)
    asked = openai_videos.parse_extend(given, services.settings, form=is_form(request))
    async with services.again.turn(owner_of(request)):
        clip = await services.jobs.checkout(source)
        try:
            data = await asyncio.to_thread(clip.read_bytes)
        finally:
            discard(clip)
        generation = _continued(source.request, asked, data)
        return await begin_video(request, generation, services, labels={EXTENDED_FROM: source.id})


def _continued(source: GenerationRequest, asked: GenerationRequest, clip: bytes) -> GenerationRequest:
    """What was asked for, with the source's choices where nothing was."""
    result = getattr(source, "target", None) or source
    return replace(
        asked,
        prompt=asked.prompt or source.prompt,
        negative_prompt=asked.negative_prompt if asked.negative_prompt is not None else source.negative_prompt,
        width=asked.width or result.width,
        height=asked.height or result.height,
        fps=asked.fps or result.fps,
        steps=asked.steps or source.steps,
        guidance_scale=source.guidance_scale if asked.guidance_scale is None else asked.guidance_scale,
        adapters=asked.adapters or source.adapters,
        model=asked.model or source.model,
        image=None,
        video=clip,
    )


class ImageBody(DialectBody):
    """What a client of OpenAI's Images API sends, and the sampling knobs."""

    dialect: ClassVar[str] = "openai_images"
    aliases = {"num_inference_steps": "steps", "num_outputs_per_prompt": "n", "format": "output_format"}  # noqa: RUF012

    prompt: str = Field(min_length=1, max_length=PROMPT_MAX_CHARACTERS)
    n: int = Field(1, ge=1, le=10, description="Pictures, one after another, of seeds that follow each other.")
    size: str | None = Field(None, description="Width x height in pixels, or auto.")
    width: int | None = Field(None, ge=1)
    height: int | None = Field(None, ge=1)
    response_format: Literal["b64_json", "url"] = Field("b64_json", description="A url is a data URL.")
    stream: bool = Field(False, description="One event with the finished picture.")
    output_format: Literal["png", "jpeg", "jpg"] = "png"
    negative_prompt: str | None = Field(None, max_length=PROMPT_MAX_CHARACTERS)
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    steps: int | None = None
    guidance_scale: float | None = None
    flow_shift: float | None = None
    prompt_upsampling: bool | None = None
    lora: AnyLora = None


_UNUSED_OF_IMAGES = "quality style background moderation partial_images extra_args extra_params"
_UNUSED_IMAGE_FIELDS = (*openai_videos.UNUSED, *_UNUSED_OF_IMAGES.split())


@router.post(
    "/v1/images/generations",
    summary="Make a picture",
    tags=["images"],
    responses={200: {"description": "The pictures in base64.", "content": {"application/json": {}}}},
    openapi_extra=json_body(ImageBody.model_json_schema()),
)
async def images(request: Request, services: ServicesOf) -> Response:
    """Stills, as PNG or JPEG in base64. Going away cancels them."""
    body = await read_object(request, body_limit(services.settings.max_input_bytes))
    unused = [name for name in _UNUSED_IMAGE_FIELDS if body.pop(name, None) not in (None, False, "auto", "standard")]
    wire = validate(body, ImageBody)
    size = None if wire.size in (None, "", "auto") else size_from(wire.size)
    width, height = (wire.width, wire.height) if size is None else (size.width, size.height)
    png = wire.output_format == "png"
    generation = GenerationRequest(
        **alike(wire),
        width=width,
        height=height,
        frames=1,
        adapters=adapters_of(wire.lora),
        output=Output("png" if png else "jpeg", quality=services.settings.video_quality),
        fit=True,
        warnings=tuple(f"{name} was not used" for name in unused),
    )
    names = {"adapters": "lora", "frames": "n", **names_written(ImageBody, body)}
    kind, data = "png" if png else "jpeg", []
    for number in range(wire.n):
        seed = None if wire.seed is None else (wire.seed + number) % (MAX_SEED + 1)
        outcome = await _made(request, named(replace(generation, seed=seed), names), services, number)
        try:
            encoded = base64.b64encode(await asyncio.to_thread(_picture, outcome.path, png)).decode()
        finally:
            discard(outcome.path)
        url = f"data:image/{kind};base64,{encoded}"
        form = {"url": url} if wire.response_format == "url" else {"b64_json": encoded}
        data.append({**form, "revised_prompt": outcome.prompt, "seed": outcome.seed})
    told: dict[str, Any] = {"output_format": kind, "size": f"{outcome.width}x{outcome.height}"}
    told["warnings"] = list(outcome.warnings)
    if wire.stream:
        name, common = "image_generation.completed", {"created_at": int(time.time()), **told}
        events = [f"event: {name}\ndata: {json.dumps({'type': name, **each, **common})}\n\n" for each in data]
        return Response("".join(events), media_type="text/event-stream")
    told |= {"created": int(time.time()), "data": data, "seed": data[0]["seed"]}
    return JSONResponse(told, headers=timing(outcome))


@router.post("/v1/images/edits", include_in_schema=False)
@router.post("/v1/images/variations", include_in_schema=False)
async def edits(request: Request, services: ServicesOf) -> None:
    """Refused in words, as OpenAI's characters are."""
    await read_bytes(request, body_limit(services.settings.max_input_bytes))
    accepted = "no value: no model here changes a picture; a video begins with one (input_reference of /v1/videos)"
    raise InvalidRequestError(Problem("image", "an upload", accepted))


def _picture(path: Any, png: bool) -> bytes:
    """The one picture of a file; PNG frames come in a ZIP."""
    if not (png and zipfile.is_zipfile(path)):
        return bytes(path.read_bytes())
    with zipfile.ZipFile(path) as frames:
        return frames.read(frames.namelist()[0])


@router.get("/v1/models/{name:path}", tags=["about"], responses={404: {"description": "There is no such model."}})
async def model(name: str, services: ServicesOf) -> dict[str, Any]:
    """One of the models being served, in the shape of the OpenAI API; aliases and hub ids are taken."""
    return info.model_entry(services.supervisor.find(name))


@router.head("/health", include_in_schema=False)
@router.get("/health", tags=["health"], summary="Is a model loaded", responses={503: {"description": "Not yet."}})
async def health(services: ServicesOf) -> JSONResponse:
    """The same as `/v1/health/ready`, where load balancers and other servers' clients look for it."""
    return await info.ready(services)
