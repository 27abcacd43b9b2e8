"""Media as people name them: a path, a URL, an image or an array going in, a file name's suffix coming out."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cosmorama.errors import InvalidRequestError, Problem
from cosmorama.request import Container, MediaSource, Output

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

    Picture = MediaSource | Image.Image | npt.NDArray[np.uint8]
else:  # a client works where neither is installed
    Picture = Any
"""An image as a path, URL, base64 text, encoded bytes, PIL image or uint8 array `[H, W, 3]`."""

_CONTAINERS: dict[str, Container] = {
    ".mp4": "mp4",
    ".webm": "webm",
    ".gif": "gif",
    ".zip": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
}


def output_for(path: Path, quality: int = 7) -> Output:
    """The output format that a file's suffix stands for.

    Raises:
        InvalidRequestError: an unknown suffix, or a quality outside 1 to 9.
    """
    problems = []
    container = _CONTAINERS.get(path.suffix.lower())
    if container is None:
        problems.append(Problem("output", path.name, f"a file name ending in {', '.join(_CONTAINERS)}"))
    if not 1 <= quality <= 9:
        problems.append(Problem("quality", quality, "an integer from 1 to 9"))
    if problems or container is None:
        raise InvalidRequestError(*problems)
    return Output(container, quality=quality)


def media_source(value: MediaSource) -> MediaSource:
    """A path given as text becomes a `Path`; URLs, data URLs, base64 text and bytes stay what they are."""
    if isinstance(value, str) and "://" not in value and not value.startswith("data:"):
        path = Path(value).expanduser()
        # Base64 of any real image is longer than a path may be.
        if len(value) < 1024 and (path.exists() or path.suffix):
            return path
    return value


def image_source(value: Picture) -> MediaSource:
    """The same for images, with PIL images and arrays encoded losslessly."""
    # Neither module is imported for this: who has such an object has imported it.
    numpy, pil = sys.modules.get("numpy"), sys.modules.get("PIL.Image")
    if numpy is not None and isinstance(value, numpy.ndarray):
        from PIL import Image

        value, pil = Image.fromarray(value), sys.modules["PIL.Image"]
    if pil is not None and isinstance(value, pil.Image):
        buffer = io.BytesIO()
        value.save(buffer, "png")
        return buffer.getvalue()
    return media_source(cast("MediaSource", value))
