"""The Cosmos3-Generator 1.0 dialect of `POST /v1/infer`: text or an image to video, by resolution key and rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from cosmorama.api.body import DialectBody, validate
from cosmorama.api.dialects.answers import told_answer
from cosmorama.api.dialects.base import Dialect
from cosmorama.api.dialects.resolutions import COSMOS3, size_of, tier_of
from cosmorama.errors import InvalidRequestError, Problem
from cosmorama.request import DEFAULT_NEGATIVE_PROMPT, MAX_SEED, GenerationRequest, Output, Usual
from cosmorama.settings import Settings

MIN_FRAMES = 25
MAX_FRAMES = {"256": 397, "480": 297, "720": 197}
"""By tier; Cosmos3 2.x has the same."""
USUAL = Usual(frames=189, fps=24, steps=35, guidance_scale=6.0, negative_prompt=DEFAULT_NEGATIVE_PROMPT)
WIRE_NAMES = {"frames": "num_output_frames", "size": "resolution"}


class Generator1Body(DialectBody):
    """What a client of the Cosmos3-Generator 1.0 NIM sends."""

    dialect: ClassVar[str] = "generator1"

    prompt: str | None = Field(None, description="Required unless an image is given.")
    negative_prompt: str | None = None
    image: str | None = Field(None, description="URL, data URL or base64 of a picture to start from.")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="null draws one.")
    guidance_scale: float | None = Field(None, ge=1, le=7)
    steps: int | None = Field(None, ge=1, le=100)
    resolution: str = Field("720_16_9", description="Tier 256, 480 or 720, with an aspect ratio such as _16_9.")
    num_output_frames: int | None = Field(None, description="4k+1, from 25 to 397 (tier 256), 297 or 197.")
    fps: float | None = Field(None, ge=1, le=60)


def parse(body: dict[str, Any], settings: Settings) -> GenerationRequest:
    """A decoded body to the request it describes."""
    wire = validate(body, Generator1Body)
    size = size_of(wire.resolution, COSMOS3)
    most = MAX_FRAMES[tier_of(wire.resolution)]
    frames = wire.num_output_frames
    if frames is not None and (not MIN_FRAMES <= frames <= most or frames % 4 != 1):
        accepted = f"4k+1 (25, 29, ...) from {MIN_FRAMES} to {most} at resolution {wire.resolution}"
        raise InvalidRequestError(Problem("num_output_frames", frames, accepted))
    return GenerationRequest(
        prompt=wire.prompt,
        negative_prompt=wire.negative_prompt,
        image=wire.image,
        seed=wire.seed,
        guidance_scale=wire.guidance_scale,
        steps=wire.steps,
        width=size.width,
        height=size.height,
        frames=frames,
        fps=wire.fps,
        output=Output(quality=settings.video_quality),
        fit=True,
        model=wire.model,
        usual=USUAL,
    )


def recognises(body: Mapping[str, Any]) -> bool:
    """`fps` at the top is its own; with a `video` the body is Predict2.5's."""
    return "fps" in body and body.keys().isdisjoint({"video_params", "video"})


DIALECT = Dialect(
    name=Generator1Body.dialect,
    parse=parse,
    recognises=recognises,
    answer=told_answer,
    body=Generator1Body,
    wire_names=WIRE_NAMES,
)
