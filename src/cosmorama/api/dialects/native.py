"""The server's own wire format: the fields of `GenerationRequest` by their names. `cosmorama.Client` speaks it.

A job is sent in it with `dialect` set to "cosmorama"; it is never guessed from a body's shape.
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Annotated, Any, get_type_hints

from pydantic import Field, create_model

from cosmorama.api.dialects.base import Dialect, file_answer
from cosmorama.api.dialects.wire import Few, Numbers, WireModel, validate
from cosmorama.errors import InvalidRequestError, Problem
from cosmorama.request import INWARD, MAX_INDEXES, Action, Adapter, Control, GenerationRequest, MediaSource, Output
from cosmorama.settings import Settings

NAME = "cosmorama"


def _body_of(kind: type, name: str, **special: Any) -> type[WireModel]:
    """A wire model with the fields of a dataclass: media as texts, tuples as arrays."""
    hints, made = get_type_hints(kind), {}
    for field in fields(kind):
        hint = special.get(field.name, str | None if hints[field.name] == MediaSource | None else hints[field.name])
        default = ... if field.default is MISSING else None if field.name in special else field.default
        if field.name not in INWARD:
            made[field.name] = (hint, default)
    return create_model(name, __base__=WireModel, __doc__=kind.__doc__, **made)  # type: ignore[call-overload, no-any-return]


_Rows = Annotated[list[Numbers], Field(max_length=4096, fail_fast=True)]
_Indexes = Annotated[list[int], Field(max_length=MAX_INDEXES, fail_fast=True)]
OutputBody = _body_of(Output, "OutputBody", quality=int | None)
NativeBody = _body_of(
    GenerationRequest,
    "NativeBody",
    guidance_interval=Numbers | None,
    conditioning_indexes=_Indexes | None,
    output=OutputBody | None,
    controls=Few[_body_of(Control, "ControlBody")] | None,  # type: ignore[misc]
    action=_body_of(Action, "ActionBody", values=_Rows | None) | None,
    adapters=Few[_body_of(Adapter, "AdapterBody")] | None,  # type: ignore[misc]
)
"""The fields of a generation request; every one may be left out."""


def parse(body: dict[str, Any], settings: Settings) -> GenerationRequest:
    """A decoded body to the request it describes.

    Raises:
        WireError: naming every field that is wrong.
    """
    return to_request(body, quality=settings.video_quality)


def to_request(body: dict[str, Any], *, quality: int) -> GenerationRequest:
    """The request that a body describes; `quality` is used where it does not say.

    Raises:
        WireError: naming every field that is wrong.
    """
    given = validate(body, NativeBody).model_dump(exclude_unset=True, exclude_none=True)
    for name, kind in (("controls", Control), ("adapters", Adapter)):
        if name in given:
            given[name] = tuple(kind(**each) for each in given[name])
    if (action := given.get("action")) is not None:
        values = action.get("values")
        given["action"] = Action(**action | {"values": None if values is None else tuple(map(tuple, values))})
    for name, length in (("guidance_interval", 2), ("conditioning_indexes", None)):
        if name in given:
            given[name] = tuple(given[name])
            if length is not None and len(given[name]) != length:
                raise InvalidRequestError(Problem(name, list(given[name]), "two fractions of the steps"))
    return GenerationRequest(**given | {"output": Output(**{"quality": quality} | given.get("output", {}))})


DIALECT = Dialect(name=NAME, parse=parse, recognises=lambda body: False, answer=file_answer, body=NativeBody)
