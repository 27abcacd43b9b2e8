"""The OpenAI Videos dialect: what `POST /v1/videos` takes, and a job as its `video` object.

Beyond OpenAI's own fields (`prompt`, `input_reference`, `model`, `seconds`, `size`) it takes the sampling knobs, which
the official client sends with `extra_body`. Any size is made: at the model's nearest one, then resampled.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from cosmorama import usual
from cosmorama.api.dialects.base import BY_INPUT, Dialect, file_answer
from cosmorama.api.dialects.cosmos3 import (
    ACTION_MODES,
    CONTROLS,
    DRIVEN,
    action_of,
    action_problems,
    drives,
    followed,
    indexes_of,
    names_of_action,
    size_of_action,
)
from cosmorama.api.dialects.openai_extras import (
    CONTROL,
    Special,
    VideoAction,
    VideoTransfer,
    chunk_of,
    controlled,
    names_of_transfer,
    special_of,
)
from cosmorama.api.dialects.wire import (
    DialectBody,
    Key,
    UnreadableJSONError,
    WireError,
    WireModel,
    alike,
    parse_object,
    validate,
)
from cosmorama.api.errors import BodyError
from cosmorama.errors import InvalidRequestError, Problem
from cosmorama.fitting import FPS
from cosmorama.media.sniff import may_be_clip
from cosmorama.request import (
    MAX_INDEXES,
    MAX_SEED,
    PROMPT_MAX_CHARACTERS,
    Adapter,
    GenerationRequest,
    Output,
    Size,
    Solver,
    Usual,
)
from cosmorama.settings import Settings

NAME = "openai"
DEFAULT_SECONDS = 4.0
DEFAULT_SIZE = "720x1280"
WIRE_NAMES = {
    **BY_INPUT,
    "field=image2world": "input_reference",
    "field=video2world": "input_reference",
    "image": "input_reference",
    "video": "input_reference",
    "adapters": "lora",
    "conditioning_indexes": "condition_frame_indexes_vision",
}
QUALITIES = {"auto": None, "standard": None, "low": 3, "medium": 5, "high": 8, "hd": 8}
"""OpenAI's words for it, to this server's numbers."""
_CARRIERS = ("extra_params", "extra_body", "nvext")
_OBJECTS = (*_CARRIERS, "lora", "video_params", "input_reference", "image_reference", "video_reference")
_NOT_USED = """
user guidance_scale_2 true_cfg_scale boundary_ratio generate_sound sound_duration generator_device enable_teacache
enable_frame_interpolation frame_interpolation_exp frame_interpolation_scale frame_interpolation_model_path
enable_upscaling upscaling_model_path upscaling_scale output_quality output_compression output_path save_output
diffusers_kwargs perf_dump_path guardrails use_guardrails max_sequence_length enable_audio audio_reference
progressive_mode progressive_levels progressive_delta rollout rollout_sde_type
output_type use_resolution_template use_duration_template use_system_prompt share_vision_temporal_positions
"""
UNUSED = tuple(_NOT_USED.split())
"""What clients of other servers send and nothing here follows from."""
UPLOADS = ("input_reference", "image_reference", "video_reference")
"""What the file of a form may be called."""
NO_CHARACTERS = "no value: no model here keeps a subject from clip to clip; send input_reference, or extend a video"
_NOT_HERE = {
    "characters": NO_CHARACTERS,
    "video_path": "no value: files of this server are not read; send video_url or an upload",
    "stream": "no value: a video is one answer; GET /v1/jobs/ID/events streams how far it is",
}
_BARE = ("video_url", "image_url")
"""What of a reference may stand without its object."""
_AS_USUAL = (None, False, "false", "auto", "default", "standard")
"""Values of theirs that ask for nothing."""
_MOST_WARNINGS = 16


class Reference(WireModel):
    """A picture or clip that is not uploaded: one of the first four. A text instead of the object stands for `url`."""

    url: str | None = Field(None, description="URL, data URL or base64 of either. Not known to OpenAI.")
    image_url: str | None = Field(None, description="URL, data URL or base64 of a picture.")
    video_url: str | None = Field(None, description="URL, data URL or base64 of a clip. Not known to OpenAI.")
    content: str | None = Field(None, description="What TensorRT-LLM calls `url`.")
    format: Literal["url", "base64"] | None = Field(None, description="Of `content`; its contents tell, too.")
    role: Literal["first_frame", "reference"] | None = Field(None, description="Clips start from a picture.")
    file_id: str | None = Field(None, description="Not supported: null. There is no file storage here.")


class Lora(WireModel):
    """An adapter; some clients send a path, whose last part is then the name, and what only their server reads."""

    model_config = ConfigDict(extra="ignore")
    aliases: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("lora_name", "adapter", "path", "lora_path", "local_path"), "name"),
        "lora_scale": "scale",
    }

    name: str = Field(description="Name of an adapter that the server has loaded.")
    scale: float = Field(1.0, ge=-100, le=100)


AnyLora = Annotated[Lora | None, BeforeValidator(lambda value: {"name": value} if isinstance(value, str) else value)]


_CHOSEN = BeforeValidator(lambda value: None if value in ("", "auto") else value)
_ONE = BeforeValidator(lambda value: value[0] if isinstance(value, list) and len(value) == 1 else value)
_AS_URL = BeforeValidator(lambda value: {"url": value} if isinstance(value, str) else value)
_AS_NUMBER = BeforeValidator(lambda value: QUALITIES.get(value, value) if isinstance(value, str) else value)


class VideoBody(DialectBody):
    """What a client of OpenAI's Videos API sends, and what clients of SGLang and vLLM-Omni send besides."""

    dialect: ClassVar[str] = NAME
    aliases: ClassVar[Mapping[str, str]] = {
        "num_frames": "frames",
        "num_inference_steps": "steps",
        "sample_solver": "solver",
        "frame_rate": "fps",
        "num_outputs_per_prompt": "n",
        "condition_video_latent_indexes": "condition_frame_indexes_vision",
        "image_reference": "input_reference",
        "video_reference": "input_reference",
        "reference_url": "input_reference",
        "output_format": "format",
    }

    prompt: str = Field(min_length=1, max_length=PROMPT_MAX_CHARACTERS)
    seconds: Key | None = Field(None, description="Length of the clip; a number is taken too.")
    size: Annotated[str | None, _CHOSEN] = Field(None, description="Width x height in pixels, both even.")
    width: int | None = Field(None, ge=1, description="With the height, instead of size.")
    height: int | None = Field(None, ge=1, description="With the width, instead of size.")
    input_reference: Annotated[Reference | None, _AS_URL, _ONE] = Field(
        None, description="A picture to start from, or a clip to continue."
    )
    negative_prompt: str | None = Field(None, max_length=PROMPT_MAX_CHARACTERS)
    prompt_upsampling: bool | None = None
    seed: Annotated[int | None, _ONE] = Field(None, ge=0, le=MAX_SEED)
    steps: int | None = None
    guidance_scale: float | None = None
    fps: float | None = Field(None, ge=FPS.low, le=FPS.high)
    frames: int | None = Field(None, ge=1, description="Instead of seconds.")
    solver: Solver | None = None
    guidance_rescale: float = 0.0
    conditioning_frames: int | None = None
    condition_frame_indexes_vision: list[int] | None = Field(
        None,
        max_length=MAX_INDEXES,
        fail_fast=True,
        description="Latent frames of the result that a clip gives: [0, 1].",
    )
    condition_video_keep: Literal["first", "last"] | None = None
    flow_shift: float | None = None
    quality: Annotated[int | None, _AS_NUMBER] = Field(None, ge=1, le=9)
    n: int = Field(1, ge=1, le=1, description="One video is made per request.")
    format: Literal["auto", "mp4", "safetensors"] = Field(
        "auto", description="With safetensors the frames come as numbers, with predicted actions beside them."
    )
    response_format: Literal["auto", "file"] = "auto"
    lora: AnyLora = None
    video_params: dict[str, Any] | None = Field(None, description="Width, height, num_frames and fps in one object.")
    extra_params: dict[str, Any] | None = Field(None, description="More fields; what is not known is not used.")
    extra_body: dict[str, Any] | None = Field(None, description="More fields; what is not known is not used.")
    nvext: dict[str, Any] | None = Field(None, description="The same from clients of NVIDIA Dynamo.")


