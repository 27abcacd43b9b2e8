"""The Cosmos3 2.x format of `POST /v1/infer`: `model_mode` says what is made, everything else follows from it.

Fields, ranges, defaults and what a mode forbids are those of NVIDIA's published pages for the Cosmos3 NIM (generation,
transfer, action, API reference). `model` is this server's own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from fastapi import Request, Response
from pydantic import BeforeValidator, Field, field_validator

from cosmorama import usual
from cosmorama.api.dialects.base import Dialect, action_answer, clip_answer, fields_answer
from cosmorama.api.dialects.predict import COSMOS3_SIZES, MAX_FRAMES, MIN_FRAMES, size_of, text, tier_of
from cosmorama.api.dialects.transfer import scaled
from cosmorama.api.dialects.wire import AS_TEXT, DialectBody, Key, Numbers, WireModel, alike, validate
from cosmorama.engine.outcome import Outcome
from cosmorama.errors import InvalidRequestError, Problem
from cosmorama.request import (
    MAX_INDEXES,
    Action,
    ActionDomain,
    Control,
    ControlKind,
    GenerationRequest,
    Mode,
    Output,
    Preset,
    Size,
    Usual,
)
from cosmorama.settings import Settings

ModelMode = Literal[
    "text2image", "text2video", "image2video", "video2video", "forward_dynamics", "policy", "inverse_dynamics"
]
ACTION_MODES: dict[str, Mode] = {
    "forward_dynamics": "forward_dynamics",
    "policy": "policy",
    "inverse_dynamics": "inverse_dynamics",
}
DOMAINS = {
    domain.name: domain
    for domain in (
        ActionDomain(1, "av", 9),
        ActionDomain(6, "umi", 10),
        ActionDomain(7, "bridge_orig_lerobot", 10),
        ActionDomain(8, "droid_lerobot", 10),
        ActionDomain(100, "drive", 3),
    )
}
"""Those of the NIM, and Microcosm's: the camera's speed forward, its turn and its step to the left."""
DRIVEN = Usual(width=640, height=352)
MAX_ACTIONS = 396
"""A clip has one frame more than actions, and 397 are the most that Cosmos3 makes."""
ACTION_SIZES = {"256": Size(320, 192), "480": Size(832, 480), "704": Size(1280, 704), "720": Size(1280, 720)}
CONTROLS: dict[str, ControlKind] = {"edge": "edge", "blur": "vis", "depth": "depth", "seg": "seg", "wsm": "wsm"}
"""The wire's names of controls, to a request's."""
DERIVED = ("edge", "blur")
_REFERENCE = {
    "text2image": None,
    "text2video": None,
    "image2video": "a picture",
    "video2video": "a clip",
    "forward_dynamics": "a picture",
    "policy": "a picture",
    "inverse_dynamics": "a clip",
}
"""What `input_reference` holds."""
MAX_STATE_CHARACTERS = 100_000
Media = Annotated[
    str | None, BeforeValidator(lambda value: None if isinstance(value, str) and value.isspace() else value)
]
"""A text of nothing but space is absent, as it is to the vendor's server."""


class Cosmos3ControlParams(WireModel):
    """A control whose clip the client has."""

    video: Media = Field(None, description="URL, data URL or base64 of the control clip.")
    control_weight: float = Field(1.0, ge=0, description="Weights of more than 1 in sum are scaled to 1.")


class Cosmos3EdgeParams(Cosmos3ControlParams):
    """Edges: a clip of them, or how strong one must be to count in those of `input_reference`."""

    preset_edge_threshold: Literal["very_low", "low", "medium", "high", "very_high"] | None = None


class BlurParams(Cosmos3ControlParams):
    """A blurred picture: a clip of it, or how blurred that of `input_reference` is."""

    preset_blur_strength: Literal["none", "very_low", "low", "medium", "high", "very_high"] | None = None


