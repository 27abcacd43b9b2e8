"""The Predict1 dialect of `POST /v1/infer`: text2world, image2world and video2world by the fields that are given.

Fields, defaults and ranges are those of the Sampling Control page of NIM for Cosmos. Beyond it, at the top level:
`solver`, `guidance_interval`, `guidance_rescale`, `conditioning_frames` and `output`.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import Field

from cosmorama.api.body import WireModel, body_limit, read_json
from cosmorama.api.clips import ClipFile, ClipJSON
from cosmorama.api.dialects.predict1_examples import EXAMPLES
from cosmorama.api.generate import generate
from cosmorama.api.services import ServicesOf
from cosmorama.errors import InvalidRequestError
from cosmorama.media.write import mime_type
from cosmorama.request import DEFAULT_NEGATIVE_PROMPT, GenerationRequest, Output

WIRE_NAMES = {
    "frames": "video_params.frames_count",
    "fps": "video_params.frames_per_sec",
    "size": "video_params.width x video_params.height",
}


class VideoParams(WireModel):
    """Resolution and timing of the video; each key may be left out."""

    height: int = 704
    width: int = 1280
    frames_count: int = 121
    frames_per_sec: float = 24


class OutputParams(WireModel):
    """How the result is written; what is left out is the server's choice."""

    container: str = "mp4"
    codec: str | None = None
    quality: int | None = None


class InferBody(WireModel):
    """What a client sends."""

    prompt: str | None = Field(None, description="Up to 250 words; required unless an image or a video is given.")
    negative_prompt: str = DEFAULT_NEGATIVE_PROMPT
    prompt_upsampling: bool | None = Field(None, description="Default: true for text, false with an image or a video.")
    image: str | None = Field(None, description="URL, data URL or base64 of a picture to start from.")
    video: str | None = Field(None, description="URL, data URL or base64 of a clip to continue.")
    seed: int | None = Field(None, description="0 to 4294967295; null draws one.")
    guidance_scale: float = Field(7.0, description="1 to 10.")
    steps: int = Field(35, description="1 to 50.")
    video_params: VideoParams = VideoParams()
    solver: str | None = None
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_rescale: float = 0.0
    conditioning_frames: int | None = None
    output: OutputParams = OutputParams()


class InferAnswer(WireModel):
    """What a client gets."""

    b64_video: str = Field(description="The clip, in base64.")
    seed: int = Field(description="The seed that was used.")
    upsampled_prompt: str | None = Field(description="The text that was used.")


def to_request(body: InferBody, *, default_quality: int) -> GenerationRequest:
    """The request that a body describes; whether a model can make it is not decided here."""
    params, output = body.video_params, body.output
    return GenerationRequest(
        prompt=body.prompt,
        negative_prompt=body.negative_prompt,
        prompt_upsampling=body.prompt_upsampling,
        image=body.image,
        video=body.video,
        seed=body.seed,
        guidance_scale=body.guidance_scale,
        steps=body.steps,
        width=params.width,
        height=params.height,
        frames=params.frames_count,
        fps=params.frames_per_sec,
        # These two are names that `resolve` checks, with the model's own list in the error.
        solver=body.solver,  # type: ignore[arg-type]
        guidance_interval=body.guidance_interval,
        guidance_rescale=body.guidance_rescale,
        conditioning_frames=body.conditioning_frames,
        output=Output(
            container=output.container,  # type: ignore[arg-type]
            codec=output.codec,  # type: ignore[arg-type]
            quality=default_quality if output.quality is None else output.quality,
        ),
    )


_BODY: dict[str, Any] = {
    "required": True,
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/InferBody"}, "examples": EXAMPLES}},
}

router = APIRouter(tags=["generation"])


@router.post(
    "/v1/infer",
    summary="Generate a world from text, an image or a video",
    response_class=Response,
    responses={
        200: {
            "description": "The clip. With `Accept: video/mp4`, the file itself instead of JSON.",
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/InferAnswer"}},
                "video/mp4": {},
            },
        }
    },
    openapi_extra={"requestBody": _BODY},
)
async def infer(request: Request, services: ServicesOf) -> Response:
    """Generate a clip and answer when it is finished. Going away cancels it."""
    settings = services.settings
    body = await read_json(request, InferBody, body_limit(settings.max_input_bytes))
    generation = to_request(body, default_quality=settings.video_quality)
    try:
        outcome = await generate(request, generation, services)
    except InvalidRequestError as error:
        raise error.renamed(WIRE_NAMES) from None
    accept = request.headers.get("accept", "")
    if "video/" in accept and "application/json" not in accept:
        return ClipFile(outcome, mime_type(generation.output))
    return ClipJSON("b64_video", outcome.path, {"seed": outcome.seed, "upsampled_prompt": outcome.prompt})
