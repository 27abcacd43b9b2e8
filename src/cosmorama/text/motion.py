"""What can be measured between the frames of a clip: the camera's pan, the things that move, or that nothing does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cosmorama.text.colors import Floats
from cosmorama.text.pixels import Picture, Region

Kind = Literal["nothing", "pan", "drive", "things", "somewhere", "everywhere"]
_NOTICEABLE = 0.035
"""OKLab difference between cells of two frames that counts as a change; coding noise averages out below it."""


@dataclass(frozen=True, slots=True)
class Track:
    """A region of the first frame and how far it went, in shares of the picture's longer side per second."""

    region: Region
    dx: float = 0.0
    dy: float = 0.0

    @property
    def speed(self) -> float:
        """0 for a region that stays where it is."""
        return math.hypot(self.dx, self.dy)


@dataclass(frozen=True, slots=True)
class Movement:
    """How a clip moves.

    Attributes:
        kind: "pan" moves everything alike, "drive" away from the middle or towards it; "things" are the tracks with a
            speed, "somewhere" is a part of the picture that changes without a thing to follow, "everywhere" most of it.
        pan: How the picture's contents move, in shares of its longer side per second.
        rate: Of a drive, per second; see `approach.approach`.
        tracks: The regions of the first frame.
        place: Center of what changes, in shares of width and height.
        brightening: Change of the mean lightness, -1 to 1.
    """

    kind: Kind
    pan: tuple[float, float] = (0.0, 0.0)
    tracks: tuple[Track, ...] = ()
    place: tuple[float, float] = (0.5, 0.5)
    brightening: float = 0.0
    rate: float = 0.0


def movement(pictures: Sequence[Picture], seconds: float, rate: float = 0.0) -> Movement:
    """What moves in the pictures, which are spread evenly over `seconds`; `rate` is that of `approach.approach`."""
    grids = np.stack([picture.lab for picture in pictures])
    light = grids[..., 0].mean((1, 2))
    brightening = float(light[-1] - light[0])
    # A fade is no motion: compare the pictures at equal mean lightness.
    level = grids.copy()
    level[..., 0] += (light[0] - light)[:, None, None]
    change = np.linalg.norm(level - level[0], axis=-1).max(0)
    changed = change > _NOTICEABLE + 0.3 * abs(brightening)
    tracks = tuple(_track(region, pictures, seconds) for region in pictures[0].regions)
    if changed.sum() < max(2, 0.002 * changed.size):
        return Movement("nothing", tracks=tuple(Track(track.region) for track in tracks), brightening=brightening)
    ys, xs = np.nonzero(changed)
    place = (float(xs.mean() + 0.5) / changed.shape[1], float(ys.mean() + 0.5) / changed.shape[0])
    if rate:
        return Movement("drive", tracks=tracks, place=place, brightening=brightening, rate=rate)
    moving = any(track.speed for track in tracks)
    steps = float((np.linalg.norm(np.diff(level, axis=0), axis=-1) > _NOTICEABLE).mean())
    # Things that move change about twice their own area; more than that is the background.
    if not moving or steps > 0.05 + 3 * sum(track.region.area for track in tracks):
        pan = _pan(level, seconds)
        if pan:
            return Movement("pan", pan, tracks, place, brightening)
    if moving:
        return Movement("things", tracks=tracks, place=place, brightening=brightening)
    kind: Kind = "everywhere" if changed.mean() > 0.5 else "somewhere"
    return Movement(kind, (0.0, 0.0), tracks, place, brightening)


