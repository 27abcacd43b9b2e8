"""Stills of objects and what they show: rendered ones, later frames of clips, and those that the denoiser made."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cosmorama.text.language import COLORS, SHAPES, Color, Scene, Shape, mirror_caption
from cosmorama.world.microcosm.layout import KINDS, OBJECT, SLOTS, Layout
from microcosm.evaluation.probe import LEAST_SHARE, color_classes
from microcosm.scenes.captions import random_caption
from microcosm.scenes.dataset import Label, still_time
from microcosm.scenes.simulate import SIZES, Frames, Shot, draw_shot, states
from microcosm.training.autoencoder import to_float
from microcosm.training.batches import shots_by_size

_WIDE, _OTHER, _SILENT = 0.8, 0.12, 0.1  # shares of 16:9, of the corridor, of no prompt
_MADE, _LATER = 0.12, 0.4  # shares of batches that the denoiser made, and of later frames of clips
_PAIRS = 0.4  # share of those that are of two objects anyway: one may stand before the other


@dataclass(slots=True)
class Batch:
    """Stills of one size.

    Attributes:
        frames: [B, 3, h, w] in [-1, 1].
        layout: What they show.
        known: Which show objects, bool [B]; the layouts of others do not count.
        prompts: What they show, in words.
        before: Of later frames of clips, their first ones; None: they are stills.
        first: What those show.
        made: Whether the denoiser made them, and only which objects there are is known.
    """

    frames: Tensor
    layout: Layout
    known: Tensor
    prompts: list[str]
    before: Tensor | None = None
    first: Layout | None = None
    made: bool = False


Numbers = tuple[NDArray[np.float32], NDArray[np.float32]]
"""A layout's objects and view, see `Layout`."""


def layouts_of(shot: Shot, times_s: Sequence[float], *, mirrored: bool) -> list[Numbers]:
    """The layouts of a shot at increasing times; objects are in the order, from the left, of the first."""
    view = np.array([shot.azimuth_deg, shot.elevation_deg, shot.distance_m, *shot.light_xy], np.float32)
    if mirrored:
        view[[0, 3]] = 180 - view[0], -view[3]
    side = np.array([-1, 1, 1, -1] if mirrored else [1, 1, 1, 1])
    moments = states(shot, times_s) * side
    order = moments[0, :, 0].argsort(kind="stable")
    found = []
    for state in moments:
        objects = np.zeros((SLOTS, 1 + len(OBJECT) + sum(map(len, KINDS))), np.float32)
        objects[len(order) :, 4] = 1.0  # no size of nothing: it is divided by
        for slot, index in enumerate(order):
            body, (*place, turn) = shot.bodies[index], state[index]
            kinds = [shape == body.kind.shape for shape in SHAPES] + [color == body.kind.color for color in COLORS]
            objects[slot] = 1.0, *place, body.half_size_m, turn, *kinds
        found.append((objects, view))
    return found


