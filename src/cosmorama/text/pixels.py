"""What can be measured in one picture: its light, its colors, how it is laid out, and what stands out from it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cosmorama.text.colors import COLOR_NAMES, NEUTRAL, Floats, color_name, nearest_names, oklab

Mask = NDArray[np.bool_]
Pixels = NDArray[np.uint8]
GRID = 96
"""Cells on the longer side of the grid that is measured; finer detail only counts as grain."""


@dataclass(frozen=True, slots=True)
class Region:
    """A patch that stands out. Lengths and positions are shares of the picture, from its upper left corner."""

    name: str
    lab: Floats
    area: float
    x: float
    y: float
    width: float
    height: float
    whole: bool
    """It does not touch the picture's edge."""
    dimmed: bool = False
    """It is the background with less light: a shadow on its own, or a darker thing of the same tint."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the background changes: not at all, from one flat part to another at `at`, or gradually."""

    kind: Literal["plain", "parts", "gradient"]
    axis: Literal["rows", "columns"]
    first: Floats
    last: Floats
    at: float = 0.5


@dataclass(frozen=True, slots=True)
class Picture:
    """The measurements of one frame.

    Attributes:
        lab: The grid's cells in OKLab, [h, w, 3].
        shares: Share of the area per color name, largest first.
        lightness: Mean lightness, 0 to 1.
        contrast: Standard deviation of lightness.
        clutter: How far the background is from a plain or evenly shaded one; below 0.03 it is one to the eye.
        grain: Mean difference between neighboring pixels at full resolution.
        layout: The background.
        top, bottom: The colors of the background at the upper edge and in the lower half.
        regions: What stands out, largest first.
    """

    lab: Floats
    shares: tuple[tuple[str, float], ...]
    lightness: float
    contrast: float
    clutter: float
    grain: float
    layout: Layout
    top: Floats
    bottom: Floats
    regions: tuple[Region, ...]

    def around(self, region: Region) -> Floats:
        """The color to the left and right of a region."""
        h, w = self.lab.shape[:2]
        rows = self.lab[int((region.y - region.height / 2) * h) : math.ceil((region.y + region.height / 2) * h)]
        edges = (int((region.x - 0.8 * region.width) * w), int((region.x + 0.8 * region.width) * w))
        color: Floats = np.median(rows[:, np.clip(edges, 0, w - 1)], axis=(0, 1))
        return color