class Transfer(WireModel):
    """What the result follows in structure, at least one control, and how it is made in chunks."""

    edge: Cosmos3EdgeParams | None = Field(None, description="An object, or true for edges of input_reference.")
    blur: BlurParams | None = Field(None, description="An object, or true for a blurred input_reference.")
    depth: Cosmos3ControlParams | None = None
    seg: Cosmos3ControlParams | None = None
    wsm: Cosmos3ControlParams | None = None
    control_guidance: float | None = Field(None, ge=0, le=10)
    num_video_frames_per_chunk: int | None = Field(None, ge=1)
    num_conditional_frames: int | None = Field(None, ge=0)
    num_first_chunk_conditional_frames: int | None = Field(None, ge=0)

    @field_validator("edge", "blur", mode="before")
    @classmethod
    def _derived(cls, value: Any) -> Any:
        return {} if value is True else None if value is False else value

    @property
    def given(self) -> dict[str, Cosmos3ControlParams]:
        """The controls by their names here."""
        return {name: params for name in CONTROLS if (params := getattr(self, name)) is not None}


class ActionParams(WireModel):
    """Whose actions, and for forward dynamics the actions themselves."""

    domain_name: Literal["av", "umi", "bridge_orig_lerobot", "droid_lerobot", "drive"] | None = None
    domain_id: int | None = Field(None, description="The domain by number: 1, 6, 7, 8 or 100. Not known to the NIM.")
    action_chunk_size: int = Field(ge=4, le=MAX_ACTIONS, description="A multiple of 4; frames are one more.")
    action: list[Numbers] | None = Field(
        None, max_length=MAX_ACTIONS, fail_fast=True, description="One row of numbers per step, for forward dynamics."
    )
    raw_action_dim: int | None = Field(None, description="Numbers per action; only the domain's own is accepted.")
    action_space: Literal["joint_pos", "midtrain"] = "joint_pos"
    image_size: Annotated[Literal["256", "480", "704", "720"] | None, AS_TEXT] = None
    action_fps: float | None = Field(None, ge=1, le=60)
    history_length: int | None = Field(None, ge=1)
    use_state: bool | None = None
    observation: dict[str, Any] | None = None


class Cosmos3Body(DialectBody):
    """What a client of the Cosmos3 NIM sends. Where null is the default, the value depends on `model_mode`."""

    dialect: ClassVar[str] = "cosmos3"

    model_mode: ModelMode
    prompt: str | None = text("What to show; required for text2image and text2video.")
    negative_prompt: str | None = text("What the picture should not be.")
    input_reference: Media = Field(None, description="URL, data URL or base64 of the picture or clip.")
    seed: int | None = Field(None, ge=0, description="null draws one.")
    guidance_scale: float | None = Field(None, ge=1, le=7)
    num_inference_steps: int | None = Field(None, ge=1, le=100)
    flow_shift: float | None = Field(None, gt=0)
    resolution: Key | None = Field(None, description="Tier 256, 480 or 720, with an aspect ratio such as _16_9.")
    num_frames: int | None = Field(None, description="Any number from 25 to the tier's most; 1 for text2image.")
    fps: float | None = Field(None, ge=1, le=60)
    condition_frame_indexes_vision: list[int] | None = Field(
        None, max_length=MAX_INDEXES, fail_fast=True, description="Latent frames of the result that are given: [0, 1]."
    )
    condition_video_keep: Literal["first", "last"] | None = None
    transfer: Transfer | None = None
    action_params: ActionParams | None = None


def _usual(wire: Cosmos3Body) -> Usual:
    if wire.model_mode == "text2image":
        return replace(usual.STILL, width=None, height=None)
    if wire.model_mode in ACTION_MODES:
        return DRIVEN if drives(wire.action_params) else usual.ACTIONS
    if wire.transfer is None:
        return usual.VIDEO
    return usual.of_transfer([CONTROLS[name] for name in wire.transfer.given])


def parse(body: dict[str, Any], settings: Settings) -> GenerationRequest:
    """A decoded body to the request it describes."""
    wire = validate(body, Cosmos3Body)
    still, mode = wire.model_mode == "text2image", wire.model_mode
    reference = wire.input_reference or None
    resolution = wire.resolution or ("720_1_1" if still else "720")
    problems = [*_mode_problems(wire, reference, resolution)]
    if wire.transfer is not None and mode == "video2video":
        problems += _transfer_problems(wire.transfer, wire, reference)
    if wire.action_params is not None and mode in ACTION_MODES:
        problems += action_problems(wire.action_params, mode)
    if problems:
        raise InvalidRequestError(*problems)
    action = None if wire.action_params is None else action_of(wire.action_params)
    size: Size | None = size_of(resolution, COSMOS3_SIZES)
    if wire.action_params is not None:
        size = size_of_action(wire.action_params)
    takes_video = _REFERENCE[mode] == "a clip"
    request = GenerationRequest(
        **alike(wire),
        image=None if takes_video else reference,
        video=reference if takes_video else None,
        steps=wire.num_inference_steps,
        width=None if size is None else size.width,
        height=None if size is None else size.height,
        frames=1 if still else wire.num_frames,
        conditioning_indexes=indexes_of(wire.condition_frame_indexes_vision),
        keep=wire.condition_video_keep or "first",
        output=Output(container="jpeg" if still else "mp4", quality=settings.video_quality),
        task=ACTION_MODES.get(mode),
        action=action,
        fit=True,
        usual=_usual(wire),
    )
    return request if wire.transfer is None else followed(request, wire.transfer)