class Sampler:
    """Draws batches of stills."""

    def __init__(self, data: Path, made: Path, batch: int, seed: int) -> None:
        self._rng, self._batch = np.random.default_rng(seed), batch
        self._stills, self._corridors, self._clips = (
            shots_by_size(split, data) for split in ("starts", "corridor-images", "shorts")
        )
        self._made = read_made(made) if any(made.glob("stills-*.npz")) else None
        self._nothing = layouts_of(draw_shot(0), [0.0], mirrored=False)[0]  # beside pictures of something else
        self._layouts: dict[tuple[int, bool], Numbers] = {}

    def __iter__(self) -> Iterator[Batch]:
        """Batches without end."""
        sizes = [f"{width}x{height}" for width, height in SIZES]
        while True:
            drawn = self._rng.random()
            if drawn < _MADE and self._made is not None:
                yield self.named(self._made)
                continue
            if drawn > 1 - _LATER and self._clips:
                yield self._later()
                continue
            wide = self._rng.random() < _WIDE
            size = sizes[0] if wide else sizes[int(self._rng.integers(len(sizes)))]
            if size in self._stills:
                yield self._drawn(size)

    def _drawn(self, size: str) -> Batch:
        rng, frames, found, known, prompts = self._rng, [], [], [], []
        for _ in range(self._batch):
            other = size in self._corridors and rng.random() < _OTHER
            rows = (self._corridors if other else self._stills)[size]
            clip, label = rows[int(rng.integers(len(rows)))]
            mirrored = rng.random() < 0.5
            frames.append(_turned(clip[0], mirrored))
            prompt = "" if rng.random() < _SILENT else random_caption(label.scene, rng)
            prompts.append(mirror_caption(prompt) if mirrored else prompt)
            found.append(self._nothing if other else self._layout(label, mirrored))
            known.append(not other)
        return Batch(_pixels(frames), _stacked(found), torch.tensor(known), prompts)

    def _later(self) -> Batch:
        """Frames of clips."""
        rng, names = self._rng, list(self._clips)
        shares = np.array([len(self._clips[name]) for name in names], float)
        rows = self._clips[names[int(rng.choice(len(names), p=shares / shares.sum()))]]
        pairs = [row for row in rows if isinstance(row[1].scene, Scene) and len(row[1].scene.objects) == SLOTS] or rows
        frames, before, moments, prompts = [], [], [], []
        for _ in range(self._batch):
            some = pairs if rng.random() < _PAIRS else rows
            clip, label = some[int(rng.integers(len(some)))]
            mirrored, index = rng.random() < 0.5, int(rng.integers(1, len(clip)))
            frames.append(_turned(clip[index], mirrored))
            before.append(_turned(clip[0], mirrored))
            moments.append(layouts_of(draw_shot(label.seed), [0.0, index / label.fps], mirrored=mirrored))
            prompt = random_caption(label.scene, rng)
            prompts.append(mirror_caption(prompt) if mirrored else prompt)
        first, now = map(_stacked, zip(*moments, strict=True))
        known = torch.ones(len(frames), dtype=torch.bool)
        return Batch(_pixels(frames), now, known, prompts, before=_pixels(before), first=first)

    def named(self, made: Made) -> Batch:
        """Stills that the denoiser made."""
        rows = self._rng.integers(len(made.frames), size=self._batch)
        sides = self._rng.random(self._batch) < 0.5
        found, prompts, frames = [], [], []
        for row, mirrored in zip(rows, sides, strict=True):
            objects = np.zeros_like(self._nothing[0])
            for slot, (shape, color) in enumerate(made.kinds[row][:: -1 if mirrored else 1]):
                objects[slot, 0] = 1
                objects[slot, 6 + SHAPES.index(shape)] = objects[slot, 6 + len(SHAPES) + COLORS.index(color)] = 1
            found.append((objects, self._nothing[1]))
            prompts.append(mirror_caption(made.prompts[row]) if mirrored else made.prompts[row])
            frames.append(_turned(made.frames[row], mirrored))
        known = torch.ones(len(frames), dtype=torch.bool)
        return Batch(_pixels(frames), _stacked(found), known, prompts, made=True)

    def _layout(self, label: Label, mirrored: bool) -> Numbers:
        key = label.seed, mirrored
        if key not in self._layouts:
            (self._layouts[key],) = layouts_of(draw_shot(label.seed), [still_time(label.seed)], mirrored=mirrored)
        return self._layouts[key]


def _turned(frame: Frames, mirrored: bool) -> Frames:
    return frame[:, :: -1 if mirrored else 1]


def _pixels(frames: Sequence[Frames]) -> Tensor:
    """Frames uint8 [h, w, 3] to one float [B, 3, h, w] in [-1, 1]."""
    return to_float(np.stack(frames)[:, None])[:, :, 0]


def _stacked(found: Sequence[Numbers]) -> Layout:
    objects, views = (torch.from_numpy(np.stack(part)) for part in zip(*found, strict=True))
    return Layout(objects, views)


@dataclass(slots=True)
class Made:
    """Stills that the denoiser made for prompts, uint8 [N, h, w, 3], and the objects that the prompts name, from the
    left as the stills show their colors. Stills that lack one of the colors do not count.
    """

    frames: Frames
    prompts: list[str]
    kinds: list[list[tuple[Shape, Color]]]


def read_made(folder: Path) -> Made:
    """Those of a folder, see `microcosm.training.made`."""
    frames, prompts, kinds = [], [], []
    for path in sorted(folder.glob("stills-*.npz")):
        lines = path.with_suffix(".jsonl").read_text().splitlines()
        for frame, row in zip(np.load(path)["frames"], map(json.loads, lines), strict=True):
            classes, places = color_classes(frame), []
            for thing in row["scene"]["objects"]:
                across = np.nonzero(classes == COLORS.index(thing["color"]))[1]
                if len(across) < LEAST_SHARE * classes.size:
                    break
                places.append((float(across.mean()), (thing["shape"], thing["color"])))
            else:
                frames.append(frame)
                prompts.append(row["prompt"])
                kinds.append([kind for _, kind in sorted(places)])
    return Made(np.stack(frames), prompts, kinds)
