"""The formats of the Predict models on `POST /v1/infer`: Predict1, Predict2.5 and the Cosmos3 Generator 1.0.

Predict1's fields are those of the Sampling Control page of NIM for Cosmos; beyond it, at the top level, it takes
`solver`, `guidance_interval`, `guidance_rescale`, `reuse`, `conditioning_frames` and `output`. What a body leaves out
is the model's own, which for the models of the page is what the page says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from cosmorama.api.dialects.base import BY_INPUT, Dialect, told_answer
from cosmorama.api.dialects.wire import DialectBody, Key, WireModel, alike, validate
from cosmorama.errors import InvalidRequestError, Problem
from cosmorama.request import (
    DEFAULT_NEGATIVE_PROMPT,
    MAX_SEED,
    PROMPT_MAX_CHARACTERS,
    PROMPT_MAX_WORDS,
    GenerationRequest,
    Output,
    Size,
    Usual,
)
from cosmorama.settings import Settings

_STEPS = {"num_inference_steps": "steps", "num_steps": "steps"}
_ALIASES = {**_STEPS, "num_frames": "num_output_frames"}
ASPECTS = ("16_9", "1_1", "9_16", "4_3", "3_4")
Resolutions = Mapping[str, Size]
"""Resolution keys, a tier (256, 480, 512 or 720) alone or with an aspect ratio, to sizes. A tier alone is 16:9."""


def _tier(tier: str, *sizes: tuple[int, int]) -> dict[str, Size]:
    """Keys of one tier; `sizes` are (width, height) in the order of `ASPECTS`."""
    named = {f"{tier}_{aspect}": Size(*size) for aspect, size in zip(ASPECTS, sizes, strict=True)}
    return {tier: named[f"{tier}_16_9"], **named}


_LOW = {
    **_tier("256", (320, 192), (256, 256), (192, 320), (320, 256), (256, 320)),
    **_tier("480", (832, 480), (640, 640), (480, 832), (736, 544), (544, 736)),
}
COSMOS3_SIZES: Resolutions = {
    **_LOW,
    **_tier("720", (1280, 720), (960, 960), (720, 1280), (1104, 832), (832, 1104)),
}
"""Also the Generator's."""
PREDICT25_SIZES: Resolutions = {
    **_LOW,
    **_tier("512", (640, 384), (512, 512), (384, 640), (640, 512), (512, 640)),
    **_tier("720", (1280, 704), (960, 960), (704, 1280), (960, 704), (704, 960)),
}
"""Tier 720 is the five sizes of the Predict models; Transfer2.5 has the same tiers."""
MIN_FRAMES = 25
MAX_FRAMES = {"256": 397, "480": 297, "720": 197}
"""Of Cosmos3's clips, by tier."""


def size_of(key: str, table: Resolutions) -> Size:
    """The size that a resolution key stands for.

    Raises:
        InvalidRequestError: the table has no such key.
    """
    if key not in table:
        raise InvalidRequestError(Problem("resolution", key, f"one of {', '.join(table)}"))
    return table[key]


def tier_of(key: str) -> str:
    """The tier of a key: 720 of `720_16_9`."""
    return key.partition("_")[0]


def documented(default: float, meaning: str) -> Any:
    """A number whose documented default stands in the schema; left out, it is the model's own, where that differs."""
    return Field(None, description=meaning, json_schema_extra={"default": default})


def text(meaning: str, default: str | None = None) -> Any:
    """A text of a body that is left out or as long as any text may be; `default` is the documented one."""
    extra: dict[str, Any] = {} if default is None else {"default": default}
    return Field(None, max_length=PROMPT_MAX_CHARACTERS, description=meaning, json_schema_extra=extra)


class VideoParams(WireModel):
    """Resolution and timing of the video; each key may be left out."""

    aliases: ClassVar[Mapping[str, str]] = {
        "frames": "frames_count",
        "num_frames": "frames_count",
        "fps": "frames_per_sec",
    }

    height: int | None = documented(704, "Pixels; with the width one of the model's sizes.")
    width: int | None = documented(1280, "Pixels; with the height one of the model's sizes.")
    frames_count: int | None = documented(121, "From 1 to the most that the model makes.")
    frames_per_sec: float | None = documented(24, "12 to 40.")


