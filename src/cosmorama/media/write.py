"""From frames to a file, as they come, with the same bytes for the same frames.

Whatever depends on the moment or the machine is left out: creation times, writer versions, and the number of threads,
which changes what x264 produces and is therefore fixed.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import av
import numpy as np
from av.codec.context import Flags as CodecFlags
from av.container.core import Flags as ContainerFlags
from av.error import FFmpegError
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation, VideoReformatter
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from cosmorama.request import CODECS, Codec, Output

_THREADS = 4
_TASKS = Path("/proc/self/task")
_KEY_FRAME_EVERY_S = 2
_GIF_CLOCK = Fraction(1, 100)
_MAX_COMMENT = 60_000  # a JPEG's holds 65,533 bytes
_MAX_HEADER = 1 << 20
_PNG_COMPRESSION = 1  # a tenth larger than the default of 6, in a third of the time
_EXACT = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INP | Interpolation.ACCURATE_RND | Interpolation.BITEXACT


class Encoder(Protocol):
    """Writes frames to the path it was made with."""

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Add one frame, uint8 RGB `[H, W, 3]`, contiguous."""

    def close(self) -> None:
        """Finish the file."""


@dataclass(frozen=True, slots=True)
class _Tuning:
    encoder: str
    options: Callable[[int], dict[str, str]]
    """Encoder options for a quality from 1 to 9."""


# 121 frames of 1280x704 take a few seconds on two cores with each of these; quality 7 is visually lossless or close.
_TUNINGS: dict[Codec, _Tuning] = {
    "h264": _Tuning(
        "libx264",
        # With AVX-512, x264's macroblock-tree estimate is another one every time (seen with x264 165, 960 and
        # 192 wide); this leaves out the few routines whose results differ between processors.
        lambda quality: {"preset": "veryfast", "crf": str(39 - 3 * quality), "x264-params": "cpu-independent=1"},
    ),
    "vp9": _Tuning(
        "libvpx-vp9",
        lambda quality: {"deadline": "realtime", "cpu-used": "7", "tile-columns": "2", "crf": str(54 - 4 * quality)},
    ),
    "av1": _Tuning(
        "libsvtav1",
        lambda quality: {"preset": "8", "crf": str(55 - 4 * quality), "svtav1-params": f"lp={_THREADS}"},
    ),
}


class CodecEncoder:
    """H.264, VP9 or AV1 in MP4 or WebM: 4:2:0, BT.709, limited range, so tagged."""

    def __init__(
        self,
        path: Path,
        *,
        container: str,
        codec: Codec,
        quality: int,
        width: int,
        height: int,
        rate: Fraction,
        comment: str = "",
    ) -> None:
        if codec == "av1":
            # SVT-AV1 greets on standard error; it takes its log level (1: errors) from nowhere else.
            os.environ.setdefault("SVT_LOG", "1")
        tuning = _TUNINGS[codec]
        self._time_base = 1 / rate
        self._count = 0
        self._reformatter = VideoReformatter()
        options = {"movflags": "+faststart"} if container == "mp4" else {}
        # "file:" keeps a colon in the path from being read as a protocol.
        self._file = av.open(f"file:{path}", "w", format=container, options=options)
        self._file.flags |= ContainerFlags.bitexact.value
        if comment:
            self._file.metadata["comment"] = comment
        self._stream = self._file.add_stream(
            tuning.encoder, rate=rate, width=width, height=height, options=tuning.options(quality)
        )
        context = self._stream.codec_context
        context.pix_fmt = "yuv420p"
        context.time_base = self._time_base
        context.thread_count = _THREADS
        context.gop_size = max(1, round(_KEY_FRAME_EVERY_S * rate))
        context.flags |= CodecFlags.bitexact
        context.sample_aspect_ratio = Fraction(1)
        context.colorspace = Colorspace.ITU709
        context.color_range = ColorRange.MPEG
        context.color_primaries = ColorPrimaries.BT709
        context.color_trc = ColorTrc.BT709
        if codec == "av1":
            _open_at_usual_priority(context)

    def write(self, frame: NDArray[np.uint8]) -> None:
        converted = self._reformatter.reformat(
            VideoFrame.from_ndarray(frame, format="rgb24"),
            format="yuv420p",
            src_color_range=ColorRange.JPEG,
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            interpolation=_EXACT,
        )
        converted.color_primaries = ColorPrimaries.BT709
        converted.color_trc = ColorTrc.BT709
        converted.pts, converted.duration, converted.time_base = self._count, 1, self._time_base
        self._count += 1
        self._file.mux(self._stream.encode(converted))

    def close(self) -> None:
        try:
            if self._count:
                self._file.mux(self._stream.encode(None))
        finally:
            self._file.close()


