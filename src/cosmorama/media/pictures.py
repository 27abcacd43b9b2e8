"""Pictures and animated pictures, read by Pillow as upright sRGB pictures."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction

import av
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from cosmorama.errors import MediaError
from cosmorama.media import color
from cosmorama.media.decode import Effort, MediaLimits, on_white

_ANIMATED = frozenset({"GIF", "WEBP", "PNG", "AVIF"})
_ANIMATION, _ALPHA = 0x02, 0x10
"""Flags of a WebP file's header."""
_SHORTEST_S = 0.02
_DEFAULT_S = 0.1
"""What browsers show a frame for that asks for less than the shortest duration."""
_USUAL_GAMMA = 0.45455
_DNG_VERSION = 50706
_VISIBLE = 3
"""Levels by which a conversion has to change a picture to be worth a word: most profiles are of sRGB itself."""


def read_picture(
    data: bytes, name: str, field: str, limits: MediaLimits, warnings: list[str] | None = None
) -> Image.Image:
    """The first frame of a picture of format `name`, upright, as displayed on white: mode RGB, 8 bits of sRGB.

    What was converted is appended to `warnings`.

    Raises:
        MediaError: if it is outside the limits (refused before decoding), damaged, or of an unsupported pixel type.
    """
    with _readable(field):
        try:
            if name == "TIFF":
                _check_tiff(data, field)
            picture = _open(data, name, field, limits)
        except UnidentifiedImageError:
            if name != "TIFF":
                raise
            return Image.fromarray(_of_floats(_float_tiff(data, field, limits), field, warnings))
        picture.load()
        return _to_rgb(ImageOps.exif_transpose(picture), field, _described(data, name), warnings)


class AnimatedPicture:
    """A GIF, WebP, APNG or AVIF with more than one frame, as a clip."""

    def __init__(
        self, data: bytes, name: str, field: str, limits: MediaLimits, warnings: list[str] | None = None
    ) -> None:
        """Raises MediaError if it cannot be opened, is outside the limits, or does not move."""
        self._data, self._name, self._field, self._limits, self._warnings = data, name, field, limits, warnings
        self._effort = Effort(field, limits)
        with _readable(field):
            picture = _open(data, name, field, limits)
            if name not in _ANIMATED or not getattr(picture, "is_animated", False):
                raise MediaError(field, "is a still picture, not a video; pass it where a picture is taken")

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

    def head(self, window_s: float) -> list[float]:
        """The same of the first frames, at least the first `window_s` seconds, where there are that."""
        return self.tail(window_s)

    def pictures(self, indices: Sequence[int]) -> Iterator[tuple[Image.Image, Fraction]]:
        """The frames of those ascending indices, as `read_picture` gives them, with their pixels' aspect: 1."""
        wanted = set(indices)
        described = _described(self._data, self._name)
        for index, picture in enumerate(self._frames()):
            if index in wanted:
                with _readable(self._field):
                    shown = _to_rgb(picture, self._field, described, self._warnings)
                yield shown, Fraction(1)
            if index >= indices[-1]:
                return

    def _frames(self) -> Iterator[Image.Image]:
        with _readable(self._field):
            picture = _open(self._data, self._name, self._field, self._limits)
        # The picture that an APNG shows where it does not move need not be part of what moves.
        index = first = 1 if self._name == "PNG" and picture.info.get("default_image") else 0
        composed = self._apng() if self._name == "PNG" else None
        while True:
            with _readable(self._field):
                try:
                    picture.seek(index)
                except EOFError:
                    return
                picture.load()
                shown = picture
                if composed is not None:
                    shown = Image.fromarray(next(composed).to_ndarray(format="rgba"))
                    shown.info = {name: value for name, value in picture.info.items() if name != "transparency"}
            yield shown
            index += 1
            self._effort.check(index - first)

    def _apng(self) -> Iterator[VideoFrame]:
        """Its frames as FFmpeg composes them: Pillow lays half-transparent ones over each other wrongly."""
        limit = {"max_pixels": str(self._limits.max_pixels)}
        with av.open(io.BytesIO(self._data), format="apng", options=limit) as container:
            yield from container.decode(video=0)


def _open(data: bytes, name: str, field: str, limits: MediaLimits) -> Image.Image:
    if name == "HEIF" and not _can_open_heif():
        raise MediaError(field, "is in HEIC format, which this server cannot read; send JPEG, PNG or WebP")
    if name == "WEBP" and data[12:16] == b"VP8X" and len(data) > 20 and data[20] & _ANIMATION:
        # Where no frame has been the canvas is transparent, even if the header tells of no transparency.
        data = data[:20] + bytes([data[20] | _ALPHA]) + data[21:]
    picture = Image.open(io.BytesIO(data), formats=(name,))
    limits.check_size(field, *picture.size)
    return picture


