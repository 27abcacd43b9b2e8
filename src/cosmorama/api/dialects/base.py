"""What a wire format is to the rest of the server, so that `POST /v1/jobs` takes any of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request, Response

from cosmorama.api.body import WireModel
from cosmorama.engine.outcome import Outcome
from cosmorama.errors import CosmoramaError, InvalidRequestError, MediaError, Problem
from cosmorama.request import GenerationRequest
from cosmorama.settings import Settings


@dataclass(frozen=True, slots=True)
class Dialect:
    """One wire format.

    Attributes:
        name: What clients call it.
        parse: A decoded JSON body to the request it describes; raises `BodyError` (see `api.body.validate`) or
            `InvalidRequestError` under the wire's own names.
        recognises: Whether a body without a `dialect` is this one's, by its shape. Asked in the order of the table.
        answer: The wire answer of a finished generation: `(http request, generation request, outcome)`. It owns the
            outcome's file and discards it when sent.
        body: The body's model, for the API's documentation.
        wire_names: `GenerationRequest`'s field names to this format's, for errors found after parsing.
    """

    name: str
    parse: Callable[[dict[str, Any], Settings], GenerationRequest]
    recognises: Callable[[Mapping[str, Any]], bool]
    answer: Callable[[Request, GenerationRequest, Outcome], Response]
    body: type[WireModel]
    wire_names: Mapping[str, str] = field(default_factory=dict)


def worded(error: CosmoramaError, names: Mapping[str, str]) -> CosmoramaError:
    """An error found after parsing, its fields under the wire's names (`Dialect.wire_names`)."""
    if isinstance(error, InvalidRequestError):
        return error.renamed(names)
    if isinstance(error, MediaError):
        return MediaError(names.get(error.field, error.field), error.message, status=error.status)
    return error


def choose(table: Sequence[Dialect], body: Mapping[str, Any], name: str | None) -> Dialect:
    """The dialect called `name`, or the first that recognises the body.

    Raises:
        InvalidRequestError: no such dialect, or none recognises the body.
    """
    names = ", ".join(dialect.name for dialect in table)
    for dialect in table:
        if dialect.name == name or (name is None and dialect.recognises(body)):
            return dialect
    if name is None:
        raise InvalidRequestError(Problem("dialect", None, f"one of {names}: the body's shape does not tell"))
    raise InvalidRequestError(Problem("dialect", name, f"one of {names}"))