def _track(region: Region, pictures: Sequence[Picture], seconds: float) -> Track:
    h, w = pictures[0].lab.shape[:2]
    longer = max(h, w)
    here, farthest, at = region, (0.0, 0.0), 0
    path = straight = 0.0
    for n, picture in enumerate(pictures[1:], 1):
        near = [r for r in picture.regions if _same(region, r)]
        if not near:
            break
        last = here
        here = min(near, key=lambda r: math.hypot((r.x - last.x) * w, (r.y - last.y) * h))
        path += math.hypot((here.x - last.x) * w, (here.y - last.y) * h) / longer
        moved = ((here.x - region.x) * w / longer, (here.y - region.y) * h / longer)
        if math.hypot(*moved) > math.hypot(*farthest):
            farthest, at, straight = moved, n, path
    # A path that wanders is a mistaken match.
    if math.hypot(*farthest) < max(0.012, 0.6 / longer, 0.6 * straight):
        return Track(region)
    elapsed = seconds * at / (len(pictures) - 1)
    return Track(region, farthest[0] / elapsed, farthest[1] / elapsed)


def _same(a: Region, b: Region) -> bool:
    return bool(np.linalg.norm(a.lab - b.lab) < 0.12) and 0.4 < a.area / b.area < 2.5


def _pan(grids: Floats, seconds: float) -> tuple[float, float] | None:
    """The one shift that turns each picture into the next, in shares of the longer side per second."""
    shifts = [_shift(a, b) for a, b in zip(grids[..., 0], grids[1:, ..., 0], strict=False)]
    found = [shift for shift in shifts if shift is not None]
    if len(found) < 0.6 * len(shifts):
        return None
    total = np.mean(np.array(found), axis=0) * len(shifts)
    spread = np.abs(np.array(found) - np.median(found, axis=0)).max()
    longer = max(grids.shape[1:3])
    if np.hypot(*total) < max(0.01 * longer, 0.6) or spread > max(1.5, np.abs(np.mean(found, axis=0)).max()):
        return None
    dy, dx = total / longer / seconds
    return float(dx), float(dy)


def _shift(a: Floats, b: Floats) -> tuple[float, float] | None:
    """(down, right) in cells by phase correlation, or None where moving the picture does not explain the change."""
    h, w = a.shape
    window = np.hanning(h + 2)[1:-1, None] * np.hanning(w + 2)[None, 1:-1]
    spectra = [np.fft.rfft2((picture - picture.mean()) * window) for picture in (a, b)]
    cross = np.conj(spectra[0]) * spectra[1]
    surface = np.fft.irfft2(cross / (np.abs(cross) + 1e-6 * np.abs(cross).max() + 1e-12), s=(h, w))
    peak = np.unravel_index(int(surface.argmax()), surface.shape)
    dy, dx = (_peak(surface, peak, axis) for axis in (0, 1))
    iy, ix = round(dy), round(dx)
    before, after = _overlap(a, b, 0, 0), _overlap(a, b, iy, ix)
    if before < 1e-4:
        return 0.0, 0.0
    whole = (iy, ix) != (0, 0)
    return (dy, dx) if (after < 0.6 * before if whole else max(abs(dy), abs(dx)) > 0.1) else None


def _peak(surface: NDArray[np.floating], peak: tuple[np.intp, ...], axis: int) -> float:
    """The shift along an axis, to a fraction of a cell: the center of mass of the peak and its neighbors."""
    size = surface.shape[axis]
    line = np.maximum(surface.take(peak[1 - axis], 1 - axis), 0)
    here = int(peak[axis])
    before, at, after = (float(line[(here + side) % size]) for side in (-1, 0, 1))
    shift = here + (after - before) / (before + at + after) if at and size > 2 else float(here)
    return shift - size if shift > size / 2 else shift


def _overlap(a: Floats, b: Floats, dy: int, dx: int) -> float:
    """Mean difference of `a` moved by (dy, dx) and `b`, where both are in the picture."""
    h, w = a.shape
    if abs(dy) > h * 0.7 or abs(dx) > w * 0.7:
        return math.inf
    moved = a[max(0, -dy) : h - max(0, dy), max(0, -dx) : w - max(0, dx)]
    seen = b[max(0, dy) : h + min(0, dy), max(0, dx) : w + min(0, dx)]
    return float(np.abs(moved - seen).mean())
