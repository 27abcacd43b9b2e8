"""What a wire format is to the rest of the server, so that `POST /v1/jobs` takes any of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, get_args

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from cosmorama.api.clips import ClipFile, ClipJSON
from cosmorama.api.dialects.wire import WireModel, names_written
from cosmorama.engine.outcome import Outcome
from cosmorama.errors import CosmoramaError, InvalidRequestError, Problem
from cosmorama.fitting import FPS
from cosmorama.jobs.files import discard
from cosmorama.media.source import mime_type
from cosmorama.request import GenerationRequest, Mode
from cosmorama.settings import Settings


@dataclass(frozen=True, slots=True)
class Dialect:
    """One wire format.

    Attributes:
        name: What clients call it.
        parse: A decoded JSON body to the request it describes; raises `BodyError` (see `wire.validate`) or
            `InvalidRequestError` under the wire's own names.
        recognises: Whether a body without a `dialect` is this one's, by its shape. Asked in the order of the table.
        answer: The wire answer of a finished generation: `(http request, generation request, outcome)`. It owns the
            outcome's file and discards it when sent.
        body: The body's model, for the API's documentation.
        wire_names: `GenerationRequest`'s field names to this format's, for errors found after parsing. `mode=NAME`
            is the format's word for a mode, and `field=NAME` the field that makes a body one of that mode;
            `hint=FIELD` goes before what is accepted in an error about a field, and `FIELD=VALUE` is what a client
            wrote for a value.
        more_names: Of the names, those that depend on what a body has inside.
    """

    name: str
    parse: Callable[[dict[str, Any], Settings], GenerationRequest]
    recognises: Callable[[Mapping[str, Any]], bool]
    answer: Callable[[Request, GenerationRequest, Outcome], Response]
    body: type[WireModel]
    wire_names: Mapping[str, str] = field(default_factory=dict)
    more_names: Callable[[Mapping[str, Any]], Mapping[str, str]] = lambda body: {}

    def read(self, body: dict[str, Any], settings: Settings) -> GenerationRequest:
        """What a body describes, with what it calls a request's fields."""
        try:
            return named(self.parse(body, settings), self.names_of(body))
        except InvalidRequestError as error:
            raise error.renamed(self.names_of(body)) from None

    def names_of(self, body: Mapping[str, Any]) -> Mapping[str, str]:
        """`wire_names`, with the aliases that this body uses."""
        body = {name: value for name, value in body.items() if value is not None}
        written = names_written(self.body, body)
        own = {name: written.get(wire, wire) for name, wire in self.wire_names.items()}
        return {**written, **own, **self.more_names(body)}


MAX_NAMES = 256
"""Characters of a field's two names, this server's and its client's."""
BY_INPUT = {"field=text2world": "prompt", "field=image2world": "image", "field=video2world": "video"}
"""Which fields make a body one of a mode, in the formats that have no name for modes."""


def named(generation: GenerationRequest, names: Mapping[str, str]) -> GenerationRequest:
    """The request with what its client calls its fields (`Dialect.names_of`), for what is found out later.

    Names as long as no field's are left out: they are a client's own, and are kept with the job.
    """
    own = {field: name for field, name in names.items() if len(field) + len(name) <= MAX_NAMES}
    for index, each in enumerate(generation.controls):
        if (name := names.get(f"controls.{each.kind}.source")) is not None:
            own[f"controls.{index}.source"] = name
    return replace(generation, names=tuple(own.items()))


@contextmanager
def wording(generation: GenerationRequest) -> Iterator[None]:
    """Raise errors about a request with its fields called what its client calls them."""
    try:
        yield
    except CosmoramaError as error:
        raise worded(error, dict(generation.names)) from None


def worded(error: CosmoramaError, names: Mapping[str, str]) -> CosmoramaError:
    """An error found after parsing, its fields under the wire's names (`Dialect.wire_names`)."""
    if isinstance(error, InvalidRequestError):
        return InvalidRequestError(*(_worded(problem, names) for problem in error.problems))
    return error.renamed(names)


