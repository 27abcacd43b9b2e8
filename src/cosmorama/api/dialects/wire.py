"""What wire formats are made of: strictly typed models, and errors in the client's own words.

Null means "not set" everywhere, as typed clients write it. An alias is another name that clients of other servers have
for a field; errors call a field what the client called it.
"""

from __future__ import annotations

import codecs
import difflib
import functools
from collections.abc import Iterable, Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, ClassVar, TypeVar, Union, get_args, get_origin

import pydantic_core
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from cosmorama import strictjson
from cosmorama.api.errors import BodyError
from cosmorama.errors import Problem

MAX_COMMAS = 100_000
MAX_VALUES = 20_000
"""Fields and list entries in one body. The largest of real requests are the actions of a robot, a few thousand."""
MAX_FIELDS_OF_OBJECT = 200
MAX_DEPTH = 16
MAX_ESCAPES, BYTES_PER_ESCAPE = 100_000, 16
"""Backslashes in a body: of texts, and of base64 whose slashes and line ends are escaped. Each costs many times what a
plain byte costs, and while a text is read nothing else runs in the process."""
_LONGEST_NAME = 64
"""Characters of an unknown field's name that are looked at; likeness costs time that grows with their square."""
_SHORTEST_PART = 4
"""Characters that a name must have to be looked for at the ends of others."""
_MOST_MESSAGES = 16


class WireModel(BaseModel):
    """Base of wire formats: unknown fields, "35" for 35, 35.0 for 35, true for 1 and NaN are all refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True, hide_input_in_errors=True)

    aliases: ClassVar[Mapping[str, str]] = {}
    """Other names of fields, to the fields; also to those of an object (`video_params.width`), of whole bodies."""

    @model_validator(mode="before")
    @classmethod
    def _given(cls, value: Any) -> Any:
        """What is set, under the fields' own names."""
        if not isinstance(value, Mapping):
            return value
        given = {name: each for name, each in value.items() if each is not None or cls._field_of(name) is None}
        named = {cls._own_name(name, given): each for name, each in given.items()}
        for name in [name for name in named if "." in cls.aliases.get(name, "")]:
            outer, _, inner = cls.aliases[name].partition(".")
            held = named.get(outer, {})
            if isinstance(held, Mapping) and held.get(inner) in (None, named[name]):
                named[outer] = {**held, inner: named.pop(name)}
        return named

    @classmethod
    def _field_of(cls, name: Any) -> str | None:
        own = cls.aliases.get(name, name)
        return own if own in cls.model_fields else None

    @classmethod
    def _own_name(cls, name: Any, given: Mapping[Any, Any]) -> Any:
        own = cls.aliases.get(name, name)
        kept = own if own in given else next(each for each in given if cls.aliases.get(each, each) == own)
        # Two names of one field, with two values, are a mistake to be told: the other one stays and is unknown.
        return name if "." in own or given[kept] != given[name] else own


class DialectBody(WireModel):
    """Base of the whole body of a wire format, so that an error can say which other format has an unknown field."""

    dialect: ClassVar[str]

    model: str | None = Field(None, max_length=512, description="Of several models, the one to use.")


class UnreadableJSONError(BodyError):
    """A text that is not JSON."""


class WireError(BodyError):
    """A body that is not what its wire format says (HTTP 422).

    Attributes:
        field: The first field that is wrong, as a path such as `video_params.width`.
    """

    def __init__(self, field: str, messages: Iterable[str]) -> None:
        self.field = field
        super().__init__("; ".join(dict.fromkeys(messages)))


Wire = TypeVar("Wire", bound=WireModel)
_Entry = TypeVar("_Entry")
Few = Annotated[list[_Entry], Field(max_length=64)]
"""A list that no client has reason to make long: each wrong entry of one is told, and costs."""
AS_TEXT = BeforeValidator(lambda value: str(value) if type(value) in (int, float) else value)
Key = Annotated[str, AS_TEXT]
"""A text that is often a number: 720 is "720"."""
Numbers = Annotated[list[float], Field(max_length=256, fail_fast=True)]
"""A row of numbers, read up to the first that is none."""


def parse_object(body: bytes | bytearray) -> dict[str, Any]:
    """A JSON object from its text.

    Raises:
        BodyError: it is not valid JSON, not an object, or has two values of one field.
    """
    # Counted before it is believed: an entry costs a thousand times its own size until it is refused.
    if body.count(b",") > MAX_COMMAS:
        raise BodyError(f"the body has more than {MAX_COMMAS:,} commas; no request has so many values")
    if body.count(b"\\") > MAX_ESCAPES + len(body) // BYTES_PER_ESCAPE:
        raise BodyError("the body has more backslashes than any text and any base64; send base64 without escapes")
    try:
        marked = body.startswith(codecs.BOM_UTF8)  # to take it off what has none would copy 100 MB
        value = pydantic_core.from_json(body[3:] if marked else body, allow_inf_nan=False)
    except ValueError as error:
        other = " in UTF-8; it seems to be UTF-16" if b"\0" in body[:4] else ""
        raise UnreadableJSONError(f"the body is not valid JSON{other}: {error}") from None
    if not isinstance(value, dict):
        raise BodyError("the body must be a JSON object")
    # Each text has two quotes. Of a field that came twice the last value is left, and its name is missing here.
    if 2 * _check_counts(value) != _quotes(body):
        try:
            strictjson.loads(body)
        except strictjson.RepeatedFieldError as error:
            raise WireError(error.field, [str(error)]) from None
    return value


