"""The Cosmos3 2.x dialect of `POST /v1/infer`: `model_mode` says what is made, everything else follows from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from fastapi import Request, Response
from pydantic import Field

from cosmorama.api.body import DialectBody, WireModel, validate
from cosmorama.api.dialects.answers import clip_answer
from cosmorama.api.dialects.base import Dialect
from cosmorama.api.dialects.controls import ControlParams, EdgeParams, VisParams, controls
from cosmorama.api.dialects.cosmos3_action import ActionParams, action_answer, action_of
from cosmorama.api.dialects.cosmos3_modes import ACTION_MODES, ModelMode, defaults_of, mode_problems
from cosmorama.api.dialects.resolutions import COSMOS3, size_of
from cosmorama.engine.outcome import Outcome
from cosmorama.errors import InvalidRequestError, Problem
from cosmorama.request import CONTROL_KINDS, DEFAULT_NEGATIVE_PROMPT, Action, Control, GenerationRequest, Output, Usual
from cosmorama.settings import Settings

PROMPT_MAX_CHARACTERS = 20_000
LATENT_FRAMES = 4
"""Frames of video in one latent frame, which is how `condition_frame_indexes_vision` counts."""
USUAL_CONDITION = (0, 1)
WIRE_NAMES = {
    "mode": "model_mode",
    "image": "input_reference",
    "video": "input_reference",
    "steps": "num_inference_steps",
    "frames": "num_frames",
    "size": "resolution",
    "conditioning_frames": "condition_frame_indexes_vision",
    "controls": "transfer",
    "action.domain": "action_params.domain_id",
    **{f"controls.{kind}.weight": f"transfer.{kind}.control_weight" for kind in CONTROL_KINDS},
}


class Transfer(WireModel):
    """What the result follows in structure; at least one control."""

    edge: EdgeParams | None = None
    depth: ControlParams | None = None
    seg: ControlParams | None = None
    vis: VisParams | None = None


class Cosmos3Body(DialectBody):
    """What a client of the Cosmos3 NIM sends. Where null is the default, the value depends on `model_mode`."""

    dialect: ClassVar[str] = "cosmos3"

    model_mode: ModelMode
    prompt: str | None = Field(None, max_length=PROMPT_MAX_CHARACTERS)
    negative_prompt: str | None = Field(None, max_length=PROMPT_MAX_CHARACTERS)
    input_reference: str | None = Field(None, description="URL, data URL or base64 of the picture or clip.")
    seed: int | None = Field(None, ge=0, description="null draws one.")
    guidance_scale: float | None = Field(None, ge=1, le=7)
    num_inference_steps: int | None = Field(None, ge=1, le=100)
    flow_shift: float | None = Field(None, gt=0)
    resolution: str | None = Field(None, description="Tier 256, 480 or 720, with an aspect ratio such as _16_9.")
    num_frames: int | None = Field(None, description="Any number from 25 to the tier's most; 1 for text2image.")
    fps: float | None = Field(None, ge=1, le=60)
    condition_frame_indexes_vision: list[int] | None = Field(None, description="Latent frames, from 0: [0, 1].")
    condition_video_keep: Literal["first", "last"] | None = None
    transfer: Transfer | None = None
    action_params: ActionParams | None = None


def parse(body: dict[str, Any], settings: Settings) -> GenerationRequest:
    """A decoded body to the request it describes."""
    wire = validate(body, Cosmos3Body)
    reference = (wire.input_reference or "").strip() or None
    usual = defaults_of(wire.model_mode, transfer=wire.transfer is not None)
    resolution = wire.resolution or usual.resolution
    problems = list(
        mode_problems(
            wire.model_mode,
            has_reference=reference is not None,
            has_prompt=bool((wire.prompt or "").strip()),
            frames=wire.num_frames,
            resolution=resolution,
        )
    )
    problems += _problems(wire, reference)
    if problems:
        raise InvalidRequestError(*problems)
    size = size_of(resolution, COSMOS3)
    action = _action(wire)
    takes_video = wire.model_mode in ("video2video", "inverse_dynamics")
    still = wire.model_mode == "text2image"
    return GenerationRequest(
        prompt=wire.prompt,
        negative_prompt=wire.negative_prompt,
        image=None if takes_video else reference,
        video=reference if takes_video else None,
        seed=wire.seed,
        guidance_scale=wire.guidance_scale,
        steps=wire.num_inference_steps,
        flow_shift=wire.flow_shift,
        width=size.width,
        height=size.height,
        frames=1 if still else wire.num_frames,
        fps=wire.fps,
        conditioning_frames=_conditioning_frames(wire.condition_frame_indexes_vision),
        keep=wire.condition_video_keep or "first",
        output=Output(container="jpeg" if still else "mp4", quality=settings.video_quality),
        task=ACTION_MODES.get(wire.model_mode),
        controls=_controls(wire),
        action=action,
        fit=True,
        model=wire.model,
        usual=Usual(
            guidance_scale=usual.guidance_scale,
            steps=usual.steps,
            flow_shift=usual.flow_shift,
            frames=usual.frames,
            fps=usual.fps,
            negative_prompt="" if still else DEFAULT_NEGATIVE_PROMPT,
        ),
    )


def recognises(body: Mapping[str, Any]) -> bool:
    """`model_mode`, or a field that only it has: then the answer is that `model_mode` is missing."""
    return "model_mode" in body or ("video_params" not in body and not body.keys().isdisjoint(_MARKS))


_MARKS = frozenset(
    {
        "input_reference",
        "num_inference_steps",
        "flow_shift",
        "num_frames",
        "condition_frame_indexes_vision",
        "condition_video_keep",
        "transfer",
        "action_params",
    }
)


def answer(request: Request, generation: GenerationRequest, outcome: Outcome) -> Response:
    """`{"b64_image", "seed"}` for stills; `{"b64_video", "action", "seed"}` for clips, `action` null without one."""
    if generation.output.container == "jpeg":
        return clip_answer(request, generation, outcome, {"seed": outcome.seed}, name="b64_image")
    fields = {"action": action_answer(generation, outcome), "seed": outcome.seed}
    return clip_answer(request, generation, outcome, fields, name="b64_video")


def _problems(wire: Cosmos3Body, reference: str | None) -> Iterator[Problem]:
    """Fields that belong to another mode, and what `transfer` and the conditions leave out."""
    mode = wire.model_mode
    if mode != "video2video":
        for name in ("condition_frame_indexes_vision", "condition_video_keep", "transfer"):
            if getattr(wire, name) is not None:
                yield Problem(name, f"given for {mode}", "no value unless model_mode is video2video")
    indexes = wire.condition_frame_indexes_vision
    if indexes is not None and (not indexes or indexes != list(range(len(indexes)))):
        yield Problem("condition_frame_indexes_vision", indexes, "latent frames without a gap from 0, such as [0, 1]")
    if wire.transfer is not None and mode == "video2video" and reference is None:
        given = [kind for kind in CONTROL_KINDS if getattr(wire.transfer, kind, None) is not None]
        missing = [kind for kind in given if getattr(wire.transfer, kind).control is None]
        if missing or not given:
            yield Problem("input_reference", None, "a clip, unless every control of transfer comes with its own")
    elif mode == "video2video" and reference is None:
        yield Problem("input_reference", None, "a clip to continue (base64, data URL or URL)")
    if wire.action_params is not None and mode not in ACTION_MODES:
        yield Problem("action_params", f"given for {mode}", f"no value unless model_mode is {', '.join(ACTION_MODES)}")
    if wire.action_params is None and mode in ACTION_MODES:
        yield Problem("action_params", None, f"an object with domain_name or domain_id for {mode}")


def _action(wire: Cosmos3Body) -> Action | None:
    if wire.action_params is None:
        return None
    action = action_of(wire.action_params, wire.model_mode)
    if wire.num_frames not in (None, action.steps + 1):
        raise InvalidRequestError(Problem("num_frames", wire.num_frames, f"{action.steps + 1}: one more than actions"))
    return action


def _controls(wire: Cosmos3Body) -> tuple[Control, ...]:
    if wire.transfer is None:
        return ()
    given = wire.transfer
    try:
        return controls({"edge": given.edge, "depth": given.depth, "seg": given.seg, "vis": given.vis})
    except InvalidRequestError as error:
        masks = {f"{kind}.mask": f"transfer.{kind}.mask" for kind in CONTROL_KINDS}
        raise error.renamed(WIRE_NAMES | masks) from None


def _conditioning_frames(indexes: list[int] | None) -> int | None:
    # The usual two latent frames are the most that the models take, however many frames that is for them.
    if indexes is None or tuple(indexes) == USUAL_CONDITION:
        return None
    return 1 + LATENT_FRAMES * (len(indexes) - 1)


DIALECT = Dialect(
    name=Cosmos3Body.dialect,
    parse=parse,
    recognises=recognises,
    answer=answer,
    body=Cosmos3Body,
    wire_names=WIRE_NAMES,
)
