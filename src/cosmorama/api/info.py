"""What this server is, what its model takes, and whether it takes work. Bodies hold what NIM clients look at."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from cosmorama import __version__
from cosmorama.api.services import Services, ServicesOf
from cosmorama.request import CODECS, MAX_SEED, Capabilities, Codec, GenerationRequest, Output, Range

API_VERSION = "1.0.0"
DEFAULT_MODEL = "microcosm"

router = APIRouter(tags=["about"])
metrics_router = APIRouter(tags=["about"])

_started_at = int(time.time())


@router.get("/v1/version")
async def version() -> dict[str, str]:
    """The release of the server and of its API."""
    return {"release": __version__, "api": API_VERSION}


@router.get("/v1/license")
async def license_() -> dict[str, Any]:
    """The licence of the server, with its text where the installation has it."""
    name, files = metadata.metadata("cosmorama")["License-Expression"], metadata.files("cosmorama") or ()
    # What a build left beside the sources lists what is not there.
    places = [Path(str(file.locate())) for file in files if file.name == "LICENSE"]
    text = next((place.read_text() for place in places if place.is_file()), None)
    return {"name": name, "type": "file", "content": text}


@router.get("/v1/metadata")
async def metadata_(services: ServicesOf) -> dict[str, Any]:
    """The default model, the names of all, and why none can be used now: null where one can."""
    name = services.supervisor.names[0]
    settings = services.settings
    configured = settings.models.get(name, settings.model)
    return {
        "version": __version__,
        "modelInfo": [{"shortName": each, "modelUrl": ""} for each in services.supervisor.names],
        "selectedModelProfileId": name,
        "checkpoint": "default" if configured == DEFAULT_MODEL else configured,
        "model_type": "generator",
        "model_variant": settings.model_variant or variant_of(name),
        "inference_endpoint": "/v1/infer",
        "unready": _unready(services),
        "licenseInfo": {"name": metadata.metadata("cosmorama")["License-Expression"], "url": "/v1/license"},
    }


def variant_of(name: str) -> str:
    """What the Cosmos3 NIM calls a model: `super-t2i-4step` for Cosmos3-Super-Text2Image-4Step, else its own name."""
    short = name.rpartition("/")[2].lower()
    if not short.startswith(("cosmos3-", "cosmos-3-")):
        return name
    words = short.split("-", 1)[1].removeprefix("3-").partition("@")[0]
    return words.replace("text2image", "t2i").replace("image2video", "i2v").replace("policy-", "")


@router.get("/v1/manifest")
async def manifest(services: ServicesOf) -> dict[str, str]:
    """The model profile as a YAML document (JSON is YAML)."""
    name = services.supervisor.names[0]
    profile = {"profile_id": name, "model": services.settings.model, "release": __version__}
    return {"manifest_file": json.dumps({"schema_version": "1.0", "profiles": [profile]}, indent=2)}


@router.get("/v1/models")
async def models(services: ServicesOf) -> dict[str, Any]:
    """The models being served, the default one first, in the list shape of the OpenAI API."""
    return {"object": "list", "data": [model_entry(name) for name in services.supervisor.names]}


def model_entry(name: str) -> dict[str, Any]:
    """A model in the shape of the OpenAI API."""
    return {"id": name, "object": "model", "created": _started_at, "owned_by": "cosmorama"}


@metrics_router.get("/metrics", response_class=Response, include_in_schema=False)
@metrics_router.get("/v1/metrics", response_class=Response)
async def metrics(request: Request, services: ServicesOf) -> Response:
    """Prometheus text."""
    text = services.metrics.text(getattr(request.state, "key_name", None))
    return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})


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
        description: What it does, in one sentence.
    """

    type: KnobType
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[Choice, ...] | None = None
    multiple_of: int | None = None
    default: Any = None
    description: str = ""