def _quotes(body: bytes | bytearray) -> int:
    """How many texts begin or end in a body."""
    escaped = body.replace(b"\\\\", b"").count(b'\\"') if b"\\" in body else 0
    return body.count(b'"') - escaped


def _check_counts(body: dict[str, Any]) -> int:
    """Refuse what is nested too deep, or has more fields or values than any request; how many texts there are."""
    values, texts, level, depth = 0, 0, list[Any]([("", body)]), 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise BodyError(f"{level[0][0]}: the body is nested deeper than {MAX_DEPTH} levels")
        below: list[Any] = []
        for where, node in level:
            most, kind = (MAX_FIELDS_OF_OBJECT, "fields") if isinstance(node, dict) else (MAX_VALUES, "values")
            if len(node) > most:
                raise BodyError(f"{where or 'the body'} has {len(node):,} {kind}; at most {most:,} are accepted")
            values += len(node)
            if values > MAX_VALUES:
                raise BodyError(f"the body has more than {MAX_VALUES:,} values in all")
            named = node.items() if isinstance(node, dict) else enumerate(node)
            below.extend((where or str(name)[:80], each) for name, each in named if isinstance(each, (dict, list)))
            texts += len(node) if isinstance(node, dict) else 0
            texts += sum(isinstance(each, str) for each in (node.values() if isinstance(node, dict) else node))
        level = below
    return texts


def validate(
    body: Mapping[str, Any],
    model: type[Wire],
    at: str = "",
    names: Mapping[str, str] | None = None,
    *,
    strict: bool = True,
) -> Wire:
    """A JSON object as a wire model; `at` goes before the names of its fields, but for those with others in `names`.

    Raises:
        WireError: naming every field that is wrong, its value and what is accepted.
    """
    try:
        return model.model_validate(body, strict=None if strict else False)
    except ValidationError as error:
        written = {own: at + name for own, name in names_written(model, body).items()} | {**(names or {})}
        raise _wire_error(error, model, {**written, "": at}) from None


_ALIKE = """prompt negative_prompt prompt_upsampling seed steps guidance_scale guidance_interval guidance_rescale reuse
frames fps solver conditioning_frames flow_shift model"""


def alike(wire: WireModel) -> dict[str, Any]:
    """What a `GenerationRequest` has under the same name as this format; `resolve` checks names of solvers."""
    return {name: getattr(wire, name) for name in _ALIKE.split() if name in type(wire).model_fields}


def _wire_error(error: ValidationError, model: type[WireModel], written: Mapping[str, str]) -> WireError:
    """What pydantic says is wrong with a body, in this server's words."""
    found = error.errors(include_url=False)
    messages = [_message(details, model, written) for details in found[:_MOST_MESSAGES]]
    if len(found) > _MOST_MESSAGES:
        messages.append(f"and {len(found) - _MOST_MESSAGES} more")
    return WireError(_path(found[0]["loc"], written), messages)


def names_written(model: type[WireModel], body: Mapping[str, Any]) -> dict[str, str]:
    """Fields, at every level, that a body has under an alias, to the name it has them under."""
    found = {model.aliases[name]: name for name in reversed([*body]) if model.aliases.get(name, name) not in body}
    for name, value in body.items():
        own = model.aliases.get(name, name)
        inner = _inner(model.model_fields.get(own))
        if isinstance(value, Mapping) and inner is not None and issubclass(inner, WireModel):
            found |= {f"{own}.{deep}": f"{name}.{alias}" for deep, alias in names_written(inner, value).items()}
    return found


@functools.cache
def field_paths(model: type[BaseModel], prefix: str = "") -> Mapping[str, str]:
    """Every field of a wire model at every level, by its own name: {"width": "video_params.width"}."""
    paths: dict[str, str] = {}
    for name, field in model.model_fields.items():
        paths[name] = prefix + name
        if (inner := _inner(field)) is not None:
            paths = {**field_paths(inner, f"{prefix}{name}."), **paths}
    return paths


def _message(details: ErrorDetails, model: type[WireModel], written: Mapping[str, str]) -> str:
    location = details["loc"]
    where = _path(location, written)
    if details["type"] == "extra_forbidden":
        return _unknown_field(location, model, written)
    if not where:
        return "the body must be a JSON object"
    field = _field_at(location, model)
    if details["type"] == "missing":
        return f"{where}: Field required" + (f"; {_accepted(field)}" if field else "")
    return str(Problem(where, details["input"], _expected(details, field)))


