"""The OpenAI Videos dialect: what `POST /v1/videos` takes, and a job as its `video` object.

Beyond OpenAI's own fields (`prompt`, `input_reference`, `model`, `seconds`, `size`) it takes the sampling knobs, which
the official client sends with `extra_body`. Any size is made: at the model's nearest one, then resampled.
"""

from __future__ import annotations

import binascii
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator

from cosmorama import usual
from cosmorama.api.dialects.base import BY_INPUT, Dialect, action_answer, file_answer
from cosmorama.api.dialects.cosmos3 import (
    ACTION_MODES,
    DRIVEN,
    ActionParams,
    action_of,
    action_problems,
    drives,
    names_of_action,
    size_of_action,
)
from cosmorama.api.dialects.wire import (
    DialectBody,
    UnreadableJSONError,
    WireError,
    WireModel,
    parse_object,
    validate,
    wire_error,
)
from cosmorama.api.errors import BodyError
from cosmorama.errors import InvalidRequestError, Problem
from cosmorama.fitting import FPS
from cosmorama.jobs.model import Job, State
from cosmorama.media.sniff import sniff
from cosmorama.progress import Progress
from cosmorama.request import (
    MAX_SEED,
    PROMPT_MAX_CHARACTERS,
    Adapter,
    GenerationRequest,
    MediaSource,
    Output,
    Size,
    Solver,
    Usual,
)
from cosmorama.settings import Settings

NAME = "openai"
DEFAULT_SECONDS = 4.0
DEFAULT_SIZE = "720x1280"
REMIXED_FROM = "remixed_from_video_id"
"""The label of a job that is a remix."""
WIRE_NAMES = {
    **BY_INPUT,
    "field=image2world": "input_reference",
    "field=video2world": "input_reference",
    "image": "input_reference",
    "video": "input_reference",
    "adapters": "lora",
}
QUALITIES = {"auto": None, "standard": None, "low": 3, "medium": 5, "high": 8, "hd": 8}
"""OpenAI's words for it, to this server's numbers."""
_CARRIERS = ("extra_params", "extra_body")
_OBJECTS = (*_CARRIERS, "lora", "video_params", "input_reference", "image_reference")
UNUSED = (
    "user",
    "guidance_scale_2",
    "true_cfg_scale",
    "boundary_ratio",
    "generate_sound",
    "sound_duration",
    "generator_device",
    "enable_teacache",
    "enable_frame_interpolation",
    "frame_interpolation_exp",
    "frame_interpolation_scale",
    "frame_interpolation_model_path",
    "enable_upscaling",
    "upscaling_model_path",
    "upscaling_scale",
    "output_quality",
    "output_compression",
    "output_path",
    "save_output",
    "diffusers_kwargs",
    "perf_dump_path",
    "guardrails",
    "max_sequence_length",
)
"""What clients of other servers send and nothing here follows from."""
_AS_USUAL = (None, False, "false", "auto", "default", "standard")
"""Values of theirs that ask for nothing."""
_MOST_WARNINGS = 16
_CLIP_SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".ts", ".mpg", ".mpeg")
_STATUS: dict[State, str] = {
    "queued": "queued",
    "running": "in_progress",
    "succeeded": "completed",
    "failed": "failed",
    "cancelled": "failed",
}
_DENOISING = (2, 90)
_DECODING = (90, 99)
"""From and to which per cent of the whole the two long stages go."""


class Reference(WireModel):
    """A picture or clip that is not uploaded: one of the three. A text instead of this object stands for its `url`."""

    url: str | None = Field(None, description="URL, data URL or base64 of either. Not known to OpenAI.")
    image_url: str | None = Field(None, description="URL, data URL or base64 of a picture.")
    video_url: str | None = Field(None, description="URL, data URL or base64 of a clip. Not known to OpenAI.")
    file_id: str | None = Field(None, description="Not supported: null. There is no file storage here.")


class NestedVideoParams(WireModel):
    """Size and timing, as some servers have them in an object of their own."""

    width: int | None = None
    height: int | None = None
    num_frames: int | None = None
    fps: float | None = None


class VideoAction(ActionParams):
    """What clients of vLLM-Omni send among their extra fields for a robot's actions."""

    action_mode: Literal["forward_dynamics", "policy", "inverse_dynamics"]


