"""Clips side by side in one file, under the values that made them: an MP4 that plays them in step, or a PNG."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Literal

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cosmorama.errors import MediaError
from cosmorama.media.write import VideoWriter
from cosmorama.request import Output

WIDEST_PX, HIGHEST_PX = 3840, 2160
WIDEST_CELL_PX = 640
MAX_FRAMES = 2000
_GAP, _LINE, _SIDE, _FONT = 8, 28, 150, 15
_PAPER, _INK, _WELL = (17, 20, 19), (236, 235, 229), (34, 40, 39)


@dataclass(frozen=True, slots=True)
class Sheet:
    """What goes on a sheet.

    Attributes:
        rows: The clips of each row from left to right; None leaves a cell empty.
        columns, row_titles: What is written above the columns and before the rows; none: nothing.
    """

    rows: Sequence[Sequence[Path | None]]
    columns: Sequence[str] = ()
    row_titles: Sequence[str] = ()


def write_sheet(sheet: Sheet, output: Path, *, format: Literal["mp4", "png"], frame: int | None = None) -> None:
    """Write a sheet to a file.

    Args:
        sheet: At least one of its clips is there.
        output: Where to.
        format: `mp4` plays all in step by time, as long as the longest clip; a shorter one stands still at its end.
        frame: For `png`: which frame, from 0; None: the middle one.

    Raises:
        MediaError: a clip cannot be read, or none is there, or the folder of `output` was removed meanwhile.
    """
    with ExitStack() as stack:
        cells = [[None if path is None else stack.enter_context(_Cell(path)) for path in row] for row in sheet.rows]
        held = [cell for row in cells for cell in row if cell is not None]
        if not held:
            raise MediaError("rows", "holds no clip")
        fps = max(cell.fps for cell in held)
        frames = min(max(round(cell.frames * fps / cell.fps) for cell in held), MAX_FRAMES)
        page = _Page(sheet, cells, held[0])
        if format == "png":
            at = frames // 2 if frame is None else min(max(frame, 0), frames - 1)
            page.paint(at / fps).save(output, "PNG", optimize=True)
            return
        writer = VideoWriter(output, width=page.width, height=page.height, fps=fps, output=Output(quality=7))
        with writer:
            for at in range(frames):
                if not output.parent.exists():  # who wanted it has gone, and its folder with it
                    raise MediaError("rows", "is wanted by nobody any more")
                writer.write(np.asarray(page.paint(at / fps))[None])


class _Cell:
    """A clip that is read forwards: `at(time_s)` is the frame that is shown then."""

    def __init__(self, path: Path) -> None:
        try:
            self._container = av.open(f"file:{path}")
            self._stream = self._container.streams.video[0]
        except (FFmpegError, IndexError) as error:
            raise MediaError("rows", f"{path.name} is no clip or picture that can be read") from error
        self._stream.thread_type = "AUTO"
        self.fps = float(self._stream.average_rate or 24)
        self.frames = self._stream.frames or 1
        self.width, self.height = self._stream.width, self._stream.height
        self._decoded = self._container.decode(self._stream)
        self._index = -1
        self._shown: Image.Image | None = None

    def __enter__(self) -> _Cell:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def at(self, time_s: float, size: tuple[int, int]) -> Image.Image | None:
        wanted = int(time_s * self.fps + 1e-6)
        found: NDArray[np.uint8] | None = None
        try:
            while self._index < wanted:
                frame = next(self._decoded)
                self._index += 1
                if self._index == wanted or self._index == self.frames - 1:
                    found = frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
        except (StopIteration, FFmpegError):
            self._index = max(self._index, wanted)
        if found is not None:
            self._shown = Image.fromarray(found)
        return self._shown


class _Page:
    """Where everything is, and what never changes of it."""

    def __init__(self, sheet: Sheet, cells: list[list[_Cell | None]], model: _Cell) -> None:
        self._cells = cells
        columns = max(len(row) for row in cells)
        left = _SIDE + _GAP if sheet.row_titles else _GAP
        top = _LINE + _GAP if sheet.columns else _GAP
        scale = min(
            1.0,
            WIDEST_CELL_PX / model.width,
            ((WIDEST_PX - left) / columns - _GAP) / model.width,
            ((HIGHEST_PX - top) / len(cells) - _GAP) / model.height,
        )
        self._size = max(2, int(model.width * scale)), max(2, int(model.height * scale))
        width, height = self._size
        # Even, as the colors of MP4 need it.
        self.width = (left + columns * (width + _GAP) + 1) // 2 * 2
        self.height = (top + len(cells) * (height + _GAP) + 1) // 2 * 2
        self._places = [
            (x, y, cell)
            for (x, y), cell in (
                ((left + at * (width + _GAP), top + row * (height + _GAP)), cell)
                for row, of_row in enumerate(cells)
                for at, cell in enumerate(of_row)
            )
        ]
        self._paper = Image.new("RGB", (self.width, self.height), _PAPER)
        draw = ImageDraw.Draw(self._paper)
        font = ImageFont.load_default(_FONT)
        for x, y, cell in self._places:
            if cell is None:
                draw.rectangle((x, y, x + width - 1, y + height - 1), fill=_WELL)
        for at, title in enumerate(sheet.columns[:columns]):
            text = next(_lines(title, width, font), "")
            draw.text((left + at * (width + _GAP), _GAP), text, _INK, font)
        for row, title in enumerate(sheet.row_titles[: len(cells)]):
            lines = list(islice(_lines(title, _SIDE - _GAP, font), max(1, height // 20)))
            middle = top + row * (height + _GAP) + (height - 20 * len(lines)) // 2
            for number, line in enumerate(lines):
                draw.text((_GAP, middle + 20 * number), line, _INK, font)

    def paint(self, time_s: float) -> Image.Image:
        page = self._paper.copy()
        for x, y, cell in self._places:
            shown = None if cell is None else cell.at(time_s, self._size)
            if shown is not None:
                page.paste(shown, (x, y))
        return page


def _lines(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> Iterator[str]:
    """The text in lines that fit; a word that does not is cut."""
    line = ""
    for word in text[: 100 * width].split():
        longer = f"{line} {word[:width]}".strip()  # hardly a letter is narrower than a pixel
        if font.getlength(longer) <= width:
            line = longer
            continue
        if line:
            yield line
        ends = range(1, min(len(word), width) + 1)
        line = word[: bisect_right(ends, width, key=lambda end: ceil(font.getlength(word[:end])))]
    if line:
        yield line