def _path(location: tuple[int | str, ...], written: Mapping[str, str]) -> str:
    parts = [str(part)[:_LONGEST_NAME] for part in location]
    for end in range(len(parts), 0, -1):
        if (name := written.get(".".join(parts[:end]))) is not None:
            return ".".join([name, *parts[end:]])
    return written[""] + ".".join(parts) if parts else ""


def _expected(details: ErrorDetails, field: FieldInfo | None) -> str:
    """What a field takes instead of what pydantic says is wrong with it."""
    kind, limits = details["type"], details.get("ctx", {})
    said = details["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    if kind in ("string_too_long", "too_long", "string_too_short", "too_short"):
        number = limits.get("max_length", limits.get("min_length", 1))
        one, many = ("character", "characters") if kind.startswith("string") else ("entry", "entries")
        return f"at {'most' if 'long' in kind else 'least'} {number} {one if number == 1 else many}"
    if field is None:  # an entry of a list
        return "an object" if kind in ("model_type", "model_attributes_type", "dict_type") else said
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        return _accepted(field)
    if kind in ("model_type", "model_attributes_type", "dict_type") and (inner := _inner(field)) is not None:
        return f"an object with {', '.join(inner.model_fields)}"
    if kind.endswith(("_type", "_parsing", "_from_float")):
        # A number's range and a text's meaning help who has sent the wrong type too.
        limit = _limits(field) or (field.description or "").rstrip(".")
        return f"{said}{': ' if limit else ''}{limit}"
    return said


def _unknown_field(location: tuple[int | str, ...], model: type[WireModel], written: Mapping[str, str]) -> str:
    """What to write instead: a likely slip of the same level or another, or the wire format that has the field."""
    *parents, name = (str(part)[:_LONGEST_NAME] for part in location)
    where = _path(location, written)
    level = _model_at(location[:-1], model)
    known = level.model_fields if level else {}
    if level is not None and issubclass(level, WireModel) and (own := level.aliases.get(name)):
        other = written.get(own, own)
        return f"'{where}' and '{own if other == where else other}' are one field, and have two values"
    own_paths = field_paths(model)
    if (elsewhere := own_paths.get(name)) is not None:
        return f"unknown field '{where}'; it belongs in '{written['']}{elsewhere}'"
    bodies = [body for body in DialectBody.__subclasses__() if body is not model and name in field_paths(body)]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    if not near and len(name) >= _SHORTEST_PART:  # weight, of control_weight
        near = sorted((each for each in known if each.startswith(name) or each.endswith(name)), key=len)
    if near:
        return f"unknown field '{where}'; did you mean '{_path((*parents, near[0]), written)}'?"
    if bodies and not parents and issubclass(model, DialectBody):
        owners = " or ".join(body.dialect for body in bodies)
        hint = f"{name} belongs to the dialect {owners}, and this body was read as {model.dialect}"
        hint += " (POST /v1/infer reads the others)" if model.dialect.startswith("openai") else ""
        return f"unknown field '{where}'; {hint}"
    return f"unknown field '{where}'; known here: {', '.join(sorted(known))}"


def _accepted(field: FieldInfo) -> str:
    """The range, the choices or the meaning of a field in words."""
    choices = [str(value) for value in _types(field.annotation) if isinstance(value, str)]
    if choices:
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


def _types(annotation: Any) -> Iterator[Any]:
    """The types and literal values that an annotation is made of."""
    arguments = get_args(annotation)
    if get_origin(annotation) in (tuple, list, dict) or not arguments:
        yield annotation
        return
    for argument in arguments:
        yield from _types(argument)


def _inner(field: FieldInfo | None) -> type[BaseModel] | None:
    """The model that a field holds, or may hold."""
    return None if field is None else next(_models(field.annotation), None)


def _models(annotation: Any, *, entries: bool = False) -> Iterator[type[BaseModel]]:
    """The models among the choices of an annotation; `entries`: those of its lists too."""
    origin = get_origin(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif origin in (Union, UnionType) or (entries and origin in (list, Annotated)):
        for choice in get_args(annotation):
            yield from _models(choice, entries=entries)


def _model_at(location: Iterable[int | str], model: type[BaseModel]) -> type[BaseModel] | None:
    found: type[BaseModel] | None = model
    for part in location:
        if found is not None and not isinstance(part, int):
            field = found.model_fields.get(part)
            found = None if field is None else next(_models(field.annotation, entries=True), None)
    return found


def _field_at(location: tuple[int | str, ...], model: type[BaseModel]) -> FieldInfo | None:
    *parents, name = location
    level = _model_at(parents, model)
    return level.model_fields.get(name) if level and isinstance(name, str) else None
