"""Pictures and clips, decoded by Pillow and PyAV as upright RGB pictures, within limits."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Never, cast

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream
from PIL import Image, ImageCms, ImageOps

from cosmorama.errors import MediaError


@dataclass(frozen=True)
class MediaLimits:
    """Limits on what is decoded, checked before or while decoding, never after.

    Attributes:
        max_pixels: Largest picture or frame, width x height.
        min_side: Smallest width or height in pixels.
        max_duration_s: Longest clip in seconds.
        max_frames: Most frames decoded for one clip; one that is read twice counts twice.
        max_decode_s: Longest time spent on decoding one clip, in seconds.
    """

    max_pixels: int = 50_000_000
    min_side: int = 16
    max_duration_s: float = 600
    max_frames: int = 40_000
    max_decode_s: float = 120

    def check_size(self, field: str, width: int, height: int) -> None:
        """Refuse a picture or frame that is too large or too small.

        Raises:
            MediaError: with status 413 if it is too large.
        """
        if width * height > self.max_pixels:
            message = f"is {width}x{height}; send at most {self.max_pixels:,} pixels"
            raise MediaError(field, message, status=413)
        if min(width, height) < self.min_side:
            raise MediaError(field, f"is {width}x{height}; send at least {self.min_side} pixels on each side")

    def check_duration(self, field: str, duration_s: float) -> None:
        """Refuse a clip that is too long.

        Raises:
            MediaError: with status 413.
        """
        if duration_s > self.max_duration_s:
            message = f"lasts {duration_s:.0f} s; send at most {self.max_duration_s:g} s, ending where to continue from"
            raise MediaError(field, message, status=413)


class Effort:
    """Counts what has been spent on one clip."""

    def __init__(self, field: str, limits: MediaLimits) -> None:
        self._field = field
        self._limits = limits
        self._ends_at_s = time.monotonic() + limits.max_decode_s

    def check(self, frames: int) -> None:
        """Refuse to go on after `frames` frames or too long a time.

        Raises:
            MediaError: with status 413.
        """
        if frames > self._limits.max_frames:
            message = f"has more than {self._limits.max_frames:,} frames; send its last part only"
            raise MediaError(self._field, message, status=413)
        if time.monotonic() > self._ends_at_s:
            message = f"takes more than {self._limits.max_decode_s:g} s to decode; send a shorter or smaller clip"
            raise MediaError(self._field, message, status=413)


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


_MARGIN_S = 0.5
"""Enter the clip this much before the part wanted: durations in containers are often a little off."""
_KNOWN_MATRICES = frozenset({1, 4, 5, 6, 7, 9})  # AVCOL_SPC_BT709, FCC, BT470BG, SMPTE170M, SMPTE240M, BT2020_NCL
_SCALING = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
_NOT_A_CLIP = Disposition.attached_pic | Disposition.still_image
_PLAUSIBLE_ASPECTS = (Fraction(1, 8), Fraction(8))


class Clip:
    """The video track of a file, entered as near to its end as the file allows.

    The file is read twice: once for the times of the frames, once for the few frames chosen, so that no more than one
    decoded frame is held whatever the clip's size, rate and distance between key frames.
    """

    def __init__(self, data: bytes, demuxer: str, field: str, limits: MediaLimits) -> None:
        self._data, self._demuxer, self._field, self._limits = data, demuxer, field, limits
        self._effort = Effort(field, limits)
        self._decoded = 0
        self._entry_s: float | None = None

    def tail(self, window_s: float) -> list[float]:
        """Times in seconds, ascending, of the last frames: at least the last `window_s` seconds, where there are that.

        Raises:
            MediaError: if nothing can be decoded or the clip is outside the limits.
        """
        self._entry_s = self._entry_point(window_s)
        times = [time for time, _ in self._frames()]
        if self._entry_s is not None and not (times and times[0] <= times[-1] - window_s):
            # The file cannot be entered there, or ends earlier than it says.
            self._entry_s = None
            times = [time for time, _ in self._frames()]
        if not times:
            raise MediaError(self._field, "holds no frame that can be decoded; send it as MP4 with H.264")
        return times

    def pictures(self, indices: Sequence[int]) -> Iterator[tuple[Image.Image, Fraction]]:
        """The frames of those ascending indices into the last `tail`: RGB, upright, with their pixels' aspect."""
        wanted = set(indices)
        with self._opened() as (_, stream):
            stored_aspect = _pixel_aspect(stream)
        for index, (_, frame) in enumerate(self._frames()):
            if index in wanted:
                picture, transposed = _upright(frame, self._rgb(frame))
                yield picture, 1 / stored_aspect if transposed else stored_aspect
            if index >= indices[-1]:
                return
        raise MediaError(self._field, "is damaged: it decodes differently each time; encode it again")

    def _entry_point(self, window_s: float) -> float | None:
        """Where to start decoding, in seconds on the stream's clock; None for the start."""
        with self._opened() as (container, stream):
            self._check_complete(stream)
            duration = _duration_s(container, stream)
            if duration is None:
                return None
            self._limits.check_duration(self._field, duration)
            skip = duration - window_s - _MARGIN_S
            start = float(stream.start_time * stream.time_base) if stream.start_time and stream.time_base else 0.0
            return start + skip if skip > 0 else None

    def _check_complete(self, stream: VideoStream) -> None:
        """Refuse a file whose own index names frames past its end: what is missing is what would be continued."""
        if self._demuxer != "mov":  # the only index here with exact places
            return
        end = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
        if end > len(self._data):
            raise MediaError(self._field, f"is cut off: {len(self._data)} of at least {end} bytes; send the whole file")

    def _frames(self) -> Iterator[tuple[float, VideoFrame]]:
        """Decoded frames with their times, which always ascend."""
        with self._opened() as (container, stream):
            if self._entry_s is not None and stream.time_base:
                try:
                    container.seek(int(self._entry_s / stream.time_base), stream=stream)
                except FFmpegError:
                    return
            step = float(1 / stream.average_rate) if stream.average_rate else 1 / 25
            first: float | None = None
            now = 0.0
            for frame in self._decode(container, stream):
                time = frame.time
                # Damaged or spliced files repeat times, go back or have none; such frames follow at the usual pace.
                now = time if time is not None and (first is None or time > now) else now + step
                first = now if first is None else first
                self._limits.check_duration(self._field, now - first)
                yield now, frame

    def _decode(self, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except FFmpegError:
                packet = None  # cut off; what came before is good
            if packet is None:
                return
            try:
                frames = packet.decode()
            except FFmpegError:
                continue
            for frame in frames:
                self._decoded += 1
                self._effort.check(self._decoded)
                self._limits.check_size(self._field, frame.width, frame.height)
                if not frame.is_corrupt:
                    yield frame

    def _rgb(self, frame: VideoFrame) -> Image.Image:
        matrix = None
        if not frame.format.is_rgb and frame.colorspace not in _KNOWN_MATRICES:
            # Untagged: what every player assumes.
            high_definition = frame.height >= 720 or frame.width >= 1280
            matrix = Colorspace.ITU709 if high_definition else Colorspace.ITU601
        try:
            rgb = VideoReformatter().reformat(frame, format="rgb24", src_colorspace=matrix, interpolation=_SCALING)
        except (FFmpegError, ValueError) as error:
            raise MediaError(
                self._field, f"has pixels of a kind that is not supported ({frame.format.name})"
            ) from error
        return Image.fromarray(rgb.to_ndarray())

    @contextmanager
    def _opened(self) -> Iterator[tuple[InputContainer, VideoStream]]:
        # The limit is also given to the decoder, which then refuses before it allocates.
        options = {"max_pixels": str(self._limits.max_pixels)}
        try:
            container = av.open(
                io.BytesIO(self._data),
                "r",
                format=self._demuxer,
                options=options,
                metadata_errors="ignore",
                io_open=_refuse_to_open,
            )
        except (FFmpegError, ValueError, OSError) as error:
            raise MediaError(self._field, "is damaged or cut off: its header cannot be read") from error
        with container:
            stream = _video_stream(container, self._field)
            if stream.codec_context.width:  # some formats tell only once decoded
                self._limits.check_size(self._field, stream.codec_context.width, stream.codec_context.height)
            stream.codec_context.options = options
            stream.thread_type = "AUTO"
            yield container, stream


def _refuse_to_open(url: str, flags: int, options: dict[str, str]) -> Never:
    """Called when a file asks for another file or host."""
    raise PermissionError("a clip may not refer to other files")


def _video_stream(container: InputContainer, field: str) -> VideoStream:
    streams = [stream for stream in container.streams.video if not stream.disposition & _NOT_A_CLIP]
    if not streams:
        raise MediaError(field, "has no video track")
    chosen = max(streams, key=lambda stream: bool(stream.disposition & Disposition.default))
    if chosen.codec_context is None:
        raise MediaError(field, "is encoded in a way that cannot be decoded; send it as MP4 with H.264")
    return chosen


def _duration_s(container: InputContainer, stream: VideoStream) -> float | None:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else None


def _pixel_aspect(stream: VideoStream) -> Fraction:
    aspect = stream.sample_aspect_ratio
    low, high = _PLAUSIBLE_ASPECTS
    return aspect if aspect and low <= aspect <= high else Fraction(1)


def _upright(frame: VideoFrame, picture: Image.Image) -> tuple[Image.Image, bool]:
    """The picture turned and mirrored as its display matrix asks, and whether its sides changed places."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return picture, False
    # x' = a x + c y, y' = b x + d y, as 16.16 fixed point; only the nearest of the eight right-angled ones is honoured.
    a, b, _, c, d, *_ = (int(value) for value in np.frombuffer(cast(bytes, matrix), np.int32))
    transposed = abs(a) + abs(d) < abs(b) + abs(c)
    if transposed:
        picture = picture.transpose(Image.Transpose.TRANSPOSE)
    across, down = (c, b) if transposed else (a, d)
    if across < 0:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if down < 0:
        picture = picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return picture, transposed