def indexes_of(given: list[int] | None) -> tuple[int, ...] | None:
    """Numbers of latent frames in order, each once."""
    return None if given is None else tuple(sorted(set(given)))


def followed(request: GenerationRequest, transfer: Transfer) -> GenerationRequest:
    """The request with what `transfer` says."""
    return replace(
        request,
        task="transfer",
        controls=scaled(
            [
                Control(CONTROLS[name], params.control_weight, params.video or None, _preset(params))
                for name, params in transfer.given.items()
            ]
        ),
        control_guidance=transfer.control_guidance,
        chunk_frames=transfer.num_video_frames_per_chunk,
        conditioning_frames=transfer.num_conditional_frames,
        first_conditioning_frames=transfer.num_first_chunk_conditional_frames,
    )


def _mode_problems(wire: Cosmos3Body, reference: str | None, resolution: str) -> Iterator[Problem]:
    """What the mode does not take, or misses."""
    mode, wanted = wire.model_mode, _REFERENCE[wire.model_mode]
    if wanted is None and reference is not None:
        yield Problem("input_reference", f"given for {mode}", f"no value: {mode} starts from text alone")
    begins = wire.transfer is not None or drives(wire.action_params)
    if wanted is not None and reference is None and not begins:
        yield Problem("input_reference", None, f"{wanted} for {mode} (base64, data URL or URL)")
    if mode in ("text2image", "text2video") and not (wire.prompt or "").strip():
        yield Problem("prompt", wire.prompt, f"a text for {mode}")
    if mode in ACTION_MODES:
        yield from _not_for_actions(wire)
    elif resolution not in COSMOS3_SIZES:
        yield Problem("resolution", resolution, f"one of {', '.join(COSMOS3_SIZES)}")
    elif mode == "text2image":
        if wire.num_frames not in (None, 1):
            yield Problem("num_frames", wire.num_frames, "1 for text2image")
    elif wire.num_frames is not None and not MIN_FRAMES <= wire.num_frames <= MAX_FRAMES[tier_of(resolution)]:
        accepted = f"an integer from {MIN_FRAMES} to {MAX_FRAMES[tier_of(resolution)]} at resolution {resolution}"
        yield Problem("num_frames", wire.num_frames, accepted)
    for name in ("condition_frame_indexes_vision", "condition_video_keep"):
        if getattr(wire, name) is not None and (mode != "video2video" or wire.transfer is not None):
            yield Problem(name, f"given for {mode}", "no value unless model_mode is video2video, without transfer")
    indexes = wire.condition_frame_indexes_vision
    if indexes is not None and (not indexes or min(indexes) < 0):
        yield Problem("condition_frame_indexes_vision", indexes, "numbers of latent frames from 0 on, such as [0, 1]")
    if wire.transfer is not None and mode != "video2video":
        yield Problem("transfer", f"given for {mode}", "no value unless model_mode is video2video")
    if wire.action_params is not None and mode not in ACTION_MODES:
        yield Problem("action_params", f"given for {mode}", f"no value unless model_mode is {', '.join(ACTION_MODES)}")
    if wire.action_params is None and mode in ACTION_MODES:
        yield Problem("action_params", None, f"an object with domain_name and action_chunk_size for {mode}")


def _not_for_actions(wire: Cosmos3Body) -> Iterator[Problem]:
    if wire.resolution is not None:
        yield Problem("resolution", wire.resolution, "no value for actions: action_params.image_size says it")
    if wire.num_frames is not None:
        accepted = "no value for actions: it is action_chunk_size + 1"
        if wire.action_params is not None:
            accepted += f" = {wire.action_params.action_chunk_size + 1}"
        yield Problem("num_frames", wire.num_frames, accepted)


