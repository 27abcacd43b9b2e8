"""The Predict1 dialect of `POST /v1/infer`: text2world, image2world and video2world by the fields that are given.

Fields, defaults and ranges are those of the Sampling Control page of NIM for Cosmos. Beyond it, at the top level:
`solver`, `guidance_interval`, `guidance_rescale`, `conditioning_frames` and `output`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from cosmorama.api.body import DialectBody, WireModel, validate
from cosmorama.api.dialects.answers import told_answer
from cosmorama.api.dialects.base import Dialect
from cosmorama.request import GenerationRequest, Output
from cosmorama.settings import Settings

WIRE_NAMES = {
    "frames": "video_params.frames_count",
    "fps": "video_params.frames_per_sec",
    "size": "video_params.width x video_params.height",
}


class VideoParams(WireModel):
    """Resolution and timing of the video; each key may be left out."""

    height: int | None = Field(None, description="Pixels; with the width one of the model's sizes.")
    width: int | None = Field(None, description="Pixels; with the height one of the model's sizes.")
    frames_count: int | None = Field(None, description="From 1 to the most that the model makes.")
    frames_per_sec: float | None = Field(None, description="12 to 40.")


class OutputParams(WireModel):
    """How the result is written; what is left out is the server's choice."""

    container: str = "mp4"
    codec: str | None = None
    quality: int | None = None


class InferBody(DialectBody):
    """What a client of the Predict1 NIM sends."""

    dialect: ClassVar[str] = "predict1"

    prompt: str | None = Field(None, description="Up to 250 words; required unless an image or a video is given.")
    negative_prompt: str | None = None
    prompt_upsampling: bool | None = Field(None, description="Default: true for text, false with an image or a video.")
    image: str | None = Field(None, description="URL, data URL or base64 of a picture to start from.")
    video: str | None = Field(None, description="URL, data URL or base64 of a clip to continue.")
    seed: int | None = Field(None, description="0 to 4294967295; null draws one.")
    guidance_scale: float | None = Field(None, description="1 to 10.")
    steps: int | None = Field(None, description="1 to 50.")
    video_params: VideoParams = VideoParams()
    solver: str | None = None
    # Not strict: arrays in JSON are lists, the numbers in it are checked as strictly as all.
    guidance_interval: tuple[float, float] = Field((0.0, 1.0), strict=False)
    guidance_rescale: float = 0.0
    reuse: float | None = Field(None, description="Step reuse, 0 (exact) to 1; null: the server's choice.")
    conditioning_frames: int | None = None
    output: OutputParams = OutputParams()


def parse(body: dict[str, Any], settings: Settings) -> GenerationRequest:
    """A decoded body to the request it describes; whether a model can make it is not decided here."""
    wire = validate(body, InferBody)
    params, output = wire.video_params, wire.output
    return GenerationRequest(
        prompt=wire.prompt,
        negative_prompt=wire.negative_prompt,
        prompt_upsampling=wire.prompt_upsampling,
        image=wire.image,
        video=wire.video,
        seed=wire.seed,
        guidance_scale=wire.guidance_scale,
        steps=wire.steps,
        width=params.width,
        height=params.height,
        frames=params.frames_count,
        fps=params.frames_per_sec,
        # These are names that `resolve` checks, with the model's own list in the error.
        solver=wire.solver,  # type: ignore[arg-type]
        guidance_interval=wire.guidance_interval,
        guidance_rescale=wire.guidance_rescale,
        reuse=wire.reuse,
        conditioning_frames=wire.conditioning_frames,
        output=Output(
            container=output.container,  # type: ignore[arg-type]
            codec=output.codec,  # type: ignore[arg-type]
            quality=settings.video_quality if output.quality is None else output.quality,
        ),
        fit=settings.size_policy == "fit",
        model=wire.model,
    )


DIALECT = Dialect(
    name=InferBody.dialect,
    parse=parse,
    recognises=lambda body: True,
    answer=told_answer,
    body=InferBody,
    wire_names=WIRE_NAMES,
)
