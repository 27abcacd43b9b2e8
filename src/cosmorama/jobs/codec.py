"""Requests, outcomes and errors as JSON that a later release can still read.

A document says its version; `unpack` knows every version that ever was. Media never goes into it: inline pictures and
clips are handed out as blobs on the way in, and stand in the document by their key in the artifact store.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter

from cosmorama.engine.outcome import Outcome
from cosmorama.jobs.record import JobError
from cosmorama.media.fetch import FetchPolicy, load_bytes
from cosmorama.request import GenerationRequest, MediaSource

VERSION = 1
_KEY = "$artifact"
_Node = TypeVar("_Node")


def take_media(request: GenerationRequest, max_bytes: int) -> tuple[GenerationRequest, dict[str, bytes]]:
    """Take the inline media out of a request: `(request with a Path in its place, blobs by that path)`.

    URLs stay; they are fetched when the job runs.

    Raises:
        MediaError: base64 that is none, media over `max_bytes`, or a local file, which no client may name.
    """
    blobs: dict[str, bytes] = {}
    policy = FetchPolicy(allow_urls=True, allow_files=False, max_bytes=max_bytes)

    def take(where: str, source: MediaSource) -> MediaSource:
        if isinstance(source, str) and source.lstrip()[:8].lower().startswith(("http://", "https://")):
            return source
        blobs[where] = load_bytes(source, where, policy)
        return Path(where)

    return _map_media(request, take), blobs


def place_media(request: GenerationRequest, prefix: str) -> GenerationRequest:
    """Put `prefix` before the paths that `take_media` left."""
    return _map_media(request, lambda _, source: Path(prefix) / source if isinstance(source, Path) else source)


def restore_media(request: GenerationRequest, read: Callable[[str], bytes]) -> GenerationRequest:
    """Put the contents back where a request names artifacts."""
    return _map_media(request, lambda _, source: read(str(source)) if isinstance(source, Path) else source)


def fingerprint(dialect: str, request: GenerationRequest, blobs: Mapping[str, bytes]) -> str:
    """Equal for requests that ask for the same: of a request before `resolve`, so that an undrawn seed stays equal."""
    digests = {where: sha256(blob).hexdigest() for where, blob in blobs.items()}
    return sha256(json.dumps([dialect, pack_request(request), digests], sort_keys=True).encode()).hexdigest()


def pack_request(request: GenerationRequest) -> str:
    """A request without inline media, as JSON text."""
    body = _adapter(GenerationRequest).dump_python(request, mode="python")
    return json.dumps({"version": VERSION, "request": body}, default=_as_json, separators=(",", ":"))


def unpack_request(text: str) -> GenerationRequest:
    """The request of `pack_request`.

    Raises:
        ValueError: the document is of a later version, or no request.
    """
    document = json.loads(text, object_hook=_from_json)
    if document["version"] != VERSION:
        raise ValueError(f"a request of version {document['version']}; this server reads version {VERSION}")
    request: GenerationRequest = _adapter(GenerationRequest).validate_python(document["request"])
    return request


def pack_outcome(outcome: Outcome) -> str:
    """An outcome as JSON text; of its path, the name."""
    return _adapter(Outcome).dump_json(replace(outcome, path=Path(outcome.path.name))).decode()


def unpack_outcome(text: str) -> Outcome:
    """The outcome of `pack_outcome`."""
    outcome: Outcome = _adapter(Outcome).validate_json(text)
    return outcome


def pack_error(error: JobError) -> str:
    """An error as JSON text; values of problems that JSON has no words for become text."""
    return json.dumps(_adapter(JobError).dump_python(error, mode="python"), default=repr)


def unpack_error(text: str) -> JobError:
    """The error of `pack_error`."""
    error: JobError = _adapter(JobError).validate_json(text)
    return error


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _as_json(value: object) -> object:
    if isinstance(value, Path):
        return {_KEY: value.as_posix()}
    raise TypeError(f"{type(value).__name__} has no place in a stored request")


def _from_json(value: dict[str, Any]) -> Any:
    return Path(value[_KEY]) if value.keys() == {_KEY} else value


def _map_media(node: _Node, change: Callable[[str, MediaSource], MediaSource], where: str = "") -> _Node:
    """A dataclass with every media source in it changed, however deep; they are called such as `controls.0.source`."""
    changed: dict[str, Any] = {}
    for name, value, media in _fields(node):
        path = f"{where}{name}"
        if media and value is not None:
            changed[name] = change(path, value)
        elif is_dataclass(value):
            changed[name] = _map_media(value, change, f"{path}.")
        elif isinstance(value, tuple) and any(is_dataclass(item) for item in value):
            changed[name] = tuple(_map_media(item, change, f"{path}.{i}.") for i, item in enumerate(value))
    return replace(node, **changed)  # type: ignore[type-var]


def _fields(node: Any) -> Iterator[tuple[str, Any, bool]]:
    kind: Any = type(node)
    media = _media_fields(kind)
    for field in fields(node):
        yield field.name, getattr(node, field.name), field.name in media


@cache
def _media_fields(kind: Any) -> frozenset[str]:
    # MediaSource is the only type in a request that admits bytes.
    return frozenset(name for name, hint in get_type_hints(kind).items() if bytes in get_args(hint))