def _open_at_usual_priority(context: VideoCodecContext) -> None:
    """Open SVT-AV1, which, as root, makes its threads and the calling one real-time ones (FIFO, 99) and leaves them so.

    What such threads do, and the processes that they begin, comes before all else on the machine.
    """
    policy = os.sched_getscheduler(0) if _TASKS.exists() else None
    context.open()
    if policy in (None, os.SCHED_FIFO, os.SCHED_RR):  # no Linux, or somebody wants it so
        return
    for task in os.listdir(_TASKS):
        with suppress(ProcessLookupError, PermissionError):
            if os.sched_getscheduler(int(task)) in (os.SCHED_FIFO, os.SCHED_RR):
                os.sched_setscheduler(int(task), os.SCHED_OTHER, os.sched_param(0))


class GifEncoder:
    """An endless GIF with a palette for each frame, so that no more than a frame is ever held."""

    def __init__(self, path: Path, *, width: int, height: int, rate: Fraction, comment: str = "") -> None:
        self._path, self._comment = path, comment.encode()
        self._ticks = 1 / (rate * _GIF_CLOCK)
        self._count = 0
        options = {"loop": "0", "final_delay": str(round(self._ticks))}
        self._file = av.open(f"file:{path}", "w", format="gif", options=options)
        self._file.flags |= ContainerFlags.bitexact.value
        self._stream = self._file.add_stream("gif", rate=1 / _GIF_CLOCK, width=width, height=height)
        self._stream.codec_context.pix_fmt = "pal8"
        self._stream.codec_context.time_base = _GIF_CLOCK

    def write(self, frame: NDArray[np.uint8]) -> None:
        picture = Image.fromarray(frame)
        # The palette is made from a smaller copy: dithering makes up for what it lacks, at a tenth of the time.
        palette = picture.reduce(4).quantize(256, method=Image.Quantize.FASTOCTREE)
        indexed = picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
        rgb = np.array(indexed.getpalette("RGB"), np.uint8).reshape(-1, 3)
        argb = np.zeros((256, 4), np.uint8)
        argb[:, 0] = 255
        argb[: len(rgb), 1:] = rgb
        planes: Any = (np.asarray(indexed), argb)  # a pair is taken for this format, though not by the type stub
        converted = VideoFrame.from_ndarray(planes, format="pal8")
        converted.pts, converted.time_base = round(self._count * self._ticks), _GIF_CLOCK
        self._count += 1
        self._file.mux(self._stream.encode(converted))

    def close(self) -> None:
        try:
            if self._count:
                self._file.mux(self._stream.encode(None))
        finally:
            self._file.close()
        if self._count and self._comment:
            self._write_comment()

    def _write_comment(self) -> None:
        """A comment extension before the trailer, which is the last byte (GIF89a, 24)."""
        parts = (self._comment[at : at + 255] for at in range(0, len(self._comment), 255))
        with self._path.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            trailer = file.read(1)
            file.seek(-1, os.SEEK_END)
            file.write(b"\x21\xfe" + b"".join(bytes([len(part)]) + part for part in parts) + b"\0" + trailer)


class JpegEncoder:
    """One picture, in JPEG."""

    def __init__(self, path: Path, *, quality: int, comment: str = "") -> None:
        self._path = path
        # 55 to 95 of JPEG's own scale; above 95 files grow and pictures do not get better. 0: no chroma subsampling.
        self._options: dict[str, Any] = {"quality": 50 + 5 * quality, "subsampling": 0 if quality >= 7 else 2}
        if comment:
            self._options["comment"] = comment.encode()
        self._count = 0

    def write(self, frame: NDArray[np.uint8]) -> None:
        self._count += 1
        if self._count > 1:
            raise ValueError("a JPEG file holds one frame; write a clip to another container")
        Image.fromarray(frame).save(self._path, "JPEG", **self._options)

    def close(self) -> None:
        pass