def _worded(problem: Problem, names: Mapping[str, str]) -> Problem:
    if problem.field != "mode":
        fitted = "even numbers" in problem.accepted or problem.accepted.endswith(f"from {FPS}")
        hint = "" if fitted else names.get(f"hint={problem.field}", "")
        value = names.get(f"{problem.field}={problem.value}", problem.value)
        return Problem(names.get(problem.field, problem.field), value, f"{hint}{problem.accepted}")
    found = names.get(f"field={problem.value}", names.get("mode", "mode"))
    value = names.get(f"mode={problem.value}", problem.value)
    accepted = _MODE.sub(lambda mode: names.get(f"mode={mode[0]}", mode[0]), problem.accepted)
    return Problem(found, value, accepted)


_MODE = re.compile(r"\b(?:" + "|".join(get_args(Mode)) + r")\b")


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


_WEIGHT = re.compile(r"q=([01](\.[0-9]{0,3})?)")


def clip_answer(
    request: Request, generation: GenerationRequest, outcome: Outcome, fields: Mapping[str, Any], *, name: str
) -> Response:
    """The clip as base64 in the field `name` of a JSON object, or the file itself for who would rather have that.

    Args:
        request: Its `Accept` header decides: `video/mp4`, or any video (image for stills), of more weight than JSON
            asks for the file.
        generation: What was asked for.
        outcome: Its file is deleted once the answer is sent.
        fields: The other fields of the JSON object; warnings and checks come beside them where there are some.
        name: `b64_video` or `b64_image`.
    """
    media_type = mime_type(generation.output)
    kind = "image/" if name == "b64_image" else "video/"
    accepted = _accepted(request.headers.get("accept", ""))
    asked = max((weight for each, weight in accepted.items() if each.startswith(kind)), default=0)
    if asked > accepted.get("application/json", 0):
        return ClipFile(outcome, media_type)
    return ClipJSON(name, outcome.path, {**fields, **_said(outcome)})


def fields_answer(outcome: Outcome, fields: Mapping[str, Any]) -> Response:
    """The fields of a JSON object without the clip, whose file is deleted."""
    discard(outcome.path)
    return JSONResponse({**fields, **_said(outcome)})


def _said(outcome: Outcome) -> dict[str, Any]:
    said: dict[str, Any] = {"warnings": list(outcome.warnings)} if outcome.warnings else {}
    if outcome.checks:
        said["guardrails"] = [asdict(check) for check in outcome.checks]
    return said


def _accepted(header: str) -> dict[str, float]:
    """The media types of an `Accept` header with their weights, from 0 for what is not wanted to 1."""
    parts = [[word.strip().lower() for word in part.split(";")] for part in header.split(",")]
    weights = ((kind, [word[2:] for word in rest if _WEIGHT.fullmatch(word)]) for kind, *rest in parts)
    return {kind: float(said[-1]) if said else 1.0 for kind, said in weights}


def told_answer(request: Request, generation: GenerationRequest, outcome: Outcome) -> Response:
    """`{"b64_video", "seed", "upsampled_prompt"}`: the clip, and the seed and the text that were used."""
    fields = {"seed": outcome.seed, "upsampled_prompt": outcome.prompt}
    return clip_answer(request, generation, outcome, fields, name="b64_video")


def file_answer(request: Request, generation: GenerationRequest, outcome: Outcome) -> Response:
    """The file itself."""
    return ClipFile(outcome, mime_type(generation.output))


def action_answer(generation: GenerationRequest, outcome: Outcome) -> dict[str, Any] | None:
    """The predicted actions as clients read them; None where the model predicted none."""
    if generation.action is None or outcome.action is None:
        return None
    rows = [list(row) for row in outcome.action]
    width = len(rows[0]) if rows else 0
    return {
        "data": rows,
        "shape": [len(rows), width],
        "dtype": "float32",
        "raw_action_dim": width,
        "action_mode": generation.mode,
        "domain_id": generation.action.domain,
    }
