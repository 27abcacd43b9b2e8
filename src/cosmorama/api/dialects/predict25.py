"""The Predict2.5 dialect of `POST /v1/infer`: a prompt, and an image or a video to go on from.

`num_output_frames` beyond the model's window asks for autoregressive windows, where the model makes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from cosmorama.api.body import DialectBody, validate
from cosmorama.api.dialects.answers import told_answer
from cosmorama.api.dialects.base import Dialect
from cosmorama.api.dialects.resolutions import PREDICT25, size_of
from cosmorama.request import DEFAULT_NEGATIVE_PROMPT, MAX_SEED, GenerationRequest, Output, Usual
from cosmorama.settings import Settings

USUAL = Usual(frames=93, fps=16, steps=35, guidance_scale=7.0, negative_prompt=DEFAULT_NEGATIVE_PROMPT)
WIRE_NAMES = {"frames": "num_output_frames", "size": "resolution"}


class Predict25Body(DialectBody):
    """What a client of the Predict2.5 NIM sends."""

    dialect: ClassVar[str] = "predict25"

    prompt: str
    negative_prompt: str | None = None
    image: str | None = Field(None, description="URL, data URL or base64 of a picture to start from.")
    video: str | None = Field(None, description="URL, data URL or base64 of a clip to continue.")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="null draws one.")
    guidance_scale: float | None = Field(None, ge=1, le=20)
    steps: int | None = Field(None, ge=1, le=50)
    resolution: str = Field("720_16_9", description="Tier 256, 480, 512 or 720, with an aspect ratio such as _16_9.")
    num_output_frames: int | None = Field(None, ge=1)


def parse(body: dict[str, Any], settings: Settings) -> GenerationRequest:
    """A decoded body to the request it describes."""
    wire = validate(body, Predict25Body)
    size = size_of(wire.resolution, PREDICT25)
    return GenerationRequest(
        prompt=wire.prompt,
        negative_prompt=wire.negative_prompt,
        image=wire.image,
        video=wire.video,
        seed=wire.seed,
        guidance_scale=wire.guidance_scale,
        steps=wire.steps,
        width=size.width,
        height=size.height,
        frames=wire.num_output_frames,
        output=Output(quality=settings.video_quality),
        fit=True,
        model=wire.model,
        usual=USUAL,
    )


def recognises(body: Mapping[str, Any]) -> bool:
    """Its sizes are named, not numbers, and it has no rate."""
    return "video_params" not in body and not body.keys().isdisjoint({"resolution", "num_output_frames"})


DIALECT = Dialect(
    name=Predict25Body.dialect,
    parse=parse,
    recognises=recognises,
    answer=told_answer,
    body=Predict25Body,
    wire_names=WIRE_NAMES,
)
