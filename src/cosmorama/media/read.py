"""From encoded pictures and clips to frames of the size, rate and number that a model is conditioned on."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cosmorama.errors import MediaError
from cosmorama.media.clip import Clip
from cosmorama.media.fit import fit
from cosmorama.media.limits import MediaLimits
from cosmorama.media.picture import AnimatedPicture, read_picture
from cosmorama.media.sniff import Kind, sniff
from cosmorama.media.timeline import pick_first, pick_last, span_s

__all__ = ["MediaLimits", "read_image", "read_video"]

_DEFAULT_LIMITS = MediaLimits()


def read_image(
    data: bytes, field: str, *, width: int, height: int, limits: MediaLimits = _DEFAULT_LIMITS
) -> NDArray[np.uint8]:
    """A picture scaled to cover `width` x `height` pixels and cropped to its centre: uint8 RGB `[height, width, 3]`.

    Of an animated picture, the first frame. Turned as EXIF asks; transparency is shown on white.

    Raises:
        MediaError: if `data` is not a picture, is damaged, or is outside the limits.
    """
    kind = _kind(data, field)
    if kind.what == "clip":
        raise MediaError(field, "is a video, not a picture; pass it as 'video'")
    return fit(read_picture(data, kind.name, field, limits), width, height)


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
) -> NDArray[np.uint8]:
    """The last frames of a clip at `fps` frames per second: uint8 RGB `[n, height, width, 3]`, 1 <= n <= `frames`.

    The last frame is the clip's last; each one before it is the one nearest in time, 1 / `fps` seconds earlier. With
    `keep` "first" it is the other way round: the clip's first frame, and those that follow. n is smaller than `frames`
    where the clip is too short. Scaled to cover the size and cropped around the centre, with
    rotation and pixel aspect as the file asks.

    Raises:
        MediaError: if `data` is not a clip, is damaged, holds no video, or is outside the limits.
    """
    kind = _kind(data, field)
    clip = (Clip if kind.what == "clip" else AnimatedPicture)(data, kind.name, field, limits)
    if keep == "last":
        indices = pick_last(clip.tail(span_s(fps, frames)), fps, frames)
    else:
        indices = pick_first(clip.tail(math.inf), fps, frames)
    fitted: dict[int, NDArray[np.uint8]] = {}
    chosen = sorted(set(indices))
    for index, (picture, pixel_aspect) in zip(chosen, clip.pictures(chosen), strict=True):
        fitted[index] = fit(picture, width, height, pixel_aspect)
    return np.stack([fitted[index] for index in indices])


def _kind(data: bytes, field: str) -> Kind:
    kind = sniff(data)
    if kind is None:
        raise MediaError(field, "is not a picture or clip that can be read; send JPEG, PNG or WebP, or MP4 or WebM")
    if kind.what == "unsupported":
        raise MediaError(field, f"is in {kind.name} format, which is not supported; send JPEG, PNG or WebP")
    return kind
