"""Reading a body, JSON or a form: never more than the limit, strictly typed, with errors that say what to do."""

from __future__ import annotations

import difflib
import functools
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from types import UnionType
from typing import Any, ClassVar, TypeVar, Union, get_args, get_origin

import pydantic_core
from annotated_types import Ge, Gt, Le, Lt
from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from cosmorama.api.errors import BodyError
from cosmorama.errors import Problem

TEXT_ALLOWANCE_BYTES = 1 << 20

"""Room in a body for everything that is not the image or the video."""

_SHORTEST_PART = 4

"""Characters that a name must have to be looked for inside others."""

_LONGEST_NAME = 64

"""Characters of an unknown field's name that are looked at; likeness costs time that grows with their square."""

_MOST_MESSAGES = 16

_WRONG_TYPE = ("int_type", "int_from_float", "int_parsing", "float_type", "float_parsing", "string_type", "bool_type")

_NO_OBJECT = ("model_type", "model_attributes_type", "dict_type")

_OUT_OF_RANGE = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")


class WireModel(BaseModel):
    """Base of wire formats: unknown fields, "35" for 35, 35.0 for 35, true for 1 and NaN are all refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True, hide_input_in_errors=True)


class DialectBody(WireModel):
    """Base of the whole body of a wire format, so that an error can say which other format has an unknown field."""

    dialect: ClassVar[str]

    model: str | None = Field(None, description="Of several models, the one to use; null: the default one.")


class WireError(BodyError):
    """A body that is not what its wire format says (HTTP 422).

    Attributes:
        field: The first field that is wrong, as a path such as `video_params.width`.
    """

    def __init__(self, field: str, messages: Iterable[str]) -> None:
        self.field = field
        super().__init__("; ".join(dict.fromkeys(messages)))


Wire = TypeVar("Wire", bound=WireModel)


def body_limit(max_input_bytes: int) -> int:
    """Largest body in bytes that can hold an image or video of `max_input_bytes` as base64."""
    return (max_input_bytes + 2) // 3 * 4 + TEXT_ALLOWANCE_BYTES


async def read_object(request: Request, limit: int) -> dict[str, Any]:
    """The body of `request`, a JSON object.

    Raises:
        BodyError: with status 413 as soon as more than `limit` bytes are announced or received, 415 for a body that
            is not called JSON, 422 for one that is no JSON object.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # Insisting on it also keeps web pages of other origins out: browsers ask first before they send this type.
    if media_type != "application/json":
        raise BodyError(f"the body's Content-Type must be application/json, not {media_type or 'empty'}", status=415)
    return parse_object(await read_bytes(request, limit))


async def read_json(request: Request, model: type[Wire], limit: int) -> Wire:
    """The body of `request` as a wire model; raises as `read_object` and `validate`."""
    return validate(await read_object(request, limit), model)


