"""Video files, decoded by PyAV as upright sRGB pictures of square pixels' shape, within limits."""

from __future__ import annotations

import io
import math
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Never, cast

import av
import numpy as np
from av.codec.context import CodecContext
from av.container import InputContainer
from av.error import FFmpegError
from av.filter import Graph
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image

from cosmorama.errors import MediaError
from cosmorama.media import color
from cosmorama.media.sniff import aperture, reach


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


_MARGIN_S = 0.5
"""Enter the clip this much before the part wanted: durations in containers are often a little off."""
_KNOWN_MATRICES = frozenset({1, 4, 5, 6, 7, 9})  # AVCOL_SPC_BT709, FCC, BT470BG, SMPTE170M, SMPTE240M, BT2020_NCL
_SCALING = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
_NOT_A_CLIP = Disposition.attached_pic | Disposition.still_image
_REFUSED_MATRICES = {8: "YCgCo", 10: "BT.2020 of constant luminance", 14: "ICtCp", 15: "IPT (Dolby Vision)"}
_BT2020_MATRIX = 9
_CLOCKS_JUMP = frozenset({"mpegts", "mpeg"})
_JUMP_S = 10.0
"""A frame that comes so much later than the one before is of another clock, in formats that are made to be spliced."""
_LOST_S = 1.0
"""How much of a clip's end may be left out because it cannot be decoded."""
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
_MAX_THREADS = 4
_PLAUSIBLE_ASPECTS = (Fraction(1, 8), Fraction(8))


