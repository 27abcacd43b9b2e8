"""Pictures that stand for a clip: one frame, or a sheet of many."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import av
from av.error import FFmpegError
from PIL import Image
from safetensors import SafetensorError, safe_open

from cosmorama.errors import MediaError
from cosmorama.media.source import FILES

THUMBNAIL_PX = 512
SHEET_COLUMNS, SHEET_ROWS = 4, 4
CELL_PX = 240
"""Longer side of a cell of the sheet."""


def thumbnail(clip: Path) -> bytes:
    """The first frame of a clip or picture file, scaled so that its longer side is at most 512 pixels: WebP.

    Raises:
        MediaError: the file holds no picture that can be read.
    """
    [frame] = _frames(clip, 1, THUMBNAIL_PX)
    return _encoded(frame, "WEBP")


def spritesheet(clip: Path) -> bytes:
    """Sixteen moments of a clip, evenly spaced from its first frame to its last, in four rows: JPEG.

    Raises:
        MediaError: the file holds no picture that can be read.
    """
    frames = _frames(clip, SHEET_COLUMNS * SHEET_ROWS, CELL_PX)
    width, height = frames[0].size
    sheet = Image.new("RGB", (width * SHEET_COLUMNS, height * SHEET_ROWS))
    for index, frame in enumerate(frames):
        sheet.paste(frame, (index % SHEET_COLUMNS * width, index // SHEET_COLUMNS * height))
    return _encoded(sheet, "JPEG")


def _frames(clip: Path, wanted: int, longest_px: int) -> list[Image.Image]:
    small = []
    try:
        # Kept small as they come, so that a long clip is not held at its full size.
        for picture in _pictures(clip):
            picture.thumbnail((longest_px, longest_px))
            small.append(picture)
            if wanted == 1:
                break
    except (FFmpegError, OSError, ValueError, LookupError, SafetensorError) as error:
        raise MediaError("variant", "cannot be made of this file: it is no clip or picture") from error
    if not small:
        raise MediaError("variant", "cannot be made of this file: it holds no frame")
    last = len(small) - 1
    return [small[round(index * last / max(wanted - 1, 1))] for index in range(wanted)]


def _pictures(clip: Path) -> Iterator[Image.Image]:
    """The frames of a file that `VideoWriter` may have written."""
    if zipfile.is_zipfile(clip):
        with zipfile.ZipFile(clip) as archive:
            for name in archive.namelist():
                with archive.open(name) as file:
                    yield Image.open(file).convert("RGB")
    elif clip.suffix == FILES["safetensors"][0]:
        with safe_open(clip, "numpy") as tensors:
            frames = tensors.get_slice("video")
            for index in range(frames.get_shape()[0]):
                yield Image.fromarray(frames[index])
    else:
        with av.open(f"file:{clip}") as container:
            for frame in container.decode(video=0):
                yield frame.to_image()


def _encoded(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=85)
    return buffer.getvalue()