def parse_object(body: bytes | bytearray) -> dict[str, Any]:
    """A JSON object from its text.

    Raises:
        BodyError: it is not valid JSON, or not an object.
    """
    try:
        value = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise BodyError(f"the body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise BodyError("the body must be a JSON object")
    return value


def validate(body: Mapping[str, Any], model: type[Wire]) -> Wire:
    """A JSON object as a wire model.

    Raises:
        WireError: naming every field that is wrong, its value and what is accepted.
    """
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise wire_error(error, model) from None


def wire_error(error: ValidationError, model: type[BaseModel]) -> WireError:
    """What pydantic says is wrong with a body, in this server's words."""
    found = error.errors(include_url=False)
    messages = [_message(details, model) for details in found[:_MOST_MESSAGES]]
    if len(found) > _MOST_MESSAGES:
        messages.append(f"and {len(found) - _MOST_MESSAGES} more")
    return WireError(_path(found[0]), messages)


async def read_bytes(request: Request, limit: int) -> bytearray:
    """The body of `request`.

    Raises:
        BodyError: with status 413 as soon as more than `limit` bytes are announced or received.
    """
    announced = request.headers.get("content-length", "")
    body = bytearray()
    if not (announced.isdecimal() and int(announced) > limit):
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                break
        else:
            return body
    raise too_large(limit)


def too_large(limit: int) -> BodyError:
    """The answer to a body of more than `limit` bytes."""
    return BodyError(f"the body is larger than this server accepts ({limit:,} bytes)", status=413)


def nearest(name: str, paths: Mapping[str, str], *, cutoff: float = 0.6) -> str | None:
    """The path among `paths` (by field name) whose name is most like `name`, or has it as a part; None if none is."""
    name = name.lower()
    near = difflib.get_close_matches(name, paths, n=1, cutoff=cutoff)
    if not near and len(name) >= _SHORTEST_PART:
        near = [known for known in paths if len(known) >= _SHORTEST_PART and (known in name or name in known)]
    return paths[min(near, key=len)] if near else None


@functools.cache
def field_paths(model: type[BaseModel], prefix: str = "") -> Mapping[str, str]:
    """Every field of a wire model at every level, by its own name: {"width": "video_params.width"}."""
    paths: dict[str, str] = {}
    for name, field in model.model_fields.items():
        paths[name] = prefix + name
        inner = _inner(field)
        if inner is not None:
            paths = {**field_paths(inner, f"{prefix}{name}."), **paths}
    return paths


def _message(details: ErrorDetails, model: type[BaseModel]) -> str:
    where = _path(details)
    kind = details["type"]
    if kind == "extra_forbidden":
        return _unknown_field(details["loc"], model)
    if not where:
        return "the body must be a JSON object"
    field = _field_at(details["loc"], model)
    if kind == "missing":
        return f"{where}: Field required" + (f"; {_accepted(field)}" if field else "")
    return str(Problem(where, details["input"], _expected(details, field)))


def _path(details: ErrorDetails) -> str:
    return ".".join(str(part) for part in details["loc"])


def _expected(details: ErrorDetails, field: FieldInfo | None) -> str:
    """What a field takes instead of what pydantic says is wrong with it."""
    kind, limits = details["type"], details.get("ctx", {})
    said = details["msg"].removeprefix("Input should be ")
    match kind:
        case "string_too_long":
            return f"at most {limits['max_length']} characters"
        case "string_too_short":
            return f"at least {_counted(limits['min_length'], 'character')}"
        case "too_long":
            return f"at most {_counted(limits['max_length'], 'entry', 'entries')}"
        case "too_short":
            return f"at least {_counted(limits['min_length'], 'entry', 'entries')}"
    if field is None:
        return said
    if kind in _OUT_OF_RANGE:
        return _accepted(field)
    if kind in _NO_OBJECT and (inner := _inner(field)) is not None:
        return f"an object with {', '.join(inner.model_fields)}"
    if kind in _WRONG_TYPE:
        # A number's range and a text's meaning help who has sent the wrong type too.
        limit = _limits(field) or (field.description or "").rstrip(".")
        return f"{said}{': ' if limit else ''}{limit}"
    return said


def _counted(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _unknown_field(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    *parents, name = (str(part)[:_LONGEST_NAME] for part in location)
    prefix = "".join(f"{parent}." for parent in parents)
    level = _model_at(location[:-1], model)
    known = level.model_fields if level else {}
    # A field of another level is a likely slip too: frames_count belongs into video_params.
    here = {**field_paths(model), **{known_name: prefix + known_name for known_name in known}}
    others = {body.dialect: field_paths(body) for body in DialectBody.__subclasses__() if body is not model}
    owners = [dialect for dialect, paths in others.items() if name in paths]
    if not issubclass(model, DialectBody):
        owners, others = [], {}
    # Where the very name is known elsewhere, only a good likeness is worth a word.
    near = nearest(name, here, cutoff=0.8 if owners else 0.6)
    hints = [f"did you mean '{near}'?"] if near else []
    if owners:
        hints.append(
            f"{name} belongs to the dialect {' or '.join(owners)}, and this body was read as {_read_as(model)}"
        )
    if not hints and not parents:
        found = {dialect: nearest(name, paths) for dialect, paths in others.items()}
        hints += [f"did you mean '{path}' of the dialect {dialect}?" for dialect, path in found.items() if path][:1]
    return f"unknown field '{prefix}{name}'; {'; '.join(hints) or 'known here: ' + ', '.join(sorted(known))}"


def _read_as(model: type[BaseModel]) -> str:
    return model.dialect if issubclass(model, DialectBody) else model.__name__


def _accepted(field: FieldInfo) -> str:
    """The range, the choices or the meaning of a field in words."""
    if choices := _choices(field):
        return f"one of {', '.join(choices)}"
    types = set(_types(field.annotation))
    kind = "an integer" if int in types else "a number" if float in types else "a text" if str in types else "a value"
    if limits := _limits(field):
        return f"{kind} {limits}"
    return f"{kind}: {field.description.rstrip('.')}" if field.description else kind


def _limits(field: FieldInfo) -> str:
    """The range of a number in words, empty where there is none."""
    low = next((str(m.ge if isinstance(m, Ge) else m.gt) for m in field.metadata if isinstance(m, (Ge, Gt))), None)
    high = next((str(m.le if isinstance(m, Le) else m.lt) for m in field.metadata if isinstance(m, (Le, Lt))), None)
    above = any(isinstance(m, Gt) for m in field.metadata)
    if low is not None and high is not None:
        return f"from {low} to {high}"
    if low is not None:
        return f"above {low}" if above else f"of at least {low}"
    return "" if high is None else f"of at most {high}"


def _choices(field: FieldInfo) -> list[str]:
    return [str(value) for value in _types(field.annotation) if isinstance(value, str)]


def _types(annotation: Any) -> Iterator[Any]:
    """The types and literal values that an annotation is made of."""
    arguments = get_args(annotation)
    if get_origin(annotation) in (tuple, list, dict) or not arguments:
        yield annotation
        return
    for argument in arguments:
        yield from _types(argument)


def _inner(field: FieldInfo | None) -> type[BaseModel] | None:
    if field is None:
        return None
    annotation = field.annotation
    options = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return next((option for option in options if isinstance(option, type) and issubclass(option, BaseModel)), None)


def _model_at(location: Iterable[int | str], model: type[BaseModel]) -> type[BaseModel] | None:
    found: type[BaseModel] | None = model
    for part in location:
        found = _inner(found.model_fields.get(str(part))) if found else None
    return found


def _field_at(location: tuple[int | str, ...], model: type[BaseModel]) -> FieldInfo | None:
    *parents, name = location
    level = _model_at(parents, model)
    return level.model_fields.get(str(name)) if level else None


MAX_FIELDS = 64

MAX_FIELD_BYTES = 1 << 20


async def read_form(request: Request, upload: str, limit: int) -> tuple[dict[str, str], bytes | None]:
    """The text fields of a multipart form, the last of each name, and the contents of the file called `upload`.

    A field called `upload` that is no file stays among the texts.

    Raises:
        BodyError: status 413 for more than `limit` bytes, 422 for a damaged form, too many fields or another file.
    """
    body = bytes(await read_bytes(request, limit))

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body
        yield b""  # what tells the parser that the form ends here

    try:
        parser = MultiPartParser(
            request.headers, stream(), max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES
        )
        # Files above this size would go to the disk; the body is in memory already.
        parser.spool_max_size = limit
        form = await parser.parse()
    except MultiPartException as error:
        raise BodyError(f"the form cannot be read: {error.message}") from None
    except (KeyError, ValueError, AssertionError) as error:  # no boundary, header bytes that are no text
        raise BodyError(f"the form cannot be read: {error or type(error).__name__}") from None
    texts: dict[str, str] = {}
    data: bytes | None = None
    try:
        for name, value in form.multi_items():
            if not isinstance(value, UploadFile):
                texts[name] = value
            elif name == upload:
                data = await value.read()
            else:
                raise BodyError(f"unknown file '{name}'; the one file of this form is called '{upload}'")
    finally:
        await form.close()
    return texts, data