@functools.cache
def _can_open_heif() -> bool:
    try:
        import pi_heif
    except ImportError:
        return False
    pi_heif.register_heif_opener()
    return True


def _to_rgb(
    picture: Image.Image, field: str, described: tuple[int, int] | None, warnings: list[str] | None
) -> Image.Image:
    if picture.mode == "F":
        return Image.fromarray(_of_floats(np.asarray(picture)[..., None].repeat(3, -1), field, warnings))
    colors, alpha = _parted(picture)
    shown = colors.convert("RGB")
    profile, gamma = picture.info.get("icc_profile"), picture.info.get("gamma")
    words = ""
    if described is not None and color.needs_conversion(*described):
        words = color.conversion_words(*described)
        shown = Image.fromarray(color.to_srgb(np.asarray(shown, np.uint16) * np.uint16(257), *described))
    elif described is None and profile and colors.mode in ("L", "RGB", "CMYK"):
        words = "converted from its color profile to sRGB"
        shown = _of_profile(colors, profile)
    elif described is None and picture.info.get("srgb") is None:
        exponent = 1 / min(max(gamma, 0.1), 10) if gamma and abs(gamma - _USUAL_GAMMA) > 0.01 else None
        mixed = _chromaticities(picture)
        if _is_adobe_rgb(picture):
            words = "converted from Adobe RGB to sRGB"
            shown = Image.fromarray(color.from_power(np.asarray(shown), color.ADOBE_RGB_POWER, color.ADOBE_RGB))
        elif exponent or mixed:
            named = [f"a gamma of {gamma:g}"] if exponent else []
            words = f"converted from {' and '.join([*named, *(['other primaries'] if mixed else [])])} to sRGB"
            shown = Image.fromarray(color.from_power(np.asarray(shown), exponent, mixed))
    if words and _differ(colors.convert("RGB"), shown):
        _warn(warnings, f"{field} was {words}")
    if alpha is None or alpha.getextrema()[0] == 255:
        return shown
    _warn(warnings, f"{field} is transparent in places, which are shown on white")
    return on_white(shown, alpha)


def _parted(picture: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colors, of mode L, RGB or CMYK, and transparency, mode L."""
    if picture.mode.startswith("I"):
        # Pillow would clip these to 255; they hold 16 bits.
        values = np.asarray(picture).astype(np.float32)
        clear = picture.info.get("transparency")
        alpha = Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)) if isinstance(clear, int) else None
        return Image.fromarray(np.rint(values / 257).clip(0, 255).astype(np.uint8)), alpha
    alpha = picture.convert("RGBA").getchannel("A") if picture.has_transparency_data else None
    if picture.mode in ("1", "L", "LA", "La"):
        return (picture.getchannel(0) if len(picture.getbands()) > 1 else picture.convert("L")), alpha
    if picture.mode == "CMYK":
        return picture, alpha
    if picture.mode == "P":
        return picture.convert("RGBA" if alpha is not None else "RGB").convert("RGB"), alpha
    return picture.convert("RGB"), alpha


def _chromaticities(picture: Image.Image) -> color.Chromaticities | None:
    """What a PNG says that its pixels mix (cHRM), where that is something else than sRGB's."""
    white_x, white_y, *others = picture.info.get("chromaticity", (0.0, 0.0))
    mixed = (*zip(others[::2], others[1::2], strict=True), (white_x, white_y))
    return mixed if len(mixed) == 4 and color.are_others(mixed) else None


def _is_adobe_rgb(picture: Image.Image) -> bool:
    """Whether a camera says so by Exif's rules (DCF), which it does instead of a profile."""
    exif = picture.getexif()
    space = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.ColorSpace)
    index = str(exif.get_ifd(ExifTags.IFD.Interop).get(1))
    return space == 2 or (space == 0xFFFF and index.startswith("R03"))


def _of_profile(picture: Image.Image, profile: bytes) -> Image.Image:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        converted = None  # a damaged profile, or one for another kind of pixel; viewers ignore it too
    return converted or picture.convert("RGB")


