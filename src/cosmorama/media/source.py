"""Media as people name them: a path, a URL, an image or an array going in, a file name's suffix coming out."""

from __future__ import annotations

import difflib
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from cosmorama.errors import InvalidRequestError, Problem
from cosmorama.request import Container, GenerationRequest, Knobs, MediaSource, Output

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

    Picture = MediaSource | Image.Image | npt.NDArray[np.uint8]
else:  # a client works where neither is installed
    Picture = Any
"""An image as a path, URL, base64 text, encoded bytes, PIL image or uint8 array `[H, W, 3]`."""

_Node = TypeVar("_Node")
FILES: dict[Container, tuple[str, str]] = {
    "mp4": (".mp4", "video/mp4"),
    "webm": (".webm", "video/webm"),
    "gif": (".gif", "image/gif"),
    "png": (".zip", "application/zip"),
    "jpeg": (".jpg", "image/jpeg"),
    "safetensors": (".safetensors", "application/octet-stream"),
}
"""The end of a file's name, and its media type as HTTP's Content-Type says it."""
CONTAINERS: dict[str, Container] = {suffix: container for container, (suffix, _) in FILES.items()} | {".jpeg": "jpeg"}


def suffix(output: Output) -> str:
    """The file name's end, with its dot: .mp4, .webm, .gif, .jpg, .safetensors, or .zip for numbered PNG frames."""
    return FILES[output.container][0]


def mime_type(output: Output) -> str:
    """The media type of the file, as HTTP's Content-Type says it."""
    return FILES[output.container][1]


def output_for(path: Path, quality: int = 7) -> Output:
    """The output format that a file's suffix stands for.

    Raises:
        InvalidRequestError: an unknown suffix, or a quality outside 1 to 9.
    """
    problems = []
    container = CONTAINERS.get(path.suffix.lower())
    if container is None:
        problems.append(Problem("output", path.name, f"a file name ending in {', '.join(CONTAINERS)}"))
    if not 1 <= quality <= 9:
        problems.append(Problem("quality", quality, "an integer from 1 to 9"))
    if problems or container is None:
        raise InvalidRequestError(*problems)
    return Output(container, quality=quality)


def request_of(
    prompt: str | None, *, image: Picture | None, video: MediaSource | None, **knobs: Any
) -> GenerationRequest:
    """The request that the arguments of a Python call describe.

    Numbers may be numpy's, controls and an action mappings of their fields, and an adapter its name alone.

    Raises:
        InvalidRequestError: a value is of another type; every such field is named.
        TypeError: there is no such knob.
    """
    if unknown := sorted(knobs.keys() - Knobs.__annotations__):
        close = difflib.get_close_matches(unknown[0], Knobs.__annotations__, 1)
        raise TypeError(f"there is no knob {unknown[0]!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
    given = {name: _plain(value) for name, value in knobs.items() if value is not None}
    if isinstance(adapters := given.get("adapters"), list):
        given["adapters"] = [{"name": each} if isinstance(each, str) else each for each in adapters]
    given |= {"prompt": prompt, "image": None if image is None else image_source(image)}
    given["video"] = None if video is None else media_source(video)
    try:
        request = _REQUEST.validate_python(given)
    except ValidationError as error:
        raise InvalidRequestError(*map(_problem, error.errors(include_url=False))) from None
    return located(request)


def located(request: GenerationRequest) -> GenerationRequest:
    """The request with every path among its sources, which was given as text, as a `Path`; see `media_source`."""
    return map_media(request, lambda _, source: media_source(source))


_REQUEST: TypeAdapter[GenerationRequest] = TypeAdapter(GenerationRequest)


def _plain(value: Any) -> Any:
    """In Python's own types, for the validator: of numpy's numbers and arrays, and of dataclasses that were given."""
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    numpy = sys.modules.get("numpy")
    return value.tolist() if numpy is not None and isinstance(value, (numpy.generic, numpy.ndarray)) else value


def _problem(found: ErrorDetails) -> Problem:
    field = ".".join(map(str, found["loc"]))
    return Problem(field, found["input"], found["msg"].removeprefix("Input should be "))


def map_media(node: _Node, change: Callable[[str, MediaSource], MediaSource], where: str = "") -> _Node:
    """A dataclass with every media source in it changed, however deep; they are called such as `controls.0.source`."""
    changed: dict[str, Any] = {}
    for name, value, media in _fields(node):
        path = f"{where}{name}"
        if media and value is not None:
            changed[name] = change(path, value)
        elif is_dataclass(value):
            changed[name] = map_media(value, change, f"{path}.")
        elif isinstance(value, tuple) and any(is_dataclass(item) for item in value):
            changed[name] = tuple(map_media(item, change, f"{path}.{i}.") for i, item in enumerate(value))
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


def media_source(value: object, field: str = "video") -> MediaSource:
    """A path given as text becomes a `Path`; URLs, data URLs, base64 text and bytes stay what they are.

    Raises:
        InvalidRequestError: it is something else; `field` says what it was given for.
    """
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, os.PathLike):
        return Path(value)
    if not isinstance(value, (str, bytes)):
        raise InvalidRequestError(Problem(field, type(value).__name__, "a path, a URL, base64 text or bytes"))
    # Base64 of any real image is longer than a path may be.
    if isinstance(value, str) and "://" not in value and not value.startswith("data:") and len(value) < 1024:
        path = os.path.expanduser(value)
        if os.path.exists(path) or Path(path).suffix:  # of os.path, which only says no to what can be no name
            return Path(path)
    return value


def image_source(value: object, field: str = "image") -> MediaSource:
    """The same for images, with PIL images and arrays encoded losslessly.

    Raises:
        InvalidRequestError: as `media_source`, or an array of another type or shape.
    """
    # Neither module is imported for this: who has such an object has imported it.
    numpy, pil = sys.modules.get("numpy"), sys.modules.get("PIL.Image")
    if numpy is not None and isinstance(value, numpy.ndarray):
        from PIL import Image

        if value.dtype != numpy.uint8 or value.ndim != 3 or value.shape[2] not in (3, 4) or 0 in value.shape:
            shown = f"{value.dtype} {list(value.shape)}"
            raise InvalidRequestError(Problem(field, shown, "an array of uint8, [H, W, 3] or with alpha [H, W, 4]"))
        value, pil = Image.fromarray(value), sys.modules["PIL.Image"]
    if pil is not None and isinstance(value, pil.Image):
        buffer = io.BytesIO()
        # PNG has no CMYK, YCbCr, Lab, HSV or floating point.
        (value if value.mode in _PNG_MODES else value.convert("RGB")).save(buffer, "png")
        return buffer.getvalue()
    return media_source(value, field)


_PNG_MODES = frozenset({"1", "L", "LA", "I;16", "P", "RGB", "RGBA"})