def _transfer_problems(transfer: Transfer, wire: Cosmos3Body, reference: str | None) -> Iterator[Problem]:
    if not transfer.given:
        yield Problem("transfer", {}, f"an object with at least one of {', '.join(CONTROLS)}")
    for name, params in transfer.given.items():
        has_video = bool(params.video)
        preset = "preset_edge_threshold" if name == "edge" else "preset_blur_strength"
        if has_video and getattr(params, preset, None) is not None:
            accepted = "no value beside video: a preset is for what is derived from input_reference"
            yield Problem(f"transfer.{name}.{preset}", getattr(params, preset), accepted)
        if not has_video and name not in DERIVED:
            yield Problem(f"transfer.{name}.video", params.video, f"a clip: {name} is not derived from input_reference")
        elif not has_video and reference is None:
            accepted = f"a clip to derive {name} from, unless transfer.{name}.video is given"
            yield Problem("input_reference", None, accepted)
    chunk, first = transfer.num_video_frames_per_chunk, transfer.num_first_chunk_conditional_frames or 0
    chunk = chunk or (usual.WSM_CHUNK if [*transfer.given] == ["wsm"] else usual.CHUNK)
    if (transfer.num_conditional_frames or 0) >= chunk:
        accepted = f"less than num_video_frames_per_chunk, {chunk}"
        yield Problem("transfer.num_conditional_frames", transfer.num_conditional_frames, accepted)
    most = min(chunk, wire.num_frames or chunk)
    if first > most:
        yield Problem("transfer.num_first_chunk_conditional_frames", first, f"at most {most}")
    if first and reference is None:
        accepted = "0 unless input_reference is given"
        yield Problem("transfer.num_first_chunk_conditional_frames", first, accepted)


def action_problems(params: ActionParams, mode: str, at: str = "action_params") -> Iterator[Problem]:
    """What is wrong with actions for a mode, in fields of the object that is called `at`."""
    named = ", ".join(f"{domain.name} ({domain.id})" for domain in DOMAINS.values())
    domain = _domain(params)
    if domain is None:
        name = "domain_name" if params.domain_id is None else "domain_id"
        yield Problem(f"{at}.{name}", getattr(params, name), f"one of {named}")
        return
    if params.domain_id not in (None, domain.id):
        yield Problem(f"{at}.domain_id", params.domain_id, f"{domain.id}, the number of {domain.name}")
    steps, rows = params.action_chunk_size, params.action
    if steps % 4:
        accepted = f"a multiple of 4 from 4 to {MAX_ACTIONS}"
        yield Problem(f"{at}.action_chunk_size", steps, accepted)
    if rows is None and mode == "forward_dynamics":
        yield Problem(f"{at}.action", None, "one row of numbers per step for forward_dynamics")
    if rows is not None and mode != "forward_dynamics":
        yield Problem(f"{at}.action", f"{len(rows)} rows", f"no value: {mode} answers with them")
    if rows is not None and len(rows) != steps:
        yield Problem(f"{at}.action", f"{len(rows)} rows", f"{steps} rows, the action_chunk_size")
    if rows is not None and any(len(row) != domain.width for row in rows):
        widths = ", ".join(str(width) for width in sorted({len(row) for row in rows}))
        accepted = f"rows of {domain.width} numbers for {domain.name}"
        yield Problem(f"{at}.action", f"rows of {widths} numbers", accepted)
    if params.raw_action_dim not in (None, domain.width):
        yield Problem(f"{at}.raw_action_dim", params.raw_action_dim, f"{domain.width} for {domain.name}, or no value")
    for name in ("history_length", "use_state", "observation"):
        if getattr(params, name) is not None and mode != "policy":
            yield Problem(f"{at}.{name}", getattr(params, name), "no value unless model_mode is policy")
    if params.observation is not None and len(_json(params.observation)) > MAX_STATE_CHARACTERS:
        accepted = f"at most {MAX_STATE_CHARACTERS} characters of JSON"
        yield Problem(f"{at}.observation", f"{len(_json(params.observation))} characters", accepted)


def _domain(params: ActionParams) -> ActionDomain | None:
    if params.domain_name is not None:
        return DOMAINS[params.domain_name]
    return next((domain for domain in DOMAINS.values() if domain.id == params.domain_id), None)