class PngEncoder:
    """Numbered PNG files in a ZIP archive: frame_00001.png and so on."""

    def __init__(self, path: Path, comment: str = "") -> None:
        self._count = 0
        self._info = PngInfo()
        if comment:
            self._info.add_itxt("Comment", comment)
        self._archive = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED)

    def write(self, frame: NDArray[np.uint8]) -> None:
        self._count += 1
        # The earliest time that ZIP can say, instead of now.
        entry = zipfile.ZipInfo(f"frame_{self._count:05}.png", (1980, 1, 1, 0, 0, 0))
        entry.external_attr = 0o644 << 16
        with self._archive.open(entry, "w") as file:
            Image.fromarray(frame).save(file, "PNG", compress_level=_PNG_COMPRESSION, pnginfo=self._info)

    def close(self) -> None:
        self._archive.close()


class TensorEncoder:
    """The frames as they are, `video` uint8 `[t, H, W, 3]`, with `frame_rate` and `action`, in a safetensors file.

    Its header is before the frames and says how many there are: it is written last, into more room than it needs.
    """

    def __init__(self, path: Path, *, width: int, height: int, rate: Fraction, comment: str = "") -> None:
        self.action = np.zeros((0, 0), np.float32)
        """Numbers `[steps, numbers]` that go with the frames; left out where there are none."""
        self._frame, self._rate, self._count = (height, width, 3), np.array(float(rate), np.float32), 0
        self._told = {"comment": comment, "frame_rate": str(float(rate))}
        self._room = len(json.dumps(self._told)) + 1024 & -8
        self._file = path.open("wb")
        self._file.seek(8 + self._room)

    def write(self, frame: NDArray[np.uint8]) -> None:
        self._count += 1
        self._file.write(frame.data)

    def close(self) -> None:
        with self._file as file:
            end = self._count * math.prod(self._frame)
            header: dict[str, Any] = {"__metadata__": self._told}
            header["video"] = {"dtype": "U8", "shape": [self._count, *self._frame], "data_offsets": [0, end]}
            for name, values in (("action", self.action), ("frame_rate", self._rate)):
                if values.size:
                    file.write(values.tobytes())
                    offsets = [end, end := end + values.nbytes]
                    header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": offsets}
            file.seek(0)
            text = json.dumps(header).encode().ljust(self._room)
            file.write(len(text).to_bytes(8, "little") + text)


