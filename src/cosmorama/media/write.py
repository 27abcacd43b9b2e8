"""From frames to a file, as they come."""

from __future__ import annotations

import secrets
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from cosmorama.media.encoders import CodecEncoder, Encoder, GifEncoder, JpegEncoder, PngEncoder
from cosmorama.request import CODECS, Container, Output

_FILES: dict[Container, tuple[str, str]] = {
    "mp4": (".mp4", "video/mp4"),
    "webm": (".webm", "video/webm"),
    "gif": (".gif", "image/gif"),
    "png": (".zip", "application/zip"),
    "jpeg": (".jpg", "image/jpeg"),
}


def suffix(output: Output) -> str:
    """The file name's end, with its dot: .mp4, .webm, .gif, .jpg, or .zip for numbered PNG frames."""
    return _FILES[output.container][0]


def mime_type(output: Output) -> str:
    """The media type of the file, as HTTP's Content-Type says it."""
    return _FILES[output.container][1]


class VideoWriter:
    """Writes frames to a file that appears at `path`, whole, when the writer is closed, and not before.

    The same frames give the same bytes. As a context manager it closes at the end, or discards after an exception.

    Args:
        path: Where the file will be. Replaced if it exists; its directory must exist.
        width, height: Size of the frames in pixels; even for MP4 and WebM, whose colour is stored at half the size.
        fps: Frames per second; rounded to a fraction with a denominator of at most 1001 (GIF: to 1/100 s per frame).
        output: Container, codec and quality.

    Raises:
        ValueError: if the size, rate, quality or combination of container and codec cannot be written.
        OSError: if the file cannot be written, here or later.
    """

    def __init__(self, path: Path, *, width: int, height: int, fps: float, output: Output) -> None:
        _check(width, height, fps, output)
        self._path = path
        self._shape = (height, width, 3)
        self._count = 0
        # Beside the target, so that it can be renamed into place in one step.
        self._partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        try:
            self._encoder: Encoder | None = _encoder(self._partial, width, height, fps, output)
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
        """Give up: nothing is left at `path` that was not there before. Does nothing after `close`."""
        if self._encoder is None:
            return
        encoder, self._encoder = self._encoder, None
        try:
            encoder.close()
        finally:
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


def _encoder(path: Path, width: int, height: int, fps: float, output: Output) -> Encoder:
    rate = Fraction(fps).limit_denominator(1001)
    if output.container == "gif":
        return GifEncoder(path, width=width, height=height, rate=rate)
    if output.container == "png":
        return PngEncoder(path)
    if output.container == "jpeg":
        return JpegEncoder(path, quality=output.quality)
    codec = output.codec or CODECS[output.container][0]
    return CodecEncoder(
        path,
        container=output.container,
        codec=codec,
        quality=output.quality,
        width=width,
        height=height,
        rate=rate,
    )
