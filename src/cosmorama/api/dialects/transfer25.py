"""The Transfer2.5 dialect of `POST /v1/infer`: a clip made anew so that it follows edges, depth or other controls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from fastapi import Request, Response
from pydantic import Field

from cosmorama.api.body import DialectBody, validate
from cosmorama.api.dialects.answers import clip_answer
from cosmorama.api.dialects.base import Dialect
from cosmorama.api.dialects.controls import ControlParams, EdgeParams, VisParams, controls
from cosmorama.api.dialects.resolutions import PREDICT25, size_of
from cosmorama.engine.outcome import Outcome
from cosmorama.errors import InvalidRequestError, Problem
from cosmorama.request import CONTROL_KINDS, DEFAULT_NEGATIVE_PROMPT, MAX_SEED, GenerationRequest, Output, Usual
from cosmorama.settings import Settings

TIERS = ("256", "480", "512", "720")
USUAL = Usual(frames=93, fps=16, steps=35, guidance_scale=3.0, negative_prompt=DEFAULT_NEGATIVE_PROMPT)
"""A clip is one chunk of the upstream model."""
WIRE_NAMES = {
    "steps": "num_steps",
    "guidance_scale": "guidance",
    "size": "resolution",
    "conditioning_frames": "num_conditional_frames",
    "controls": "edge, depth, seg and vis",
    **{f"controls.{kind}.weight": f"{kind}.control_weight" for kind in CONTROL_KINDS},
}


class Transfer25Body(DialectBody):
    """What a client of the Transfer2.5 NIM sends; at least one of `edge`, `depth`, `seg` and `vis`."""

    dialect: ClassVar[str] = "transfer25"

    prompt: str
    video: str = Field(description="URL, data URL or base64 of the clip to follow.")
    negative_prompt: str | None = None
    image_context: str | None = Field(None, description="Not supported: null.")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="null draws one.")
    guidance: int | None = Field(None, ge=0, le=7)
    num_steps: int | None = Field(None, ge=1, le=100)
    resolution: str = Field("720", description="256, 480, 512 or 720.")
    num_conditional_frames: int = Field(1, ge=0, le=2, description="Frames that a chunk takes from the one before it.")
    sigma_max: float | None = Field(None, description="Not supported: null, sampling begins at pure noise.")
    edge: EdgeParams | None = None
    depth: ControlParams | None = None
    seg: ControlParams | None = None
    vis: VisParams | None = None


def parse(body: dict[str, Any], settings: Settings) -> GenerationRequest:
    """A decoded body to the request it describes."""
    wire = validate(body, Transfer25Body)
    problems = []
    if wire.resolution not in TIERS:
        problems.append(Problem("resolution", wire.resolution, f"one of {', '.join(TIERS)}"))
    if wire.image_context is not None:
        problems.append(Problem("image_context", wire.image_context, "null: no model here takes a picture for style"))
    if wire.sigma_max is not None:
        problems.append(Problem("sigma_max", wire.sigma_max, "null: sampling begins at pure noise here"))
    if problems:
        raise InvalidRequestError(*problems)
    try:
        found = controls({"edge": wire.edge, "depth": wire.depth, "seg": wire.seg, "vis": wire.vis})
    except InvalidRequestError as error:
        raise error.renamed(WIRE_NAMES) from None
    size = size_of(wire.resolution, PREDICT25)
    return GenerationRequest(
        prompt=wire.prompt,
        negative_prompt=wire.negative_prompt,
        video=wire.video,
        seed=wire.seed,
        guidance_scale=None if wire.guidance is None else float(wire.guidance),
        steps=wire.num_steps,
        width=size.width,
        height=size.height,
        conditioning_frames=wire.num_conditional_frames if "num_conditional_frames" in body else None,
        output=Output(quality=settings.video_quality),
        task="transfer",
        controls=found,
        fit=True,
        model=wire.model,
        usual=USUAL,
    )


_MARKS = frozenset({*CONTROL_KINDS, "guidance", "num_steps", "num_conditional_frames", "sigma_max", "image_context"})


def recognises(body: Mapping[str, Any]) -> bool:
    """A control, or one of the fields that only it has."""
    return "video_params" not in body and not body.keys().isdisjoint(_MARKS)


def answer(request: Request, generation: GenerationRequest, outcome: Outcome) -> Response:
    """`{"b64_video", "seed"}`."""
    return clip_answer(request, generation, outcome, {"seed": outcome.seed}, name="b64_video")


DIALECT = Dialect(
    name=Transfer25Body.dialect,
    parse=parse,
    recognises=recognises,
    answer=answer,
    body=Transfer25Body,
    wire_names=WIRE_NAMES,
)