def _differ(one: Image.Image, other: Image.Image) -> bool:
    size = (min(one.width, 64), min(one.height, 64))
    small = [np.asarray(picture.resize(size, Image.Resampling.NEAREST), np.int16) for picture in (one, other)]
    return bool(np.abs(small[0] - small[1]).max() >= _VISIBLE)


def _check_tiff(data: bytes, field: str) -> None:
    """Refuse by name what would come out with other colors than it has, or cannot be read."""
    tags, file = ImageFileDirectory_v2(data[:8]), io.BytesIO(data)
    file.seek(tags.next)
    tags.load(file)
    bits, kind, photometric = max(tags.get(258, (1,))), max(tags.get(339, (1,))), tags.get(262)
    if _DNG_VERSION in tags or tags.get(254, 0) & 1:
        raise MediaError(field, "is a camera's raw file, of which only its preview could be read; send JPEG or PNG")
    refused = {
        "CIE Lab": photometric in (8, 9, 10),
        f"{bits} bits per channel": bits not in (1, 2, 4, 8, 16, 32),
        "whole numbers of 32 bits": bits == 32 and kind == 1,
        "signed numbers": bits < 32 and kind == 2,
        "floating point of 16 bits": bits < 32 and kind == 3,
        "planes of more than 8 bits": bits > 8 and tags.get(284, 1) == 2,
        "16 bits of which 0 is white": bits == 16 and photometric == 0,
    }
    for what in (what for what, is_so in refused.items() if is_so):
        raise MediaError(
            field, f"stores its colors as {what}, which is not supported; send RGB or gray of 8 or 16 bits"
        )


def _float_tiff(data: bytes, field: str, limits: MediaLimits) -> NDArray[np.float32]:
    """A TIFF of floating-point RGB, which Pillow does not read: float32 `[H, W, 3]`."""
    with av.open(io.BytesIO(data), format="tiff_pipe", options={"max_pixels": str(limits.max_pixels)}) as container:
        context = container.streams.video[0].codec_context
        if not context.width:
            raise UnidentifiedImageError
        limits.check_size(field, context.width, context.height)
        frame = next(container.decode(video=0))
        if frame.format.name != "rgbf32le":
            raise MediaError(field, f"has pixels of a kind that is not supported ({frame.format.name})")
        [plane] = frame.planes
        rows = np.frombuffer(plane, np.float32).reshape(frame.height, plane.line_size // 4)
        return rows[:, : frame.width * 3].reshape(frame.height, frame.width, 3)


def _of_floats(values: NDArray[np.float32], field: str, warnings: list[str] | None) -> NDArray[np.uint8]:
    """Floating-point pixels as pictures of 8 bits have them: 0 to 1, or to 255 where any is above 1.5."""
    finite = np.nan_to_num(values, nan=0, posinf=0, neginf=0)
    largest = 255 if finite.max(initial=0) > 1.5 else 1
    _warn(warnings, f"{field} has floating-point pixels; they were taken as sRGB from 0 to {largest}")
    scaled: NDArray[np.uint8] = np.rint(finite * (255 / largest)).clip(0, 255).astype(np.uint8)
    return scaled


def _described(data: bytes, name: str) -> tuple[int, int] | None:
    """Primaries and transfer that the file names by code points (CICP); None where it does not."""
    if name == "PNG":
        at = 8
        while at + 12 <= len(data) and data[at + 4 : at + 8] not in (b"IDAT", b"IEND"):
            if data[at + 4 : at + 8] == b"cICP":
                return data[at + 8], data[at + 9]
            at += 12 + int.from_bytes(data[at : at + 4], "big")
    if name in ("AVIF", "HEIF"):
        head = data[: data.find(b"mdat")] if b"mdat" in data else data
        at = head.find(b"colrnclx")
        if at >= 0 and b"colrprof" not in head and b"colrrICC" not in head:
            return int.from_bytes(head[at + 8 : at + 10], "big"), int.from_bytes(head[at + 10 : at + 12], "big")
    return None


def _warn(warnings: list[str] | None, sentence: str) -> None:
    if warnings is not None and sentence not in warnings:
        warnings.append(sentence)


@contextmanager
def _readable(field: str) -> Iterator[None]:
    """Turn whatever a decoder raises on a damaged file into a MediaError."""
    try:
        yield
    except (MediaError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise MediaError(field, "has too many pixels; send a smaller picture", status=413) from None
    except UnidentifiedImageError:  # its words hold an address in memory
        raise MediaError(field, "is damaged or cut off and cannot be decoded") from None
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error and others
        raise MediaError(field, f"is damaged or cut off and cannot be decoded ({error})") from error