class OutputParams(WireModel):
    """How the result is written; what is left out is the server's choice."""

    container: str = "mp4"
    codec: str | None = None
    quality: int | None = None


class InferBody(DialectBody):
    """What a client of the Predict1 NIM sends."""

    dialect: ClassVar[str] = "predict1"
    aliases: ClassVar[Mapping[str, str]] = {
        **_STEPS,
        **{name: f"video_params.{name}" for name in VideoParams.model_fields},
        **{name: f"video_params.{own}" for name, own in VideoParams.aliases.items()},
    }

    prompt: str | None = text("Up to 250 words; required unless an image or a video is given.")
    negative_prompt: str | None = text("Up to 250 words.", DEFAULT_NEGATIVE_PROMPT)
    prompt_upsampling: bool | None = Field(None, description="Default: true for text, false with an image or a video.")
    image: str | None = Field(None, description="URL, data URL or base64 of a picture to start from.")
    video: str | None = Field(None, description="URL, data URL or base64 of a clip to continue.")
    seed: int | None = Field(None, description="0 to 4294967295; null draws one.")
    guidance_scale: float | None = documented(7.0, "1 to 10.")
    steps: int | None = documented(35, "1 to 50.")
    video_params: VideoParams = Field(default_factory=VideoParams)
    solver: str | None = None
    # Not strict: arrays in JSON are lists, the numbers in it are checked as strictly as all.
    guidance_interval: tuple[float, float] = Field((0.0, 1.0), strict=False)
    guidance_rescale: float = 0.0
    reuse: float | None = Field(None, description="Step reuse, 0 (exact) to 1; null: the server's choice.")
    conditioning_frames: int | None = None
    output: OutputParams = OutputParams()


def parse_predict1(body: dict[str, Any], settings: Settings) -> GenerationRequest:
    """A Predict1 body to the request it describes; whether a model can make it is not decided here."""
    wire = validate(body, InferBody)
    problems = [
        Problem(name, f"{words} words", f"at most {PROMPT_MAX_WORDS} words")
        for name in ("prompt", "negative_prompt")
        if (words := len((getattr(wire, name) or "").split())) > PROMPT_MAX_WORDS
    ]
    if problems:
        raise InvalidRequestError(*problems)
    params, output = wire.video_params, wire.output
    return GenerationRequest(
        **alike(wire),
        image=wire.image or None,
        video=wire.video or None,
        width=params.width,
        height=params.height,
        frames=params.frames_count,
        fps=params.frames_per_sec,
        output=Output(  # of names that `resolve` checks, with the model's own list in the error
            container=output.container,  # type: ignore[arg-type]
            codec=output.codec,  # type: ignore[arg-type]
            quality=settings.video_quality if output.quality is None else output.quality,
        ),
        fit=settings.size_policy == "fit",
    )


PREDICT1 = Dialect(
    name=InferBody.dialect,
    parse=parse_predict1,
    recognises=lambda body: True,
    answer=told_answer,
    body=InferBody,
    wire_names={
        **BY_INPUT,
        "frames": "video_params.frames_count",
        "fps": "video_params.frames_per_sec",
        "size": "video_params.width x video_params.height",
        "width": "video_params.width",
        "height": "video_params.height",
        "hint=size": "COSMORAMA_SIZE_POLICY=fit on the server for any size, or ",
        "hint=fps": "COSMORAMA_SIZE_POLICY=fit on the server for any rate, or ",
    },
)


