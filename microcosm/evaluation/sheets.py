"""Sheets of frames for looking at: grids of stills and strips of clips, each with its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from microcosm.scenes.simulate import Frames

_LINE_PX = 12


def titled(picture: Frames, text: str) -> Frames:
    """A picture with a line of text above it, cut where it is too long."""
    canvas = Image.new("RGB", (picture.shape[1], picture.shape[0] + _LINE_PX), "white")
    canvas.paste(Image.fromarray(picture), (0, _LINE_PX))
    pen = ImageDraw.Draw(canvas)
    while text and pen.textlength(text) > picture.shape[1]:
        text = text[:-1]
    pen.text((0, 0), text, fill="black")
    return np.asarray(canvas)


def strip(clip: Frames, moments: int = 8) -> Frames:
    """Evenly spaced frames of a clip uint8 [T, h, w, 3], first and last included, side by side."""
    chosen = np.linspace(0, len(clip) - 1, moments).round().astype(int)
    return np.concatenate(list(clip[chosen]), axis=1)


def grid(pictures: Sequence[Frames], columns: int) -> Frames:
    """Pictures of one size in rows; the last row is filled up with white."""
    blank = np.full_like(pictures[0], 255)
    filled = [*pictures, *[blank] * (-len(pictures) % columns)]
    rows = [np.concatenate(filled[start : start + columns], axis=1) for start in range(0, len(filled), columns)]
    return np.concatenate(rows)


def save(picture: Frames, path: Path) -> None:
    """Write a sheet as PNG."""
    Image.fromarray(picture).save(path, optimize=True)