class RemixBody(WireModel):
    """What a client sends to make a video again with another prompt."""

    prompt: str = Field(min_length=1, max_length=PROMPT_MAX_CHARACTERS)


class ExtendBody(VideoBody):
    """What a client sends to go on with a video: the video's own prompt and settings where it does not say."""

    prompt: str | None = Field(None, max_length=PROMPT_MAX_CHARACTERS)  # type: ignore[assignment]


def parse(body: dict[str, Any], settings: Settings) -> GenerationRequest:
    """A decoded JSON body to the request it describes."""
    wire, warnings, special = _read(controlled(body), VideoBody)
    return _to_request(wire, None, settings, warnings, special)


def _read(
    body: Mapping[str, Any], model: type[VideoBody], *, strict: bool = True
) -> tuple[VideoBody, list[str], Special | None]:
    given, warnings, special = _spread(body)
    return validate(given, model, names=_names(body), strict=strict), warnings, special


def parse_form(
    fields: Mapping[str, str],
    settings: Settings,
    upload: bytes | None = None,
    called: str = "input_reference",
    control: bytes | None = None,
) -> GenerationRequest:
    """The fields of a form, all of them texts, an upload, one of `UPLOADS`, and a control to the request they describe.

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
    if control is not None:
        if CONTROL in body:
            raise InvalidRequestError(Problem(CONTROL, "an upload and a value", "one of the two"))
        body[CONTROL] = base64.b64encode(control).decode()
    wire, warnings, special = _read(controlled(body), VideoBody, strict=False)
    if upload is not None and wire.input_reference is not None:
        raise InvalidRequestError(Problem(called, "an upload and a value", "one of the two"))
    return _to_request(wire, None if upload is None else (called, upload), settings, warnings, special)


def _typed(name: str, value: Any) -> Any:
    """A reference under a name that says what it is of."""
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    kind = f"{name.partition('_')[0]}_url"
    if isinstance(value, str):
        return {kind: value}
    if isinstance(value, Mapping) and "content" in value:
        return {kind if each == "content" else each: value[each] for each in value}
    return value


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


def _spread(body: Mapping[str, Any]) -> tuple[dict[str, Any], list[str], Special | None]:
    """The body with what stands in its objects of extra fields, what is not used of it, and its actions or controls."""
    given = {name: value for name, value in body.items() if value is not None and name not in _CARRIERS}
    for name, accepted in _NOT_HERE.items():
        if (value := given.pop(name, None)) not in (None, [], False, "false"):
            raise InvalidRequestError(Problem(name, value, accepted))
    warnings = [f"{name} was not used" for name in UNUSED if given.pop(name, None) not in _AS_USUAL]
    if given.get("response_format") in ("b64_json", "url"):  # as for pictures; a video is fetched, or is the answer
        warnings.append(f"response_format was not used: {given.pop('response_format')}")
    special = None
    for name in _BARE:
        if isinstance(given.get(name), str) and "input_reference" not in given:
            given["input_reference"] = {name: given.pop(name)}
    given |= {name: _typed(name, given[name]) for name in UPLOADS[1:] if name in given}
    for carrier in (*_CARRIERS, "video_params"):
        inner = body.get(carrier)
        if not isinstance(inner, Mapping):
            given |= {} if inner is None else {carrier: inner}  # which is told to be no object
            continue
        known: Collection[str] = ("width", "height", "num_frames", "fps")
        if carrier in _CARRIERS:
            known = {*VideoBody.model_fields, *VideoBody.aliases} - {*_OBJECTS}
            model, own = special_of(inner, carrier)
            names = names_of_transfer(inner, carrier) if model is VideoTransfer else {}
            if model is not None and special is None:
                fields = {name: inner[name] for name in own}
                if model is VideoAction and fields.get("action_chunk_size") is None:
                    fields["action_chunk_size"] = chunk_of(inner, given, carrier)
                special = carrier, validate(fields, model, f"{carrier}.", names)
            inner = {name: value for name, value in inner.items() if name not in own}
            if isinstance(inner.get("video"), str):
                given.setdefault("input_reference", {"video_url": inner.pop("video")})
        given.pop(carrier, None)
        for name, value in inner.items():
            if value is not None and name in known:
                given.setdefault(name, value)
            elif value is not None:
                warnings.append(f"{carrier}.{str(name)[:64]} was not used")
    return given, warnings[:_MOST_WARNINGS], special


def parse_extend(body: Mapping[str, Any], settings: Settings, *, form: bool) -> GenerationRequest:
    """What the body of an extension asks for; a prompt that it leaves out is None.

    Raises:
        WireError: naming every field that is wrong.
    """
    given = {name: value for name, value in body.items() if not (form and value in ("", "null"))}
    wire, warnings, _ = _read(given, ExtendBody, strict=not form)
    request = _to_request(wire, None, settings, warnings)
    return request if wire.size or wire.width else replace(request, width=None, height=None)


def _to_request(
    wire: VideoBody,
    upload: tuple[str, bytes] | None,
    settings: Settings,
    warnings: Sequence[str],
    special: Special | None = None,
) -> GenerationRequest:
    size = size_of(wire)
    called, media = upload or ("", _reference(wire.input_reference))
    named = wire.input_reference
    said = called == "video_reference" or bool(named and named.video_url)  # what it is, by its field
    open_to_both = called == "input_reference" or bool(named and (named.url or named.content))
    is_clip = media is not None and (may_be_clip(media) if open_to_both else said)
    request = GenerationRequest(
        **alike(wire),
        image=None if is_clip else media,
        video=media if is_clip else None,
        width=size.width,
        height=size.height,
        seconds=_seconds(wire.seconds),
        conditioning_indexes=indexes_of(wire.condition_frame_indexes_vision),
        keep=wire.condition_video_keep or "first",
        output=Output(
            "safetensors" if wire.format == "safetensors" else "mp4",
            quality=settings.video_quality if wire.quality is None else wire.quality,
        ),
        adapters=adapters_of(wire.lora),
        fit=True,
        usual=Usual(seconds=DEFAULT_SECONDS),
        warnings=tuple(warnings),
    )
    if special is None:
        return request
    at, params = special
    if isinstance(params, VideoAction):
        return _acted(request, wire, at, params)
    if problems := [*params.problems(has_clip=is_clip)]:
        raise InvalidRequestError(*problems)
    usually = usual.of_transfer([CONTROLS[name] for name in params.given])
    return followed(replace(request, usual=usually), params)


def _acted(request: GenerationRequest, wire: VideoBody, carrier: str, params: VideoAction) -> GenerationRequest:
    """The request with a robot's actions."""
    mode, steps = params.action_mode, params.action_chunk_size
    problems = [*action_problems(params, mode, carrier)]
    wanted = "a clip" if mode == "inverse_dynamics" else "a picture"
    given = "a picture" if request.image is not None else None if request.video is None else "a clip"
    if given != wanted and not (given is None and drives(params)):
        problems.append(Problem("input_reference", given, f"{wanted} for {mode}"))
    if wire.frames not in (None, steps + 1):
        problems.append(Problem("frames", wire.frames, f"action_chunk_size + 1 = {steps + 1}, or no value"))
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
        sides = Size(wire.width, wire.height)
        if wire.size is not None and size_from(wire.size) != sides:
            raise InvalidRequestError(Problem("size", wire.size, f"{sides}, as width and height say, or no value"))
        return sides
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