class Predict25Body(DialectBody):
    """What a client of the Predict2.5 NIM sends; more frames than the model's window are made in several."""

    dialect: ClassVar[str] = "predict25"
    aliases = _ALIASES

    prompt: str = Field(max_length=PROMPT_MAX_CHARACTERS)
    negative_prompt: str | None = text("What the picture should not be.")
    image: str | None = Field(None, description="URL, data URL or base64 of a picture to start from.")
    video: str | None = Field(None, description="URL, data URL or base64 of a clip to continue.")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="null draws one.")
    guidance_scale: float | None = Field(None, ge=1, le=20)
    steps: int | None = Field(None, ge=1, le=50)
    resolution: Key = Field("720_16_9", description="Tier 256, 480, 512 or 720, with an aspect ratio such as _16_9.")
    num_output_frames: int | None = Field(None, ge=1)


def parse_predict25(body: dict[str, Any], settings: Settings) -> GenerationRequest:
    """A Predict2.5 body to the request it describes."""
    wire = validate(body, Predict25Body)
    size = size_of(wire.resolution, PREDICT25_SIZES)
    return GenerationRequest(
        **alike(wire),
        image=wire.image or None,
        video=wire.video or None,
        width=size.width,
        height=size.height,
        frames=wire.num_output_frames,
        output=Output(quality=settings.video_quality),
        fit=True,
        usual=Usual(frames=93, fps=16, steps=35, guidance_scale=7.0, negative_prompt=DEFAULT_NEGATIVE_PROMPT),
    )


PREDICT25 = Dialect(
    name=Predict25Body.dialect,
    parse=parse_predict25,
    # Its sizes are named, not numbers, and it has no rate.
    recognises=lambda body: (
        "video_params" not in body and not body.keys().isdisjoint({"resolution", "num_output_frames"})
    ),
    answer=told_answer,
    body=Predict25Body,
    wire_names={**BY_INPUT, "frames": "num_output_frames", "size": "resolution"},
)


class Generator1Body(DialectBody):
    """What a client of the Cosmos3-Generator 1.0 NIM sends."""

    dialect: ClassVar[str] = "generator1"
    aliases = _ALIASES

    prompt: str | None = text("Required unless an image is given.")
    negative_prompt: str | None = text("What the picture should not be.")
    image: str | None = Field(None, description="URL, data URL or base64 of a picture to start from.")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="null draws one.")
    guidance_scale: float | None = Field(None, ge=1, le=7)
    steps: int | None = Field(None, ge=1, le=100)
    resolution: Key = Field("720_16_9", description="Tier 256, 480 or 720, with an aspect ratio such as _16_9.")
    num_output_frames: int | None = Field(None, description="4k+1, from 25 to 397 (tier 256), 297 or 197.")
    fps: float | None = Field(None, ge=1, le=60)


def parse_generator1(body: dict[str, Any], settings: Settings) -> GenerationRequest:
    """A Generator 1.0 body to the request it describes."""
    wire = validate(body, Generator1Body)
    size = size_of(wire.resolution, COSMOS3_SIZES)
    most = MAX_FRAMES[tier_of(wire.resolution)]
    frames = wire.num_output_frames
    if frames is not None and (not MIN_FRAMES <= frames <= most or frames % 4 != 1):
        accepted = f"4k+1 (25, 29, ...) from {MIN_FRAMES} to {most} at resolution {wire.resolution}"
        raise InvalidRequestError(Problem("num_output_frames", frames, accepted))
    return GenerationRequest(
        **alike(wire),
        image=wire.image or None,
        width=size.width,
        height=size.height,
        frames=frames,
        output=Output(quality=settings.video_quality),
        fit=True,
        usual=Usual(frames=189, fps=24, steps=35, guidance_scale=6.0, negative_prompt=DEFAULT_NEGATIVE_PROMPT),
    )


GENERATOR1 = Dialect(
    name=Generator1Body.dialect,
    parse=parse_generator1,
    # `fps` at the top is its own; with a `video` the body is Predict2.5's, with a width Predict1's.
    recognises=lambda body: "fps" in body and body.keys().isdisjoint({"video_params", "video", "width", "height"}),
    answer=told_answer,
    body=Generator1Body,
    wire_names={**BY_INPUT, "frames": "num_output_frames", "size": "resolution"},
)


EXAMPLES: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "examples.json").read_text(encoding="utf-8"))
"""By mode, in the shape of an OpenAPI `examples` object."""
