"""From encoded pictures and clips to frames of the size, rate and number that are wanted, and back."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cosmorama.media.decode import Clip, MediaLimits
from cosmorama.media.pictures import AnimatedPicture, read_picture
from cosmorama.media.sniff import known_kind
from cosmorama.request import Target

__all__ = ["MediaLimits", "read_image", "read_video"]

_DEFAULT_LIMITS = MediaLimits()
_MOSTLY_KEPT = 2 / 3


def read_image(
    data: bytes,
    field: str,
    *,
    width: int,
    height: int,
    pad: bool = False,
    limits: MediaLimits = _DEFAULT_LIMITS,
    warnings: list[str] | None = None,
) -> NDArray[np.uint8]:
    """A picture scaled to cover `width` x `height` pixels and cropped to its centre: uint8 RGB `[height, width, 3]`.

    Of an animated picture, the first frame. Turned as EXIF asks; transparency is shown on white; colors are sRGB's.
    What was converted, or cut off by more than a third, is appended to `warnings`. With `pad` all of it is seen, never
    enlarged, in the upper left corner; the rest mirrors it, as models that act were trained.

    Raises:
        MediaError: if `data` is not a picture, is damaged, or is outside the limits.
    """
    kind = known_kind(data, field, picture=True)
    picture = read_picture(data, kind.name, field, limits, warnings)
    if pad:
        scale = min(width / picture.width, height / picture.height, 1.0)
        seen = fit(picture, max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        missing = ((0, height - seen.shape[0]), (0, width - seen.shape[1]), (0, 0))
        return np.pad(seen, missing, mode="reflect")
    _warn_of_cropping(picture.size, Fraction(1), (width, height), field, warnings)
    return fit(picture, width, height)


def read_video(
    data: bytes,
    field: str,
    *,
    width: int,
    height: int,
    fps: float,
    frames: int,
    keep: Literal["first", "last"] = "last",
    limits: MediaLimits = _DEFAULT_LIMITS,
    warnings: list[str] | None = None,
) -> NDArray[np.uint8]:
    """The last frames of a clip at `fps` frames per second: uint8 RGB `[n, height, width, 3]`, 1 <= n <= `frames`.

    The last frame is the clip's last; each one before it is the one nearest in time, 1 / `fps` seconds earlier. With
    `keep` "first" it is the other way round: the clip's first frame, and those that follow. n is smaller than `frames`
    where the clip is too short. Scaled to cover the size and cropped around the centre, with
    rotation and pixel aspect as the file asks, colors as sRGB, interlaced frames as whole ones, and transparency on
    white. What was converted, or cut off by more than a third, is appended to `warnings`.

    Raises:
        MediaError: if `data` is not a clip, is damaged, holds no video, or is outside the limits.
    """
    kind = known_kind(data, field)
    clip = (Clip if kind.what == "clip" else AnimatedPicture)(data, kind.name, field, limits, warnings)
    if keep == "last":
        indices = pick_last(clip.tail(span_s(fps, frames)), fps, frames)
    else:
        indices = pick_first(clip.head(span_s(fps, frames)), fps, frames)
    fitted: dict[int, NDArray[np.uint8]] = {}
    chosen = sorted(set(indices))
    for index, (picture, pixel_aspect) in zip(chosen, clip.pictures(chosen), strict=True):
        if index == chosen[0]:
            _warn_of_cropping(picture.size, pixel_aspect, (width, height), field, warnings)
        fitted[index] = fit(picture, width, height, pixel_aspect)
    return np.stack([fitted[index] for index in indices])


def rate_of(data: bytes, field: str, limits: MediaLimits = _DEFAULT_LIMITS) -> float | None:
    """Frames per second of a clip as its file says, or as its frames come; None where it has one frame.

    Raises:
        MediaError: as `read_video`.
    """
    kind = known_kind(data, field)
    if kind.what == "clip":
        return Clip(data, kind.name, field, limits).rate
    times = AnimatedPicture(data, kind.name, field, limits).tail(math.inf)
    return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else None


def _warn_of_cropping(
    size: tuple[int, int], pixel_aspect: Fraction, target: tuple[int, int], field: str, warnings: list[str] | None
) -> None:
    left, top, right, bottom = cover_box(size, target, pixel_aspect)
    kept = (right - left) * (bottom - top) / (size[0] * size[1])
    if warnings is not None and kept < _MOSTLY_KEPT:
        shape = "x".join(map(str, size))
        words = f"{field} of {shape} was cropped to its middle: {kept:.0%} of it is seen at {target[0]}x{target[1]}"
        warnings.append(f"{words}; ask for a size of its shape to see all")


def cover_box(
    source: tuple[int, int], target: tuple[int, int], pixel_aspect: Fraction = Fraction(1)
) -> tuple[float, float, float, float]:
    """The centred part of a picture that has the shape of the target, as (left, top, right, bottom) in source pixels.

    Args:
        source: Width and height of the picture in pixels, at least 1.
        target: Width and height of the frame in pixels, at least 1.
        pixel_aspect: Width of a source pixel divided by its height, as displayed.
    """
    width, height = source
    # Wanted width over height, counted in source pixels.
    aspect = Fraction(target[0], target[1]) / pixel_aspect
    crop_width = min(Fraction(width), height * aspect)
    crop_height = min(Fraction(height), width / aspect)
    left, top = (width - crop_width) / 2, (height - crop_height) / 2
    return float(left), float(top), float(left + crop_width), float(top + crop_height)


def fit(picture: Image.Image, width: int, height: int, pixel_aspect: Fraction = Fraction(1)) -> NDArray[np.uint8]:
    """An RGB picture scaled to cover `width` x `height` and cropped around its centre: uint8 `[height, width, 3]`.

    Lanczos over the whole support, so scaling down does not alias.
    """
    box = cover_box(picture.size, (width, height), pixel_aspect)
    if picture.size == (width, height) and box == (0.0, 0.0, float(width), float(height)):
        return np.array(picture, dtype=np.uint8)
    return np.array(picture.resize((width, height), Image.Resampling.LANCZOS, box=box), dtype=np.uint8)


_SLACK = 0.25
"""How far before a clip's first frame, in grid intervals, a sample may fall: containers round times to 1 ms or so."""