def measure(frame: Pixels) -> Picture:
    """Measure one frame, uint8 [H, W, 3]."""
    lab = cells(frame)
    h, w = lab.shape[:2]
    rows, columns = _spread(frame.shape[0], h), _spread(frame.shape[1], w)
    # Single pixels, not means: the mean of red and green specks is a brown that is nowhere in the picture.
    sample = oklab(frame[rows[:, None], columns])
    grain = 0.0
    if frame.shape[1] > 1:
        beside = np.where(columns + 1 < frame.shape[1], columns + 1, columns - 1)
        grain = float(np.linalg.norm(oklab(frame[rows[:, None], beside]) - sample, axis=-1).mean())
    counts = np.bincount(nearest_names(sample).ravel(), minlength=len(COLOR_NAMES)) / (h * w)
    shares = tuple((COLOR_NAMES[i], float(counts[i])) for i in np.argsort(-counts, kind="stable") if counts[i] > 0)
    by_row = np.median(lab, axis=1)
    by_column = np.median(lab - by_row[:, None], axis=0)
    background = by_row[:, None] + by_column[None]
    return Picture(
        lab=lab,
        shares=shares,
        lightness=float(sample[..., 0].mean()),
        contrast=float(sample[..., 0].std()),
        clutter=float(np.median(np.linalg.norm(lab - background, axis=-1))),
        grain=grain,
        layout=_layout(by_row, by_column + np.median(by_row, axis=0)),
        top=np.median(by_row[: max(1, h // 12)], axis=0),
        bottom=np.median(by_row[h // 2 :], axis=0),
        regions=() if grain > 0.1 else _regions(lab, background),
    )


def cells(frame: Pixels) -> Floats:
    """The frame as a grid of mean colors in OKLab, at most `GRID` cells a side."""
    height, width = frame.shape[:2]
    scale = min(1.0, GRID / max(height, width))
    w, h = (max(round(side * scale), min(side, 16)) for side in (width, height))
    if (w, h) == (width, height):
        return oklab(frame)
    return oklab(np.asarray(Image.fromarray(frame).resize((w, h), Image.Resampling.BOX)))


def is_round(frame: Pixels, region: Region, background: Floats) -> bool:
    """Whether a colored region's outline is a circle, looked at closely enough to tell; False also when unsure."""
    if region.name in NEUTRAL or not region.whole:
        return False
    height, width = frame.shape[:2]
    left, right = (region.x + side * 0.75 * region.width for side in (-1, 1))
    upper, lower = (region.y + side * 0.75 * region.height for side in (-1, 1))
    crop = frame[
        max(0, int(upper * height)) : int(lower * height) + 1, max(0, int(left * width)) : int(right * width) + 1
    ]
    scale = min(1.0, 96 / max(crop.shape[:2]))
    image = Image.fromarray(np.ascontiguousarray(crop))
    small = image.resize((round(crop.shape[1] * scale), round(crop.shape[0] * scale)), Image.Resampling.BOX)
    lab = oklab(np.asarray(small))
    # Along the axis from the background's tint to the object's, light and shadow change little.
    axis = region.lab[1:] - background[1:]
    along = (lab[..., 1:] - background[1:]) @ axis / (axis @ axis)
    inside = _largest(along > 0.45)
    ys, xs = np.nonzero(inside)
    if len(ys) < 150:
        return False
    if not 0.93 < np.ptp(ys) / np.ptp(xs) < 1.07:
        return False
    cy, cx = (ys.min() + ys.max()) / 2, (xs.min() + xs.max()) / 2
    angle = ((np.arctan2(ys - cy, xs - cx) + np.pi) / (2 * np.pi) * 36).astype(int) % 36
    radius = np.zeros(36)
    np.maximum.at(radius, angle, np.hypot(ys - cy, xs - cx))
    return bool(radius.std() / radius.mean() < 0.035 and radius.min() > 0.9 * radius.mean())


def _spread(length: int, count: int) -> NDArray[np.intp]:
    return ((np.arange(count) + 0.5) * length / count).astype(np.intp)


def _layout(by_row: Floats, by_column: Floats) -> Layout:
    found = [_profile(by_row, "rows"), _profile(by_column, "columns")]
    return max(found, key=lambda layout: (layout.kind != "plain", np.linalg.norm(layout.first - layout.last)))


def _profile(profile: Floats, axis: Literal["rows", "columns"]) -> Layout:
    n = len(profile)
    edge = max(1, n // 10)
    first, last = np.median(profile[:edge], axis=0), np.median(profile[-edge:], axis=0)
    splits = range(edge, n - edge + 1)
    means = [(profile[:k].mean(0), profile[k:].mean(0)) for k in splits]
    if not means:
        return Layout("plain", axis, first, last)
    gains = [k * (n - k) * float(((a - b) ** 2).sum()) for k, (a, b) in zip(splits, means, strict=True)]
    k = splits[int(np.argmax(gains))]
    upper, lower = np.median(profile[:k], axis=0), np.median(profile[k:], axis=0)
    between = float(np.linalg.norm(upper - lower))
    if between < 0.07:
        return Layout("plain", axis, first, last)
    reach = max(1, n // 20)
    jump = float(np.linalg.norm(profile[min(n - 1, k + reach - 1)] - profile[max(0, k - reach)]))
    if jump > 0.6 * between:
        return Layout("parts", axis, upper, lower, k / n)
    return Layout("gradient", axis, first, last)


def _regions(lab: Floats, background: Floats) -> tuple[Region, ...]:
    off = lab - background
    # Lightness counts half: light falls unevenly on one and the same thing.
    distance = np.hypot(off[..., 0] / 2, np.hypot(off[..., 1], off[..., 2]))
    outside = distance > max(0.06, 3 * float(np.median(distance)))
    if outside.mean() > 0.4:  # a picture full of things has no background to stand out from
        return ()
    ratio = lab[..., 0] / np.maximum(background[..., 0], 1e-3)
    tint = np.linalg.norm(lab[..., 1:] - ratio[..., None] * background[..., 1:], axis=-1)
    shadow = outside & (ratio > 0.3) & (ratio < 1) & (tint < 0.035)
    things = _components(outside & ~shadow)
    solid = np.zeros_like(outside)
    found: list[Region] = []
    for mask in things:
        solid |= mask
        found += [_region(part, lab) for part in _by_color(mask, lab)]
    for mask in _components(shadow):
        if not (_grown(mask) & solid).any() and not (_grown(_grown(mask)) & solid).any():
            found.append(replace(_region(mask, lab), dimmed=True))
    return tuple(sorted(found, key=lambda region: -region.area)[:4])


def _by_color(mask: Mask, lab: Floats) -> list[Mask]:
    """Two things that touch, told apart by hue; the lit and the dark side of one thing stay together."""
    names = np.where(mask, nearest_names(lab), -1)
    kinds: list[tuple[Floats, Mask]] = []
    for i in np.unique(names[mask]):
        part = names == i
        tint = np.median(lab[part], axis=0)[1:]
        if part.sum() < 0.2 * mask.sum() or np.hypot(*tint) < 0.06:
            continue
        for n, (other, whole) in enumerate(kinds):
            if tint @ other / (np.linalg.norm(tint) * np.linalg.norm(other)) > 0.85:
                kinds[n] = (other, whole | part)
                break
        else:
            kinds.append((tint, part))
    parts = [component for _, part in kinds for component in _components(part)]
    return parts if len(kinds) > 1 and parts else [mask]


def _region(mask: Mask, lab: Floats) -> Region:
    h, w = mask.shape
    ys, xs = np.nonzero(mask)
    values = lab[mask]
    # The most saturated half: edges are mixed with the background, and dark sides lose their tint.
    tint = np.hypot(values[:, 1], values[:, 2])
    color: Floats = np.median(values[tint >= np.median(tint)], axis=0)
    top, bottom, left, right = ys.min(), ys.max() + 1, xs.min(), xs.max() + 1
    whole = bool(top > 0 and left > 0 and bottom < h and right < w)
    return Region(
        name=color_name(color),
        lab=color,
        area=float(mask.mean()),
        x=float(left + right) / 2 / w,
        y=float(top + bottom) / 2 / h,
        width=float(right - left) / w,
        height=float(bottom - top) / h,
        whole=whole,
    )


def _components(mask: Mask) -> list[Mask]:
    """Connected parts of at least 0.3 % of the picture, largest first."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        spread = labels.copy()
        np.maximum(spread[1:], labels[:-1], out=spread[1:])
        np.maximum(spread[:-1], labels[1:], out=spread[:-1])
        np.maximum(spread[:, 1:], spread[:, :-1].copy(), out=spread[:, 1:])
        np.maximum(spread[:, :-1], spread[:, 1:].copy(), out=spread[:, :-1])
        spread[~mask] = 0
        # A label is the number of a cell, so following it once doubles how far it has spread.
        spread[mask] = spread.ravel()[spread[mask] - 1]
        if np.array_equal(spread, labels):
            break
        labels = spread
    numbers, counts = np.unique(labels[labels > 0], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [labels == numbers[i] for i in order if counts[i] >= max(3, 0.003 * mask.size)]


def _largest(mask: Mask) -> Mask:
    parts = _components(mask)
    return parts[0] if parts else np.zeros_like(mask)


def _grown(mask: Mask) -> Mask:
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown
