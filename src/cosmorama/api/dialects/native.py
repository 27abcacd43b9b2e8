"""The server's own wire format: the fields of `GenerationRequest` by their names. `cosmorama.Client` speaks it.

A job is sent in it with `dialect` set to "cosmorama"; it is never guessed from a body's shape.
"""

from __future__ import annotations

from typing import Any, Literal

from fastapi import Request, Response
from pydantic import Field

from cosmorama.api.body import WireModel, validate
from cosmorama.api.clips import ClipFile
from cosmorama.api.dialects.base import Dialect
from cosmorama.engine.outcome import Outcome
from cosmorama.media.write import mime_type
from cosmorama.request import (
    Action,
    Adapter,
    Control,
    GenerationRequest,
    Mode,
    Output,
    Solver,
)
from cosmorama.settings import Settings

NAME = "cosmorama"
Preset = Literal["very_low", "low", "medium", "high", "very_high"]


class OutputBody(WireModel):
    """How the result is written."""

    container: Literal["mp4", "webm", "gif", "png", "jpeg"] = "mp4"
    codec: Literal["h264", "vp9", "av1"] | None = None
    quality: int | None = Field(None, description="1 (small) to 9 (best); null: the server's choice.")


class ControlBody(WireModel):
    """A clip that the result follows."""

    kind: Literal["edge", "depth", "seg", "vis"]
    weight: float = 1.0
    source: str | None = Field(None, description="URL, data URL or base64; null computes it from `video`.")
    preset: Preset = "medium"


class ActionBody(WireModel):
    """What a robot does, or is to find out."""

    domain: int
    values: list[list[float]] | None = None
    steps: int = 16


class AdapterBody(WireModel):
    """A LoRA adapter."""

    name: str
    scale: float = 1.0


class NativeBody(WireModel):
    """The fields of a generation request; every one may be left out."""

    prompt: str | None = None
    negative_prompt: str | None = None
    prompt_upsampling: bool | None = None
    image: str | None = Field(None, description="URL, data URL or base64.")
    video: str | None = Field(None, description="URL, data URL or base64.")
    seed: int | None = None
    guidance_scale: float | None = None
    steps: int | None = None
    width: int | None = None
    height: int | None = None
    frames: int | None = None
    seconds: float | None = None
    fps: float | None = None
    solver: Solver | None = None
    guidance_interval: list[float] = Field([0.0, 1.0], min_length=2, max_length=2)
    guidance_rescale: float = 0.0
    conditioning_frames: int | None = None
    output: OutputBody = OutputBody()
    task: Mode | None = None
    keep: Literal["first", "last"] = "last"
    flow_shift: float | None = None
    reuse: float | None = None
    vae_tiling: int | None = None
    controls: list[ControlBody] = Field(default_factory=list)
    action: ActionBody | None = None
    adapters: list[AdapterBody] = Field(default_factory=list)
    model: str | None = None
    fit: bool = False


_REBUILT = {"guidance_interval", "output", "controls", "action", "adapters"}


def parse(body: dict[str, Any], settings: Settings) -> GenerationRequest:
    """A decoded body to the request it describes.

    Raises:
        WireError: naming every field that is wrong.
    """
    return to_request(validate(body, NativeBody), quality=settings.video_quality)


def to_request(body: NativeBody, *, quality: int) -> GenerationRequest:
    """The request that a body describes; `quality` is used where it does not say."""
    start, end = body.guidance_interval
    output = body.output
    return GenerationRequest(
        **body.model_dump(exclude=_REBUILT),
        guidance_interval=(start, end),
        output=Output(output.container, output.codec, quality if output.quality is None else output.quality),
        controls=tuple(Control(c.kind, c.weight, c.source, c.preset) for c in body.controls),
        action=None if body.action is None else _action(body.action),
        adapters=tuple(Adapter(adapter.name, adapter.scale) for adapter in body.adapters),
    )


def _action(body: ActionBody) -> Action:
    values = None if body.values is None else tuple(tuple(row) for row in body.values)
    return Action(body.domain, values, body.steps)


def answer(request: Request, generation: GenerationRequest, outcome: Outcome) -> Response:
    """The file itself."""
    return ClipFile(outcome, mime_type(generation.output))


DIALECT = Dialect(name=NAME, parse=parse, recognises=lambda body: False, answer=answer, body=NativeBody)