class Clip:
    """The video track of a file, entered as near to its end as the file allows.

    The file is read twice: once for the times of the frames, once for the few frames chosen, so that no more than one
    decoded frame is held whatever the clip's size, rate and distance between key frames.
    """

    def __init__(
        self, data: bytes, demuxer: str, field: str, limits: MediaLimits, warnings: list[str] | None = None
    ) -> None:
        self._data, self._demuxer, self._field, self._limits = data, demuxer, field, limits
        self._warnings = [] if warnings is None else warnings
        self._effort = Effort(field, limits)
        self._decoded = 0
        self._entry_s: float | None = None
        self._interlaced = False
        self._last_packet_s = 0.0

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
        if window_s < math.inf and self._last_packet_s > times[-1] + _LOST_S:
            lost = self._last_packet_s - times[-1]
            raise MediaError(self._field, f"is damaged: its last {lost:.1f} s cannot be decoded; encode it again")
        return times

    def head(self, window_s: float) -> list[float]:
        """The same of the first frames; nothing behind them is decoded."""
        self._entry_point(math.inf)
        self._entry_s = None
        times: list[float] = []
        for moment, _ in self._frames():
            times.append(moment)
            if moment >= times[0] + window_s:
                break
        if not times:
            raise MediaError(self._field, "holds no frame that can be decoded; send it as MP4 with H.264")
        return times

    @property
    def rate(self) -> float | None:
        """Frames per second on average, as the file says; None if it does not."""
        with self._opened() as (_, stream, _):
            return float(stream.average_rate) if stream.average_rate else None

    def pictures(self, indices: Sequence[int]) -> Iterator[tuple[Image.Image, Fraction]]:
        """The frames of those ascending indices into the last `tail`: RGB, upright, with their pixels' aspect.

        Fields of interlaced frames become whole frames, colors sRGB, and what is transparent is shown on white.
        """
        wanted = set(indices)
        with self._opened() as (_, stream, _):
            stored_aspect = _pixel_aspect(stream)
        frames: Iterator[VideoFrame] = (frame for _, frame in self._frames())
        if self._interlaced:
            frames = self._deinterlaced(frames)
            self._warn("was deinterlaced")
        for index, frame in enumerate(frames):
            if index in wanted:
                picture = self._rgb(frame)
                if box := aperture(self._data, self._demuxer, *picture.size):
                    self._warn(f"of {picture.width}x{picture.height} was cut to the part that it says is shown: {box}")
                    picture = picture.crop(box)
                picture, transposed = _upright(frame, picture)
                yield picture, 1 / stored_aspect if transposed else stored_aspect
            if index >= indices[-1]:
                return
        raise MediaError(self._field, "is damaged: it decodes differently each time; encode it again")

    def _warn(self, what: str) -> None:
        sentence = f"{self._field} {what}"
        if sentence not in self._warnings:
            self._warnings.append(sentence)

    def _entry_point(self, window_s: float) -> float | None:
        """Where to start decoding, in seconds on the stream's clock; None for the start."""
        with self._opened() as (container, stream, _):
            self._check_complete(stream)
            duration = _duration_s(container, stream)
            if duration is None:
                return None
            if self._demuxer in _CLOCKS_JUMP and duration > self._limits.max_duration_s:
                return None  # perhaps only its clock jumps; frames are counted while they are decoded
            self._limits.check_duration(self._field, duration)
            skip = duration - window_s - _MARGIN_S
            start = float(stream.start_time * stream.time_base) if stream.start_time and stream.time_base else 0.0
            return start + skip if skip > 0 else None

    def _check_complete(self, stream: VideoStream) -> None:
        """Refuse a file that is shorter than it says itself: what is missing is what would be continued."""
        end = reach(self._data, self._demuxer)
        if self._demuxer == "mov":  # the only index here with exact places
            end = max((entry.pos + entry.size for entry in stream.index_entries), default=end)
        self._check_length(end)

    def _check_length(self, end: int) -> None:
        if end > len(self._data):
            raise MediaError(self._field, f"is cut off: {len(self._data)} of at least {end} bytes; send the whole file")

    def _frames(self) -> Iterator[tuple[float, VideoFrame]]:
        """Decoded frames with their times, which always ascend."""
        with self._opened() as (container, stream, decoder):
            if self._entry_s is not None and stream.time_base:
                try:
                    container.seek(int(self._entry_s / stream.time_base), stream=stream)
                except FFmpegError:
                    return
            step = float(1 / stream.average_rate) if stream.average_rate else 1 / 25
            first: float | None = None
            now = shift = 0.0
            self._last_packet_s = -math.inf
            for frame in self._decode(container, stream, decoder):
                time = None if frame.time is None else frame.time + shift
                if time is not None and first is not None and self._demuxer in _CLOCKS_JUMP and time - now > _JUMP_S:
                    # Spliced from recordings of several clocks.
                    shift += now + step - time
                    time = now + step
                # Damaged or spliced files repeat times, go back or have none; such frames follow at the usual pace.
                now = time if time is not None and (first is None or time > now) else now + step
                first = now if first is None else first
                self._limits.check_duration(self._field, now - first)
                self._interlaced = self._interlaced or frame.interlaced_frame
                yield now, frame
            if shift:
                self._last_packet_s = -math.inf

    def _decode(
        self, container: InputContainer, stream: VideoStream, decoder: VideoCodecContext
    ) -> Iterator[VideoFrame]:
        packets = container.demux(stream)
        while True:
            self._effort.check(self._decoded)
            try:
                packet = next(packets, None)
            except FFmpegError:
                packet = None  # what came before is good; whether much is missing is seen from the file's length
            except Exception as error:  # IndexError and others, out of damaged files
                raise MediaError(self._field, "is damaged and cannot be decoded; encode it again") from error
            if packet is None:
                return
            if packet.pts is not None and packet.time_base and not packet.is_discard:
                self._last_packet_s = max(self._last_packet_s, float(packet.pts * packet.time_base))
            try:
                frames = decoder.decode(packet)
            except FFmpegError:
                continue
            except Exception as error:
                raise MediaError(self._field, "is damaged and cannot be decoded; encode it again") from error
            for frame in frames:
                self._decoded += 1
                self._effort.check(self._decoded)
                self._limits.check_size(self._field, frame.width, frame.height)
                if not frame.is_corrupt:
                    yield frame

    def _deinterlaced(self, frames: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
        """As many frames; those that are flagged as two fields become whole ones, of their first's moment."""
        graph: Graph | None = None
        shape: tuple[str, int, int] | None = None
        times: deque[tuple[int | None, Fraction | None]] = deque()

        def pulled() -> Iterator[VideoFrame]:
            assert graph is not None
            while times:
                try:
                    made = graph.vpull()
                except (BlockingIOError, EOFError):  # it looks one frame ahead
                    return
                made.pts, made.time_base = times.popleft()
                yield made

        for index, frame in enumerate(frames):
            if shape != (frame.format.name, frame.width, frame.height):
                if graph is not None:
                    graph.vpush(None)
                    yield from pulled()
                shape = (frame.format.name, frame.width, frame.height)
                graph = _deinterlacer(frame)
            assert graph is not None
            times.append((frame.pts, frame.time_base))
            frame.pts, frame.time_base = index, Fraction(1, 25)
            try:
                graph.vpush(frame)
            except (FFmpegError, ValueError) as error:
                raise MediaError(self._field, "is interlaced in a way that is not supported; deinterlace it") from error
            yield from pulled()
        if graph is not None:
            graph.vpush(None)
            yield from pulled()

    def _rgb(self, frame: VideoFrame) -> Image.Image:
        name, matrix = frame.format.name, None
        primaries, transfer = int(frame.color_primaries), int(frame.color_trc)
        if unknown := color.refused(primaries, transfer):
            raise MediaError(self._field, f"stores its colors as {unknown}, which is not supported; send BT.709")
        if not frame.format.is_rgb:
            if frame.colorspace in _REFUSED_MATRICES:
                stored = _REFUSED_MATRICES[frame.colorspace]
                raise MediaError(self._field, f"stores its colors as {stored}, which is not supported; send BT.709")
            if frame.colorspace not in _KNOWN_MATRICES:
                # Untagged: what every player assumes.
                high_definition = frame.height >= 720 or frame.width >= 1280
                wide = frame.color_primaries == color.BT2020
                matrix = (
                    (Colorspace.ITU709 if high_definition else Colorspace.ITU601)
                    if not wide
                    else Colorspace(_BT2020_MATRIX)
                )
        converted = color.needs_conversion(primaries, transfer)
        transparent = any(component.is_alpha for component in frame.format.components)
        target = {(False, False): "rgb24", (False, True): "rgba", (True, False): "rgb48le", (True, True): "rgba64le"}
        try:
            rgb = VideoReformatter().reformat(
                frame, format=target[converted, transparent], src_colorspace=matrix, interpolation=_SCALING
            )
            pixels: NDArray[Any] = rgb.to_ndarray()
        except (FFmpegError, ValueError) as error:
            raise MediaError(self._field, f"has pixels of a kind that is not supported ({name})") from error
        alpha = pixels[..., 3] if transparent else None
        pixels = pixels[..., :3]
        if converted:
            self._warn(f"was {color.conversion_words(primaries, transfer)}")
            pixels = color.to_srgb(pixels, primaries, transfer)
            alpha = None if alpha is None else (alpha >> 8).astype(np.uint8)
        if alpha is not None and alpha.min() < 255:
            self._warn("is transparent in places, which are shown on white")
            return on_white(Image.fromarray(np.ascontiguousarray(pixels)), Image.fromarray(alpha))
        return Image.fromarray(np.ascontiguousarray(pixels))

    @contextmanager
    def _opened(self) -> Iterator[tuple[InputContainer, VideoStream, VideoCodecContext]]:
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
        except MemoryError as error:
            if not isinstance(error, FFmpegError):
                raise
            why = "asks for more memory than there is: its header is damaged, or it is too large"
            raise MediaError(self._field, why) from error
        except Exception as error:  # FFmpegError, and what damaged files make PyAV raise
            raise MediaError(self._field, "is damaged or cut off: its header cannot be read") from error
        with container:
            if not any(track.codec_context for track in container.streams.video):  # what describes it may be missing
                self._check_length(reach(self._data, self._demuxer))
            stream = _video_stream(container, self._field)
            if stream.codec_context.width:  # some formats tell only once decoded
                self._limits.check_size(self._field, stream.codec_context.width, stream.codec_context.height)
            decoder = _decoder_of(stream)
            decoder.options = options
            decoder.thread_type = "AUTO"
            decoder.thread_count = min(os.cpu_count() or 1, _MAX_THREADS)  # each holds a frame
            yield container, stream, decoder


def _decoder_of(stream: VideoStream) -> VideoCodecContext:
    """The stream's own decoder, except where that one leaves transparency out."""
    tags = {name.lower(): value for name, value in stream.metadata.items()}
    if tags.get("alpha_mode") == "1" and stream.codec_context.name in _ALPHA_DECODERS:
        return cast(VideoCodecContext, CodecContext.create(_ALPHA_DECODERS[stream.codec_context.name], "r"))
    return stream.codec_context


def _deinterlacer(frame: VideoFrame) -> Graph:
    """A filter graph for frames like this one: Bob Weaver with w3fdif and yadif, for flagged frames only."""
    graph = Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 25))
    graph.link_nodes(
        source, graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink")
    ).configure()
    return graph


