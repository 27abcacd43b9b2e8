"""Reading a JSON body: never more than the limit, strictly typed, and with errors that say what to write instead."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from cosmorama.api.errors import BodyError
from cosmorama.errors import Problem

TEXT_ALLOWANCE_BYTES = 1 << 20
"""Room in a body for everything that is not the image or the video."""


class WireModel(BaseModel):
    """Base of wire formats: unknown fields, "35" for 35, 35.0 for 35, true for 1 and NaN are all refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True, hide_input_in_errors=True)


Wire = TypeVar("Wire", bound=WireModel)


def body_limit(max_input_bytes: int) -> int:
    """Largest body in bytes that can hold an image or video of `max_input_bytes` as base64."""
    return (max_input_bytes + 2) // 3 * 4 + TEXT_ALLOWANCE_BYTES


async def read_json(request: Request, model: type[Wire], limit: int) -> Wire:
    """The body of `request` as `model`.

    Raises:
        BodyError: with status 413 as soon as more than `limit` bytes are announced or received, 415 for a body that
            is not called JSON, 422 naming every field that is wrong.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # Insisting on it also keeps web pages of other origins out: browsers ask first before they send this type.
    if media_type != "application/json":
        raise BodyError(f"the body's Content-Type must be application/json, not {media_type or 'empty'}", status=415)
    body = await _read(request, limit)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        messages = [_message(details, model) for details in error.errors(include_url=False)]
        raise BodyError("; ".join(dict.fromkeys(messages))) from None


async def _read(request: Request, limit: int) -> bytearray:
    announced = request.headers.get("content-length", "")
    body = bytearray()
    if not (announced.isdecimal() and int(announced) > limit):
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                break
        else:
            return body
    raise BodyError(f"the body is larger than this server accepts ({limit:,} bytes)", status=413)


def _message(details: ErrorDetails, model: type[BaseModel]) -> str:
    where = ".".join(str(part) for part in details["loc"])
    match details["type"]:
        case "json_invalid":
            return f"the body is not valid JSON: {details['msg'].removeprefix('Invalid JSON: ')}"
        case "extra_forbidden":
            return _unknown_field(details["loc"], model)
        case "missing" | "too_long" | "too_short":
            return f"{where}: {details['msg']}"
    if not where:
        return "the body must be a JSON object"
    accepted = details["msg"].removeprefix("Input should be ")
    return str(Problem(where, details["input"], accepted))


def _unknown_field(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    *parents, name = (str(part) for part in location)
    known = _known_fields(model, parents)
    # A field of another level is a likely slip too: frames_count belongs into video_params.
    paths = {known_name: ".".join([*parents, known_name]) for known_name in known}
    paths = {**_all_paths(model), **paths}
    near = difflib.get_close_matches(name.lower(), paths, n=1)
    hint = f"did you mean '{paths[near[0]]}'?" if near else f"known here: {', '.join(sorted(known))}"
    return f"unknown field '{'.'.join([*parents, name])}'; {hint}"


def _known_fields(model: type[BaseModel], parents: list[str]) -> Mapping[str, Any]:
    for parent in parents:
        inner = model.model_fields[parent].annotation
        assert isinstance(inner, type)
        assert issubclass(inner, BaseModel)
        model = inner
    return model.model_fields


def _all_paths(model: type[BaseModel], prefix: str = "") -> dict[str, str]:
    paths = {}
    for name, field in model.model_fields.items():
        paths[name] = prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            paths |= _all_paths(field.annotation, f"{prefix}{name}.")
    return paths