class VideoBody(DialectBody):
    """What a client of OpenAI's Videos API sends, and what clients of SGLang and vLLM-Omni send besides."""

    dialect: ClassVar[str] = NAME
    aliases: ClassVar[Mapping[str, str]] = {
        "num_frames": "frames",
        "num_inference_steps": "steps",
        "num_outputs_per_prompt": "n",
        "image_reference": "input_reference",
        "reference_url": "input_reference",
    }

    prompt: str = Field(min_length=1, max_length=PROMPT_MAX_CHARACTERS)
    seconds: str | None = Field(None, description="Length of the clip; a number is taken too.")
    size: str | None = Field(None, description="Width x height in pixels, both even.")
    width: int | None = Field(None, ge=1, description="With the height, instead of size.")
    height: int | None = Field(None, ge=1, description="With the width, instead of size.")
    input_reference: Reference | None = Field(None, description="A picture to start from, or a clip to continue.")
    negative_prompt: str | None = Field(None, max_length=PROMPT_MAX_CHARACTERS)
    prompt_upsampling: bool | None = None
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    steps: int | None = None
    guidance_scale: float | None = None
    fps: float | None = Field(None, ge=FPS.low, le=FPS.high)
    frames: int | None = Field(None, ge=1, description="Instead of seconds.")
    solver: Solver | None = None
    guidance_rescale: float = 0.0
    conditioning_frames: int | None = None
    flow_shift: float | None = None
    quality: int | None = Field(None, ge=1, le=9)
    n: int = Field(1, ge=1, le=1, description="One video is made per request.")
    lora: dict[str, Any] | None = Field(None, description="Name and scale of an adapter that the server has loaded.")
    video_params: NestedVideoParams | None = Field(None, description="Width, height, num_frames and fps in one object.")
    extra_params: dict[str, Any] | None = Field(None, description="More fields; what is not known is not used.")
    extra_body: dict[str, Any] | None = Field(None, description="More fields; what is not known is not used.")

    @field_validator("seconds", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value

    @field_validator("input_reference", mode="before")
    @classmethod
    def _as_object(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value

    @field_validator("quality", mode="before")
    @classmethod
    def _as_number(cls, value: Any) -> Any:
        return QUALITIES.get(value, value) if isinstance(value, str) else value

    @field_validator("lora", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class RemixBody(WireModel):
    """What a client sends to make a video again with another prompt."""

    prompt: str = Field(min_length=1, max_length=PROMPT_MAX_CHARACTERS)


class ExtendBody(VideoBody):
    """What a client sends to go on with a video: the video's own prompt and settings where it does not say."""

    prompt: str | None = Field(None, max_length=PROMPT_MAX_CHARACTERS)  # type: ignore[assignment]


def parse(body: dict[str, Any], settings: Settings) -> GenerationRequest:
    """A decoded JSON body to the request it describes."""
    given, warnings = _spread(body)
    return _to_request(validate(given, VideoBody), None, settings, warnings, _action(body))


def parse_form(fields: Mapping[str, str], upload: bytes | None, settings: Settings) -> GenerationRequest:
    """The fields of a form, all of them texts, and the upload `input_reference`, to the request they describe.

    Fields of an object come as `input_reference[image_url]`, or as the object's JSON. An empty text and "null" are
    fields that a form was not filled in with.

    Raises:
        WireError: naming every field that is wrong.
    """
    body: dict[str, Any] = {}
    for name, text in fields.items():
        outer, bracket, inner = name.partition("[")
        if not text or (text == "null" and name != "prompt"):
            continue
        if bracket:
            parts = body.setdefault(outer, {})
            if isinstance(parts, dict):
                parts[inner.removesuffix("]")] = text
        else:
            body[name] = _object(text, name) if outer in _OBJECTS else text
    given, warnings = _spread(body)
    if upload is not None and "input_reference" in given:
        raise InvalidRequestError(Problem("input_reference", "an upload and a value", "one of the two"))
    try:
        wire = VideoBody.model_validate(given, strict=False)
    except ValidationError as error:
        raise wire_error(error, VideoBody, given) from None
    return _to_request(wire, upload, settings, warnings, _action(body))


def _object(text: str, name: str = "the body") -> Any:
    """The object that a form's field holds as JSON, counted as a body is; a text that is none stays one."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        return parse_object(text.encode())
    except UnreadableJSONError:
        return text
    except BodyError as error:
        raise WireError(name, [f"{name}: {str(error).replace('the body', 'it')}"]) from None


def _spread(body: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The body with what stands in its objects of extra fields, and what of all that is not used here."""
    given = {name: value for name, value in body.items() if value is not None and name not in _CARRIERS}
    warnings = [f"{name} was not used" for name in UNUSED if given.pop(name, None) not in _AS_USUAL]
    for name in ("video_url", "image_url"):
        if isinstance(given.get(name), str) and "input_reference" not in given:
            given["input_reference"] = {name: given.pop(name)}
    for carrier in _CARRIERS:
        inner = body.get(carrier)
        if inner is None:
            continue
        if not isinstance(inner, Mapping):
            given[carrier] = inner  # which is told to be no object
            continue
        for name, value in inner.items():
            known = VideoBody.aliases.get(name, name) in VideoBody.model_fields and name not in _CARRIERS
            if value is None:
                continue
            if "action_mode" in inner and name in VideoAction.model_fields:
                continue
            if known:
                given.setdefault(name, value)
            else:
                warnings.append(f"{carrier}.{str(name)[:64]} was not used")
    params = given.pop("video_params", None) if isinstance(given.get("video_params"), Mapping) else None
    for name, value in (params or {}).items():
        if name in NestedVideoParams.model_fields:
            if value is not None:
                given.setdefault(name, value)
        else:
            warnings.append(f"video_params.{str(name)[:64]} was not used")
    return given, warnings[:_MOST_WARNINGS]


def _action(body: Mapping[str, Any]) -> tuple[str, VideoAction] | None:
    """The actions among the extra fields, and what the client calls the object that they are in."""
    for carrier in _CARRIERS:
        inner = body.get(carrier)
        if isinstance(inner, Mapping) and "action_mode" in inner:
            own = {name: inner[name] for name in VideoAction.model_fields if name in inner}
            return carrier, validate(own, VideoAction, f"{carrier}.")
    return None


def parse_extend(body: Mapping[str, Any], settings: Settings, *, form: bool) -> GenerationRequest:
    """What the body of an extension asks for; a prompt that it leaves out is None.

    Raises:
        WireError: naming every field that is wrong.
    """
    given, warnings = _spread({name: value for name, value in body.items() if not (form and value in ("", "null"))})
    try:
        wire = ExtendBody.model_validate(given, strict=not form)
    except ValidationError as error:
        raise wire_error(error, ExtendBody, given) from None
    request = _to_request(wire, None, settings, warnings)
    return request if wire.size or wire.width else replace(request, width=None, height=None)


def remix_of(fields: Mapping[str, str]) -> RemixBody:
    """The fields of a form as what a remix takes."""
    return validate(fields, RemixBody)


def video_object(job: Job) -> dict[str, Any]:
    """A job as OpenAI's `video` object; a cancelled job has failed."""
    made = job.request.result if job.result is None else job.result.outcome
    error = job.error
    return {
        "id": job.id,
        "object": "video",
        "model": job.model,
        "status": _STATUS[job.state],
        "progress": percent(job.progress, job.state),
        "created_at": int(job.created_at),
        "completed_at": int(job.finished_at) if job.state == "succeeded" and job.finished_at else None,
        "expires_at": None,
        "prompt": job.request.prompt,
        "seconds": f"{made.frames / made.fps:g}",
        "size": str(Size(made.width, made.height)),
        "seed": job.request.seed,
        "remixed_from_video_id": job.metadata.get(REMIXED_FROM),
        "warnings": list(job.warnings),
        "guardrails": [check.model_dump() for check in job.checks],
        "action": None if job.result is None else action_answer(job.request, job.result.outcome),
        "error": None if error is None else {"code": error.type, "message": error.text},
    }


def percent(progress: Progress, state: State) -> int:
    """How much of a job is done, 0 to 100: by denoising steps, then by decoded frames."""
    if state == "succeeded":
        return 100
    if progress.stage == "done":  # made, and being put in its place
        return _DECODING[1]
    low, high = {"denoise": _DENOISING, "decode": _DECODING}.get(progress.stage, (0, 0))
    if not progress.total:
        return {"encode": 1}.get(progress.stage, low)
    return low + math.floor((high - low) * progress.step / progress.total)


def _to_request(
    wire: VideoBody,
    upload: bytes | None,
    settings: Settings,
    warnings: Sequence[str],
    action: tuple[str, VideoAction] | None = None,
) -> GenerationRequest:
    size = size_of(wire)
    media = upload if upload is not None else _reference(wire.input_reference)
    is_clip = media is not None and _is_clip(media, wire.input_reference)
    request = GenerationRequest(
        prompt=wire.prompt,
        negative_prompt=wire.negative_prompt,
        prompt_upsampling=wire.prompt_upsampling,
        image=None if is_clip else media,
        video=media if is_clip else None,
        seed=wire.seed,
        steps=wire.steps,
        guidance_scale=wire.guidance_scale,
        width=size.width,
        height=size.height,
        frames=wire.frames,
        seconds=_seconds(wire.seconds),
        fps=wire.fps,
        solver=wire.solver,
        guidance_rescale=wire.guidance_rescale,
        conditioning_frames=wire.conditioning_frames,
        flow_shift=wire.flow_shift,
        output=Output(quality=settings.video_quality if wire.quality is None else wire.quality),
        adapters=adapters_of(wire.lora),
        model=wire.model,
        fit=True,
        usual=Usual(seconds=DEFAULT_SECONDS),
        warnings=tuple(warnings),
    )
    return request if action is None else _acted(request, wire, *action)


def _acted(request: GenerationRequest, wire: VideoBody, carrier: str, params: VideoAction) -> GenerationRequest:
    """The request with a robot's actions."""
    mode, steps = params.action_mode, params.action_chunk_size
    problems = [*action_problems(params, mode, carrier)]
    wanted = "a clip" if mode == "inverse_dynamics" else "a picture"
    given = "a picture" if request.image is not None else None if request.video is None else "a clip"
    if given != wanted and not (given is None and drives(params)):
        problems.append(Problem("input_reference", given, f"{wanted} for {mode}"))
    if wire.frames not in (None, steps + 1):
        problems.append(Problem("num_frames", wire.frames, f"action_chunk_size + 1 = {steps + 1}, or no value"))
    if problems:
        raise InvalidRequestError(*problems)
    if wire.size is None and wire.width is None:
        size = size_of_action(params)
        sides = (size.width, size.height) if size else (None, None)
        request = replace(request, width=sides[0], height=sides[1])
    return replace(
        request,
        frames=None,
        task=ACTION_MODES[mode],
        action=action_of(params),
        usual=DRIVEN if drives(params) else usual.ACTIONS,
    )


def size_of(wire: VideoBody) -> Size:
    """The size that a body asks for, by its sides or by its text."""
    if wire.width is not None and wire.height is not None:
        return Size(wire.width, wire.height)
    if wire.width is not None or wire.height is not None:
        missing = "width" if wire.width is None else "height"
        raise InvalidRequestError(Problem(missing, None, "width and height, or neither"))
    return size_from(wire.size or DEFAULT_SIZE)


def size_from(text: str) -> Size:
    """The size that a text such as 1280x720 stands for.

    Raises:
        InvalidRequestError: it stands for none.
    """
    found = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text)
    if found is None:
        raise InvalidRequestError(Problem("size", text, "width x height in pixels, such as 1280x720"))
    return Size(int(found[1]), int(found[2]))


def adapters_of(lora: Mapping[str, Any] | None) -> tuple[Adapter, ...]:
    """The adapter that a `lora` object names; some clients send a path, whose last part is then the name."""
    if lora is None:
        return ()
    name = lora.get("name") or lora.get("lora_name") or lora.get("path") or lora.get("lora_path")
    scale = lora.get("scale", lora.get("lora_scale", 1.0))
    if not isinstance(name, str) or isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise InvalidRequestError(
            Problem("lora", dict(lora), "an object with the name of a loaded adapter, and a scale")
        )
    return (Adapter(name.rstrip("/").rpartition("/")[2], float(scale)),)


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= 3600:
        raise InvalidRequestError(Problem("seconds", text, "a number above 0 and at most 3600"))
    return seconds


def _reference(reference: Reference | None) -> str | None:
    if reference is None:
        return None
    given = [url for url in (reference.url, reference.image_url, reference.video_url) if url]
    if reference.file_id is not None or len(given) != 1:
        accepted = "an image_url or a video_url (file_id is not supported: there is no file storage here)"
        raise InvalidRequestError(Problem("input_reference", sorted(reference.model_fields_set), accepted))
    return given[0]


def _is_clip(media: MediaSource, reference: Reference | None) -> bool:
    """Whether media is a clip: as its field says, else by its contents, else by the name in its URL."""
    if isinstance(media, bytes):
        return _holds_clip(media)
    if reference is not None and not reference.url:
        return reference.video_url is not None
    text = str(media).strip()
    if text[:5].lower() == "data:":
        return text[5:11].lower() == "video/"
    if text[:8].lower().startswith(("http://", "https://")):
        return _path_of(text).lower().endswith(_CLIP_SUFFIXES)
    head = "".join(text[:2048].split())
    try:
        return _holds_clip(binascii.a2b_base64(head[: len(head) // 4 * 4]))
    except ValueError:  # not base64; whoever fetches it says so
        return False


def _holds_clip(data: bytes) -> bool:
    kind = sniff(data)
    return kind is not None and kind.what == "clip"


def _path_of(url: str) -> str:
    try:
        return urlsplit(url).path
    except ValueError:
        return ""


def _names(body: Mapping[str, Any]) -> Mapping[str, str]:
    """What a client calls what is in its objects; `body` may be a form's fields."""
    names: dict[str, str] = {}
    for carrier in ("video_params", *_CARRIERS):
        inner = body.get(carrier)
        inner = _object(inner) if isinstance(inner, str) else inner
        if not isinstance(inner, Mapping):
            continue
        if "action_mode" in inner:
            names |= names_of_action(inner, carrier)
        own = {VideoBody.aliases.get(name, name): name for name in inner}
        inside = {field: name for field, name in own.items() if body.get(field) is None and body.get(name) is None}
        names |= {field: f"{carrier}.{name}" for field, name in inside.items()}
    return names


DIALECT = Dialect(
    name=NAME,
    parse=parse,
    recognises=lambda body: False,
    answer=file_answer,
    body=VideoBody,
    wire_names=WIRE_NAMES,
    more_names=_names,
)
