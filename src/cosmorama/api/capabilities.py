"""`GET /v1/capabilities`: what the loaded model takes, for programs that build a form or check a request themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from fastapi import APIRouter

from cosmorama.api.services import ServicesOf
from cosmorama.request import CODECS, MAX_SEED, Capabilities, Codec, GenerationRequest, Output, Range

router = APIRouter(tags=["about"])

_ANSWERS: dict[int | str, dict[str, Any]] = {
    404: {"description": "No such model; the message lists those that there are."},
    503: {"description": "Not loaded yet."},
}
KnobType = Literal["integer", "number", "boolean", "string"]
Choice = int | float | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """One value of a request: its type, what is accepted, and what is used where a request does not say.

    Attributes:
        type: Of one value. `guidance_interval` is a pair of them.
        minimum, maximum: The closed interval of accepted numbers; null where there is none.
        choices: The accepted values, where they can be listed.
        multiple_of: Values that are no `choices` have to be multiples of this.
        default: Null: the model or the other fields decide, as the documentation of the field says.
    """

    type: KnobType
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[Choice, ...] | None = None
    multiple_of: int | None = None
    default: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CapabilitiesAnswer(Capabilities):
    """What the model takes, and the same as one list of knobs under the field names of a request."""

    knobs: dict[str, Knob]


@router.get("/v1/capabilities", response_model=CapabilitiesAnswer, responses=_ANSWERS)
async def capabilities(services: ServicesOf, model: str | None = None) -> CapabilitiesAnswer:
    """Modes, sizes, frame counts and controls of a model, and every sampling knob with its range and default."""
    found = await services.supervisor.capabilities_of(services.supervisor.find(model))
    own = {field.name: getattr(found, field.name) for field in fields(Capabilities)}
    return CapabilitiesAnswer(**own, knobs=knobs(found))


def knobs(model: Capabilities) -> dict[str, Knob]:
    """The knobs of a model by the field names of `GenerationRequest`; one that it does not have is left out."""
    usual, own = GenerationRequest(), model.defaults
    found = {
        "negative_prompt": Knob(type="string", default=own.negative_prompt),
        "prompt_upsampling": Knob(type="boolean", default=usual.prompt_upsampling),
        "seed": Knob(type="integer", minimum=0, maximum=MAX_SEED, default=usual.seed),
        "guidance_scale": _number(model.guidance_scale, own.guidance_scale),
        "guidance_interval": _number(Range(0, 1), usual.guidance_interval),
        "guidance_rescale": _number(Range(0, 1), usual.guidance_rescale),
        "steps": Knob(type="integer", minimum=model.steps.low, maximum=model.steps.high, default=own.steps),
        "solver": _choice(model.solvers, model.default_solver),
        "width": _side(model, [size.width for size in model.sizes], own.width),
        "height": _side(model, [size.height for size in model.sizes], own.height),
        "frames": Knob(type="integer", minimum=1, maximum=model.most_frames, default=own.frames),
        "fps": _number(model.fps, own.fps),
        "conditioning_frames": Knob(type="integer", choices=model.conditioning_frames),
        "output.container": _choice(tuple(CODECS), Output().container),
        "output.codec": _choice(get_args(Codec), None),
        "output.quality": Knob(type="integer", minimum=1, maximum=9, default=Output().quality),
    }
    if model.reuse is not None:
        found["reuse"] = _number(model.reuse, usual.reuse)
    if model.vae_tiles:
        found["vae_tiling"] = Knob(type="integer", choices=(0, *model.vae_tiles), default=own.vae_tiling)
    if model.flow_shift is not None:
        found["flow_shift"] = _number(model.flow_shift, None)
    if model.controls:
        found["controls.kind"] = _choice(model.controls, None)
        found["controls.weight"] = _number(Range(0, 1), 1.0)
    if model.adapters:
        found["adapters.name"] = _choice(model.adapters, None)
    return found


def _number(accepted: Range, default: Any) -> Knob:
    return Knob(type="number", minimum=accepted.low, maximum=accepted.high, default=default)


def _choice(choices: Sequence[str], default: str | None) -> Knob:
    return Knob(type="string", choices=tuple(choices), default=default)


def _side(model: Capabilities, listed: Sequence[int], default: int) -> Knob:
    # A width goes with the heights it is listed with in `sizes`; alone it is a side that some size has.
    return Knob(type="integer", choices=tuple(dict.fromkeys(listed)), multiple_of=model.size_multiple, default=default)