def adapters_of(lora: Lora | None) -> tuple[Adapter, ...]:
    """The adapter that a `lora` object names."""
    return () if lora is None else (Adapter(lora.name.rstrip("/").rpartition("/")[2], lora.scale),)


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
    given = [url for url in (reference.url, reference.image_url, reference.video_url, reference.content) if url]
    if reference.file_id is not None or len(given) != 1:
        accepted = "an image_url or a video_url (file_id is not supported: there is no file storage here)"
        raise InvalidRequestError(Problem("input_reference", sorted(reference.model_fields_set), accepted))
    return given[0]


def _names(body: Mapping[str, Any]) -> Mapping[str, str]:
    """What a client calls what is in its objects; `body` may be a form's fields."""
    beside = [name for name in _BARE if isinstance(body.get(name), str) and "input_reference" not in body]
    names = {own: name for name in beside[:1] for own, called in WIRE_NAMES.items() if called == "input_reference"}
    for name in UPLOADS[1:]:
        if isinstance(value := body.get(name), Mapping) and "content" in value:
            names[f"input_reference.{name.partition('_')[0]}_url"] = f"{name}.content"
    for carrier in ("video_params", *_CARRIERS):
        inner = body.get(carrier)
        inner = _object(inner) if isinstance(inner, str) else inner
        if carrier == "extra_params" and (kind := body.get("control_type")) in CONTROLS:
            inner = {kind: {"control": ""}, **(inner if isinstance(inner, Mapping) else {})}
        if not isinstance(inner, Mapping):
            continue
        model, own = special_of(inner, carrier)
        if model is VideoAction:
            names |= {**names_of_action(inner, carrier), "mode": f"{carrier}.action_mode"}
        elif model is VideoTransfer:
            names |= names_of_transfer(inner, carrier)
        rest = {VideoBody.aliases.get(name, name): name for name in inner if name not in own}  # "video" among them
        inside = {field: name for field, name in rest.items() if body.get(field) is None and body.get(name) is None}
        names |= {field: f"{carrier}.{name}" for field, name in inside.items()}
    if (kind := body.get("control_type")) in CONTROLS:
        names |= dict.fromkeys((f"{kind}.video", f"controls.{CONTROLS[kind]}.source"), CONTROL)
        names["field=transfer"] = "control_type"
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