class VideoWriter:
    """Writes frames to a file that appears at `path`, whole, when the writer is closed, and not before.

    The same frames give the same bytes. As a context manager it closes at the end, or discards after an exception.

    Args:
        path: Where the file will be. Replaced if it exists; its directory must exist.
        width, height: Size of the frames in pixels; even for MP4 and WebM, whose colour is stored at half the size.
        fps: Frames per second; rounded to a fraction with a denominator of at most 1001 (GIF: to 1/100 s per frame).
        output: Container, codec and quality.
        metadata: Written into the file as a JSON object, its comment (of numbered PNG frames, each one's), for
            `read_metadata`. Of values that together are too long for every format, the longest are cut.

    Raises:
        ValueError: if the size, rate, quality or combination of container and codec cannot be written.
        OSError: if the file cannot be written, here or later.
    """

    def __init__(
        self,
        path: Path,
        *,
        width: int,
        height: int,
        fps: float,
        output: Output,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        _check(width, height, fps, output)
        self._path = path
        self._shape = (height, width, 3)
        self._count = 0
        # Beside the target, so that it can be renamed into place in one step.
        self._partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        try:
            self._encoder: Encoder | None = _encoder(self._partial, width, height, fps, output, _comment(metadata))
        except BaseException:
            self._partial.unlink(missing_ok=True)
            raise

    def write(self, frames: NDArray[np.uint8]) -> None:
        """Add frames, uint8 RGB `[t, height, width, 3]`, t >= 0. After an exception, `discard` what there is.

        Raises:
            ValueError: if they have another shape or type, or the writer is closed.
        """
        if self._encoder is None:
            raise ValueError("the writer is closed")
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != self._shape:
            expected = ", ".join(str(side) for side in self._shape)
            raise ValueError(f"expected uint8 frames [t, {expected}], got {frames.dtype} {list(frames.shape)}")
        for frame in frames:
            self._encoder.write(np.ascontiguousarray(frame))
            self._count += 1

    def attach(self, action: Sequence[Sequence[float]] | None) -> None:
        """Put numbers `[steps][numbers]` that go with the frames into the file, if it is of tensors."""
        if action and isinstance(self._encoder, TensorEncoder):
            self._encoder.action = np.array(action, np.float32)

    def close(self) -> None:
        """Finish the file and put it in place. Does nothing the second time.

        Raises:
            ValueError: if no frame was written; there is no file then.
        """
        if self._encoder is None:
            return
        encoder, self._encoder = self._encoder, None
        try:
            encoder.close()
            if not self._count:
                raise ValueError("no frame was written")
            self._partial.replace(self._path)
        finally:
            self._partial.unlink(missing_ok=True)

    def discard(self) -> None:
        """Give up: nothing is left at `path` that was not there before. Does nothing after `close`. Raises nothing."""
        if self._encoder is None:
            return
        encoder, self._encoder = self._encoder, None
        # Closing writes an ending, for which the disk may be full and the folder gone.
        with suppress(Exception):
            encoder.close()
        with suppress(OSError):
            self._partial.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


def _check(width: int, height: int, fps: float, output: Output) -> None:
    if output.container not in CODECS:
        raise ValueError(f"container {output.container!r} is not one of {', '.join(CODECS)}")
    codecs = CODECS[output.container]
    if output.codec is not None and output.codec not in codecs:
        raise ValueError(f"codec {output.codec!r} cannot be written to {output.container}")
    if not 1 <= output.quality <= 9:
        raise ValueError(f"quality {output.quality} is not from 1 to 9")
    if not 0 < fps <= 240:
        raise ValueError(f"fps {fps} is not above 0 and at most 240")
    if width < 1 or height < 1:
        raise ValueError(f"size {width}x{height} has no pixels")
    if codecs and (width % 2 or height % 2):
        raise ValueError(f"size {width}x{height} must be even in both directions for {output.container}")


def _encoder(path: Path, width: int, height: int, fps: float, output: Output, comment: str) -> Encoder:
    rate = Fraction(fps).limit_denominator(1001)
    if output.container == "gif":
        return GifEncoder(path, width=width, height=height, rate=rate, comment=comment)
    if output.container == "png":
        return PngEncoder(path, comment)
    if output.container == "jpeg":
        return JpegEncoder(path, quality=output.quality, comment=comment)
    if output.container == "safetensors":
        return TensorEncoder(path, width=width, height=height, rate=rate, comment=comment)
    codec = output.codec or CODECS[output.container][0]
    return CodecEncoder(
        path,
        container=output.container,
        codec=codec,
        quality=output.quality,
        width=width,
        height=height,
        rate=rate,
        comment=comment,
    )


def _comment(metadata: Mapping[str, str] | None) -> str:
    """The same text for the same entries, short enough for every format."""
    if not metadata:
        return ""
    entries = dict(sorted(metadata.items()))
    while len((comment := json.dumps(entries, ensure_ascii=False, separators=(",", ":"))).encode()) > _MAX_COMMENT:
        longest = max(entries, key=lambda name: len(entries[name]))
        entries[longest] = entries[longest][: len(entries[longest]) // 2]
    return comment


def read_metadata(path: Path) -> dict[str, str]:
    """What `VideoWriter` was given as `metadata`; empty for files that have none, or are of others."""
    try:
        entries = json.loads(_read_comment(path) or "{}")
    except (OSError, ValueError, LookupError, SyntaxError, FFmpegError, zipfile.BadZipFile):
        return {}
    return {str(name): str(value) for name, value in entries.items()} if isinstance(entries, dict) else {}


def _read_comment(path: Path) -> str | bytes | None:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive, archive.open(archive.namelist()[0]) as file:
            return _picture_comment(file)
    with path.open("rb") as file:
        start = file.read(9)
        if start[8:] == b"{":  # safetensors
            header = json.loads(start[8:] + file.read(min(int.from_bytes(start[:8], "little"), _MAX_HEADER) - 1))
            return str(header["__metadata__"]["comment"])
    if start.startswith(b"GIF8"):
        return _gif_comment(path.read_bytes())
    if start.startswith((b"\x89PNG", b"\xff\xd8")):
        return _picture_comment(path)
    with av.open(f"file:{path}") as container:
        return next((value for name, value in container.metadata.items() if name.lower() == "comment"), None)


def _picture_comment(file: Any) -> str | bytes | None:
    with Image.open(file, formats=("PNG", "JPEG")) as picture:
        comment: str | bytes | None
        comment = picture.text.get("Comment") if isinstance(picture, PngImageFile) else picture.info.get("comment")
        return comment


def _gif_comment(data: bytes) -> bytes | None:
    """The comment at the end, which Pillow does not read."""
    start = len(data)
    while (start := data.rfind(b"\x21\xfe", 0, start)) >= 0:
        parts, at = [], start + 2
        while at < len(data) and data[at]:
            parts.append(data[at + 1 : at + 1 + data[at]])
            at += 1 + data[at]
        if data[at:] == b"\0\x3b":
            return b"".join(parts)
    return None
