"""The Transfer2.5 format of `POST /v1/infer`: a clip made anew so that it follows edges, depth or other controls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from fastapi import Request, Response
from pydantic import Field, field_validator

from cosmorama.api.dialects.base import Dialect, clip_answer
from cosmorama.api.dialects.predict import PREDICT25_SIZES, size_of, text
from cosmorama.api.dialects.wire import DialectBody, Key, WireModel, alike, validate
from cosmorama.engine.outcome import Outcome
from cosmorama.errors import InvalidRequestError, Problem
from cosmorama.request import (
    DEFAULT_NEGATIVE_PROMPT,
    MAX_SEED,
    PROMPT_MAX_CHARACTERS,
    Control,
    ControlKind,
    GenerationRequest,
    Output,
    Usual,
)
from cosmorama.settings import Settings

TIERS = ("256", "480", "512", "720")
KINDS: tuple[ControlKind, ...] = ("edge", "depth", "seg", "vis")
Strength = Literal["very_low", "low", "medium", "high", "very_high"]


class ControlParams(WireModel):
    """One control: how strongly it acts, and its clip."""

    control_weight: float = Field(1.0, ge=0, description="Weights of more than 1 in sum are scaled to 1.")
    control: str | None = Field(None, description="URL, data URL or base64 of the control clip; null computes it.")
    mask: str | None = Field(None, description="Not supported: null.")


class EdgeParams(ControlParams):
    """Edges; `preset_edge_threshold` is how strong one must be to count."""

    preset_edge_threshold: Strength = "medium"


class VisParams(ControlParams):
    """A blurred picture; `preset_blur_strength` is how blurred."""

    preset_blur_strength: Strength = "medium"


class Transfer25Body(DialectBody):
    """What a client of the Transfer2.5 NIM sends; at least one of `edge`, `depth`, `seg` and `vis`."""

    dialect: ClassVar[str] = "transfer25"
    aliases: ClassVar[Mapping[str, str]] = {
        "steps": "num_steps",
        "num_inference_steps": "num_steps",
        "guidance_scale": "guidance",
        "blur": "vis",
    }

    prompt: str = Field(max_length=PROMPT_MAX_CHARACTERS)
    video: str = Field(description="URL, data URL or base64 of the clip to follow.")
    negative_prompt: str | None = text("What the picture should not be.")
    image_context: str | None = Field(None, description="Not supported: null.")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="null draws one.")
    guidance: int | None = Field(None, ge=0, le=7)
    num_steps: int | None = Field(None, ge=1, le=100)
    resolution: Key = Field("720", description="256, 480, 512 or 720.")
    num_conditional_frames: int | None = Field(
        None, ge=0, le=2, description="Frames that a chunk takes from the one before it; 1."
    )
    sigma_max: float | None = Field(None, description="Not used: sampling begins at pure noise.")
    edge: EdgeParams | None = None
    depth: ControlParams | None = None
    seg: ControlParams | None = None
    vis: VisParams | None = None

    @field_validator("guidance", mode="before")
    @classmethod
    def _whole(cls, value: Any) -> Any:
        return int(value) if isinstance(value, float) and value.is_integer() else value


def parse(body: dict[str, Any], settings: Settings) -> GenerationRequest:
    """A decoded body to the request it describes."""
    wire = validate(body, Transfer25Body)
    given = {kind: params for kind in KINDS if (params := getattr(wire, kind)) is not None}
    problems = [
        Problem(f"{kind}.mask", params.mask, "null: controls act on the whole picture here")
        for kind, params in given.items()
        if params.mask is not None
    ]
    if not given:
        problems.append(Problem(", ".join(KINDS), None, "at least one of them"))
    if wire.resolution not in TIERS:
        problems.append(Problem("resolution", wire.resolution, f"one of {', '.join(TIERS)}"))
    if wire.image_context is not None:
        problems.append(Problem("image_context", wire.image_context, "null: no model here takes a picture for style"))
    if problems:
        raise InvalidRequestError(*problems)
    size = size_of(wire.resolution, PREDICT25_SIZES)
    return GenerationRequest(
        **alike(wire),
        video=wire.video,
        guidance_scale=None if wire.guidance is None else float(wire.guidance),
        steps=wire.num_steps,
        width=size.width,
        height=size.height,
        conditioning_frames=wire.num_conditional_frames,
        output=Output(quality=settings.video_quality),
        task="transfer",
        controls=scaled(
            [Control(kind, each.control_weight, each.control, _preset(each)) for kind, each in given.items()]
        ),
        fit=True,
        # A clip is one chunk of the upstream model.
        usual=Usual(frames=93, steps=35, guidance_scale=3.0, negative_prompt=DEFAULT_NEGATIVE_PROMPT),
        warnings=() if wire.sigma_max is None else ("sigma_max was not used: sampling begins at pure noise here",),
    )


def scaled(controls: list[Control]) -> tuple[Control, ...]:
    """Controls whose weights add up to 1 at most."""
    total = max(1.0, sum(control.weight for control in controls))
    return tuple(Control(each.kind, each.weight / total, each.source, each.preset) for each in controls)


def _preset(params: ControlParams) -> Strength:
    if isinstance(params, EdgeParams):
        return params.preset_edge_threshold
    return params.preset_blur_strength if isinstance(params, VisParams) else "medium"


_MARKS = frozenset({*KINDS, "num_conditional_frames", "sigma_max", "image_context"})


def answer(request: Request, generation: GenerationRequest, outcome: Outcome) -> Response:
    """`{"b64_video", "seed"}`."""
    return clip_answer(request, generation, outcome, {"seed": outcome.seed}, name="b64_video")


TRANSFER25 = Dialect(
    name=Transfer25Body.dialect,
    parse=parse,
    # A control, or one of the fields that only it has.
    recognises=lambda body: (
        body.keys().isdisjoint({"video_params", "width", "height", "num_output_frames"})
        and not body.keys().isdisjoint(_MARKS | ({"guidance", "num_steps"} if "video" in body else set()))
    ),
    answer=answer,
    body=Transfer25Body,
    wire_names={
        "field=transfer": ", ".join(KINDS),
        "steps": "num_steps",
        "guidance_scale": "guidance",
        "size": "resolution",
        "conditioning_frames": "num_conditional_frames",
        "controls": ", ".join(KINDS),
        **{f"controls.{kind}.weight": f"{kind}.control_weight" for kind in KINDS},
        **{f"controls.{kind}.source": f"{kind}.control" for kind in KINDS},
    },
)