def span_s(fps: float, frames: int) -> float:
    """Seconds from the first to the last of `frames` samples."""
    return (frames - 1) / fps


def pick_last(times_s: Sequence[float], fps: float, frames: int) -> list[int]:
    """Indices of the frames nearest in time to the last `frames` points of a grid that ends at the last frame.

    Args:
        times_s: Presentation times in seconds, ascending, at least one.
        fps: Points per second of the grid, above 0.
        frames: Most points wanted, at least 1.

    Returns:
        Ascending indices into `times_s`, at least 1 and at most `frames`: fewer where the clip is shorter than the
        grid. An index repeats where the clip has fewer frames per second than the grid.
    """
    end = times_s[-1]
    available = math.floor((end - times_s[0]) * fps + _SLACK) + 1
    wanted = [end - k / fps for k in reversed(range(min(frames, available)))]
    return [_nearest(times_s, time) for time in wanted]


def pick_first(times_s: Sequence[float], fps: float, frames: int) -> list[int]:
    """Indices of the frames nearest in time to the first `frames` points of a grid that starts at the first frame.

    Arguments and result as for `pick_last`.
    """
    start = times_s[0]
    available = math.floor((times_s[-1] - start) * fps + _SLACK) + 1
    return [_nearest(times_s, start + k / fps) for k in range(min(frames, available))]


def _nearest(times_s: Sequence[float], time: float) -> int:
    after = min(bisect.bisect_left(times_s, time), len(times_s) - 1)
    before = max(after - 1, 0)
    return before if time - times_s[before] < times_s[after] - time else after


def resampled(
    chunks: Iterable[NDArray[np.uint8]], fps: float, target: Target, before: int = 0
) -> Iterator[NDArray[np.uint8]]:
    """The frames of `target` from a clip's frames: uint8 RGB `[n, height, width, 3]`, n >= 1, as they come.

    Each is the source frame nearest in time, scaled to cover the size and cropped around its centre.

    Args:
        chunks: All frames of the clip in order, uint8 RGB `[t, h, w, 3]`, but for the first ones.
        fps: How many of them make a second.
        target: What is wanted.
        before: How many were given in a call before this one.
    """
    ratio = fps / target.fps
    read, written = before, 0
    while before and written < target.frames and int(written * ratio + 0.5) < before:
        written += 1
    for chunk in chunks:
        found: list[NDArray[np.uint8]] = []
        for frame in chunk:
            copies = 0
            while written < target.frames and int(written * ratio + 0.5) <= read:
                copies, written = copies + 1, written + 1
            read += 1
            if copies:
                found += [fit(Image.fromarray(frame), target.width, target.height)] * copies
        if found:
            yield np.stack(found)