KNOB_DESCRIPTIONS: dict[str, str] = {
    "negative_prompt": "What the picture should not be; guidance pushes away from it.",
    "prompt_upsampling": "Rewrites the prompt into the language that the model was trained on.",
    "seed": "Where the noise comes from: the same seed and settings give the same clip, byte for byte.",
    "guidance_scale": "How hard the clip is pushed towards the prompt: low is loose, high literal and harsh.",
    "guidance_interval": "The part of the steps, from 0 to 1, in which guidance acts.",
    "guidance_rescale": "Calms the contrast and color that a high guidance scale exaggerates.",
    "steps": "Denoising steps: more take longer and settle finer detail.",
    "solver": "How one step follows from the last; some need fewer steps for the same picture.",
    "width": "Width of the frames in pixels.",
    "height": "Height of the frames in pixels.",
    "frames": "How many frames the clip has, exactly.",
    "fps": "Frames per second at which they are shown.",
    "conditioning_frames": "How many of the given clip's frames are continued: more keep its motion.",
    "output.container": "The file format.",
    "output.codec": "How the frames are compressed; some players know only H.264.",
    "output.quality": "Size of the file against fidelity of its frames, from 1 (small) to 9 (best).",
    "reuse": "Uses the network's last answer again while it would change by less than this: faster, no longer exact.",
    "vae_tiling": "Encodes and decodes frames in tiles of this many pixels a side, for less memory; 0 is exact.",
    "flow_shift": "Spends more of the steps on coarse structure (high) or on detail (low).",
    "controls.kind": "What the result follows of a clip: its edges, depth, segmentation or blurred colors.",
    "controls.weight": "How closely a control is followed, from 0 to 1.",
    "control_guidance": "How strongly the controls guide, beside the prompt.",
    "chunk_frames": "How many frames of a long clip are made at once.",
    "first_conditioning_frames": "With how many frames of the given clip the first chunk begins.",
    "adapters.name": "A LoRA adapter that changes the model's style or subject.",
}
"""What every knob does, in one sentence: for forms, and for the documentation."""


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
    if model.control_guidance is not None:
        found["control_guidance"] = _number(model.control_guidance, None)
        for name, least in (("chunk_frames", 1), ("first_conditioning_frames", 0)):
            found[name] = Knob(type="integer", minimum=least, maximum=model.frames.maximum)
    if model.adapters:
        found["adapters.name"] = _choice(model.adapters, None)
    return {name: replace(knob, description=KNOB_DESCRIPTIONS[name]) for name, knob in found.items()}


def _number(accepted: Range, default: Any) -> Knob:
    return Knob(type="number", minimum=accepted.low, maximum=accepted.high, default=default)


def _choice(choices: Sequence[str], default: str | None) -> Knob:
    return Knob(type="string", choices=tuple(choices), default=default)


def _side(model: Capabilities, listed: Sequence[int], default: int) -> Knob:
    # A width goes with the heights it is listed with in `sizes`; alone it is a side that some size has.
    return Knob(type="integer", choices=tuple(dict.fromkeys(listed)), multiple_of=model.size_multiple, default=default)


health_router = APIRouter(prefix="/v1/health", tags=["health"])


@health_router.head("/live", include_in_schema=False)
@health_router.get("/live", summary="Is the server process alive")
async def live() -> JSONResponse:
    """Answers as long as the HTTP side runs, whatever the model does."""
    return _body(200, "live", "Service is live", "Cosmorama liveness check")


@health_router.head("/ready", include_in_schema=False)
@health_router.get("/ready", summary="Is a model loaded", responses={503: {"description": "Not yet, or not any more."}})
async def ready(services: ServicesOf) -> JSONResponse:
    """503 with the reason until the model is loaded, while its worker is started anew, and before the server ends."""
    reason = _unready(services)
    if reason is None:
        return _body(200, "ready", "Service is ready", "Cosmorama readiness check")
    if services.settings.api_keys:  # here nobody needs one; what stands behind a colon names files, and is in the log
        reason = reason.partition(":")[0]
    return _body(503, "not ready", f"Service is not ready: {reason}", "Cosmorama readiness check")


def _unready(services: Services) -> str | None:
    if services.jobs.draining:
        return "the server is about to end"
    return services.jobs.away or (None if services.supervisor.ready else services.supervisor.reason)


def _body(status_code: int, status: str, message: str, description: str) -> JSONResponse:
    body = {"object": "health.response", "message": message, "description": description, "status": status}
    headers = {"Retry-After": "5"} if status_code == 503 else None
    return JSONResponse(body, status_code, headers=headers)
