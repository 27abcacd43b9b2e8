"""Where an object of a known color is in every frame of a clip: which way it goes, and whether it stays.

It is tracked by its color. Both measures are exact on real clips, bar what they say of themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cosmorama.text.language import COLORS, Color, Direction
from microcosm.evaluation.probe import LEAST_SHARE, color_classes
from microcosm.scenes.simulate import Frames

LEAST_TRAVEL = 0.04  # of the frame's width; less is standing still
LEAST_AREA = 0.35  # of the object's usual area; less is an object that has all but gone
EDGE_PX = 2


@dataclass(frozen=True, slots=True)
class Track:
    """An object's path.

    Attributes:
        area: Share of the frame that shows its color, [T].
        center: Mean column of those pixels as a share of the width, [T]; NaN where there are none.
        at_edge: Whether it touches the left or right edge, bool [T].
    """

    area: NDArray[np.float64]
    center: NDArray[np.float64]
    at_edge: NDArray[np.bool_]


def track_color(clip: Frames, color: Color) -> Track:
    """The track of the object of `color` in a clip uint8 [T, h, w, 3]."""
    mask = color_classes(clip) == COLORS.index(color)
    per_column = mask.sum(1)  # [T, w]
    pixels = per_column.sum(1)
    columns = (np.arange(mask.shape[2]) + 0.5) / mask.shape[2]
    with np.errstate(invalid="ignore"):
        center = (per_column @ columns) / np.where(pixels > 0, pixels, np.nan)
    at_edge = (per_column[:, :EDGE_PX].sum(1) > 0) | (per_column[:, -EDGE_PX:].sum(1) > 0)
    return Track(pixels / mask[0].size, center, at_edge)


def direction(track: Track) -> Direction | None:
    """Which way the object goes: from the first third of the frames that show it to the last third."""
    seen = track.center[track.area >= LEAST_SHARE]
    if len(seen) < 3:
        return None
    third = len(seen) // 3
    travel = float(np.median(seen[-third:]) - np.median(seen[:third]))
    if abs(travel) < LEAST_TRAVEL:
        return None
    return "right" if travel > 0 else "left"


def persists(track: Track) -> NDArray[np.bool_]:
    """Per frame that should show the object, whether it does.

    It should be there in every frame until it has left through the left or right edge of the picture; it is there if
    its own color covers at least `LEAST_AREA` of what it covers at its median over the first second, or, while it
    touches an edge, anything at all. Frames after it has left are not counted; an object that was never there is
    missing everywhere.
    """
    usual = float(np.median(track.area[:24]))
    if usual < LEAST_SHARE:
        return np.zeros(len(track.area), np.bool_)
    there = track.area >= LEAST_AREA * usual
    leaving = False
    kept = []
    for present, area, at_edge in zip(there, track.area, track.at_edge, strict=True):
        if leaving and area < 0.1 * LEAST_SHARE:
            break  # it was touching the edge a frame ago and is gone now
        leaving = bool(at_edge)
        kept.append(bool(present or at_edge))
    return np.array(kept)