def size_of_action(params: ActionParams) -> Size | None:
    """The size that actions are seen at; None: the usual one."""
    return ACTION_SIZES[params.image_size] if params.image_size else None


def drives(params: ActionParams | None) -> bool:
    """Whether these are Microcosm's, whose drives may also begin with what a prompt shows."""
    domain = None if params is None else _domain(params)
    return domain is not None and domain.name == "drive"


def action_of(params: ActionParams) -> Action:
    """Actions as a request has them; their domain is known."""
    domain = _domain(params)
    assert domain is not None
    state = {"history_length": params.history_length, "observation": params.observation}
    state = {name: value for name, value in state.items() if value is not None}
    if params.use_state:
        state["use_state"] = True
    return Action(
        domain=domain.id,
        values=None if params.action is None else tuple(tuple(row) for row in params.action),
        steps=params.action_chunk_size,
        fps=params.action_fps,
        space=params.action_space,
        state=_json(state) if state else None,
    )


def _preset(params: Cosmos3ControlParams) -> Preset:
    if isinstance(params, Cosmos3EdgeParams):
        return params.preset_edge_threshold or "medium"
    return (params.preset_blur_strength or "medium") if isinstance(params, BlurParams) else "medium"


def answer(request: Request, generation: GenerationRequest, outcome: Outcome) -> Response:
    """`{"b64_image", "seed"}` for stills; `{"b64_video", "action", "seed"}` for clips, `action` null without one.

    Of a model that answers with actions alone, `{"action", "seed"}`: the one frame that it decodes is no clip.
    """
    if generation.output.container == "jpeg":
        return clip_answer(request, generation, outcome, {"seed": outcome.seed}, name="b64_image")
    fields = {"action": action_answer(generation, outcome), "seed": outcome.seed}
    if fields["action"] is not None and outcome.frames == 1:
        return fields_answer(outcome, fields)
    return clip_answer(request, generation, outcome, fields, name="b64_video")


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def names_of_action(params: object, at: str = "action_params") -> dict[str, str]:
    """What a client calls what belongs to actions, in the object that is called `at`; domains by name or by number."""
    names = {"action.values": f"{at}.action", "action.state": f"{at}.observation"}
    if isinstance(params, Mapping):
        names |= {"size": f"{at}.image_size", **{f"size={size}": key for key, size in ACTION_SIZES.items()}}
    if isinstance(params, Mapping) and params.get("domain_name") is None:
        return names | {"action.domain": f"{at}.domain_id"}
    by_name = {f"action.domain={domain.id}": domain.name for domain in DOMAINS.values()}
    return names | {"action.domain": f"{at}.domain_name", **by_name}


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


def recognises(body: Mapping[str, Any]) -> bool:
    """`model_mode`, or a field that only it has: then the answer is that `model_mode` is missing."""
    if "model_mode" in body:
        return True
    # With a width or a height the body is Predict1's, written flat.
    return body.keys().isdisjoint({"video_params", "width", "height"}) and not body.keys().isdisjoint(_MARKS)


COSMOS3 = Dialect(
    name=Cosmos3Body.dialect,
    parse=parse,
    recognises=recognises,
    answer=answer,
    body=Cosmos3Body,
    more_names=lambda body: names_of_action(body.get("action_params")),
    wire_names={
        "mode": "model_mode",
        "mode=text2world": "text2video",
        "mode=image2world": "image2video",
        "mode=video2world": "video2video",
        "field=transfer": "transfer",
        "image": "input_reference",
        "video": "input_reference",
        "steps": "num_inference_steps",
        "frames": "num_frames",
        "size": "resolution",
        "conditioning_frames": "transfer.num_conditional_frames",
        "conditioning_indexes": "condition_frame_indexes_vision",
        "control_guidance": "transfer.control_guidance",
        "chunk_frames": "transfer.num_video_frames_per_chunk",
        "first_conditioning_frames": "transfer.num_first_chunk_conditional_frames",
        "controls": "transfer",
        "controls=vis": "blur",
        **{f"controls.{kind}.weight": f"transfer.{name}.control_weight" for name, kind in CONTROLS.items()},
        **{f"controls.{kind}.source": f"transfer.{name}.video" for name, kind in CONTROLS.items()},
    },
)
