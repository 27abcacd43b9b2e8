"""Pictures and animated pictures, read by Pillow as RGB."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction

import numpy as np
from PIL import Image, ImageCms, ImageOps

from cosmorama.errors import MediaError
from cosmorama.media.limits import Effort, MediaLimits

_FORMATS = {"JPEG": ("JPEG", "MPO")}  # an MPO starts like a JPEG; its further pictures are ignored
_ANIMATED = frozenset({"GIF", "WEBP", "PNG", "AVIF"})
_SHORTEST_S = 0.02
_DEFAULT_S = 0.1
"""What browsers show a frame for that asks for less than the shortest duration."""


def read_picture(data: bytes, name: str, field: str, limits: MediaLimits) -> Image.Image:
    """The first frame of a picture of format `name`, upright, as displayed on white: mode RGB, 8 bits.

    Raises:
        MediaError: if it is outside the limits (refused before decoding), damaged, or of an unsupported pixel type.
    """
    with _readable(field):
        picture = _open(data, name, field, limits)
        picture.load()
        return _to_rgb(ImageOps.exif_transpose(picture), field)


class AnimatedPicture:
    """A GIF, WebP, APNG or AVIF with more than one frame, as a clip."""

    def __init__(self, data: bytes, name: str, field: str, limits: MediaLimits) -> None:
        """Raises MediaError if it cannot be opened, is outside the limits, or does not move."""
        self._data, self._name, self._field, self._limits = data, name, field, limits
        self._effort = Effort(field, limits)
        with _readable(field):
            picture = _open(data, name, field, limits)
            if name not in _ANIMATED or not getattr(picture, "is_animated", False):
                raise MediaError(field, "is a still picture, not a video; pass it as 'image'")

    def tail(self, window_s: float) -> list[float]:
        """When each frame is shown, in seconds, ascending. All of them: such files cannot be entered in the middle."""
        del window_s
        times, now = [], 0.0
        for picture in self._frames():
            times.append(now)
            duration = picture.info.get("duration", 0) / 1000
            now += duration if duration >= _SHORTEST_S else _DEFAULT_S
            self._limits.check_duration(self._field, now)
        return times

    def pictures(self, indices: Sequence[int]) -> Iterator[tuple[Image.Image, Fraction]]:
        """The frames of those ascending indices, as `read_picture` gives them, with their pixels' aspect: 1."""
        wanted = set(indices)
        for index, picture in enumerate(self._frames()):
            if index in wanted:
                yield _to_rgb(picture, self._field), Fraction(1)
            if index >= indices[-1]:
                return

    def _frames(self) -> Iterator[Image.Image]:
        with _readable(self._field):
            picture = _open(self._data, self._name, self._field, self._limits)
        index = 0
        while True:
            with _readable(self._field):
                try:
                    picture.seek(index)
                except EOFError:
                    return
                picture.load()
            yield picture
            index += 1
            self._effort.check(index)


def _open(data: bytes, name: str, field: str, limits: MediaLimits) -> Image.Image:
    picture = Image.open(io.BytesIO(data), formats=_FORMATS.get(name, (name,)))
    limits.check_size(field, *picture.size)
    return picture


def _to_rgb(picture: Image.Image, field: str) -> Image.Image:
    if picture.mode == "F":
        raise MediaError(field, "has floating-point pixels; send 8 or 16 bits per channel")
    if picture.mode.startswith("I"):
        # Pillow would clip these to 255; they hold 16 bits.
        scaled = np.asarray(picture).astype(np.float32) / 257
        return Image.fromarray(np.rint(scaled).clip(0, 255).astype(np.uint8)).convert("RGB")
    profile = picture.info.get("icc_profile")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture).convert("RGB")
    if profile and picture.mode in ("RGB", "CMYK"):
        picture = _to_srgb(picture, profile)
    return picture.convert("RGB")


def _to_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return picture  # a damaged profile, or one for another kind of pixel; viewers ignore it too
    return converted or picture


@contextmanager
def _readable(field: str) -> Iterator[None]:
    """Turn whatever a decoder raises on a damaged file into a MediaError."""
    try:
        yield
    except (MediaError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise MediaError(field, "has too many pixels; send a smaller picture", status=413) from None
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error and others
        raise MediaError(field, f"is damaged or cut off and cannot be decoded ({error})") from error