def on_white(picture: Image.Image, alpha: Image.Image) -> Image.Image:
    """An RGB picture as it is seen through its transparency, mode L, on white."""
    return Image.composite(picture, Image.new("RGB", picture.size, "white"), alpha)


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
    if not container.duration:
        return None
    # Recorders of Matroska that keep the time of day tell the end by it, too.
    start = max(container.start_time or 0, 0)
    return float((container.duration - (start if start < container.duration else 0)) / av.time_base)


def _pixel_aspect(stream: VideoStream) -> Fraction:
    aspect = stream.sample_aspect_ratio
    low, high = _PLAUSIBLE_ASPECTS
    return aspect if aspect and low <= aspect <= high else Fraction(1)


def _upright(frame: VideoFrame, picture: Image.Image) -> tuple[Image.Image, bool]:
    """The picture turned and mirrored as its display matrix asks, and whether its sides changed places."""
    # x' = a x + c y, y' = b x + d y, in any scale; only the nearest of the eight right-angled ones is honoured.
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
        if matrix is None:
            return picture, False
        a, b, _, c, d, *_ = (float(value) for value in np.frombuffer(cast(bytes, matrix), np.int32))
    except ValueError:
        # Beside it are data of kinds that PyAV does not know (views of spatial clips, EXIF); it still tells the turn.
        turn = math.radians(frame.rotation)
        a, b, c, d = math.cos(turn), -math.sin(turn), math.sin(turn), math.cos(turn)
    transposed = abs(a) + abs(d) < abs(b) + abs(c)
    if transposed:
        picture = picture.transpose(Image.Transpose.TRANSPOSE)
    across, down = (c, b) if transposed else (a, d)
    if across < 0:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if down < 0:
        picture = picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return picture, transposed
