"""Trains the network that finds out where a picture was taken: `python -m microcosm.training.finder --minutes 40`.

It is asked of single frames of rendered drives where the camera is, what stands ahead, and which boxes are on the
shelves; runs are resumed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor
from torch.nn import functional as F

from cosmorama.world.microcosm.corridor_map import CorridorMap, in_parts, kind_of
from cosmorama.world.microcosm.finder import BAYS, Finder, told
from cosmorama.world.microcosm.odometry import BAY_M
from microcosm.training.autoencoder import to_float
from microcosm.training.drive import LOST, Numbers, read_drives, seen_from, stacked, worsened
from microcosm.training.loop import PartOptions, PartTrainer, command

_THERE = 0.3  # weight of whether something stands ahead


@dataclass(frozen=True, kw_only=True)
class Options(PartOptions):
    """One run."""

    name: Annotated[str, typer.Option(help="Name of the checkpoint in RUNS.")] = "finder"
    batch: int = 48


@dataclass(slots=True)
class Batch:
    """Frames [B, 3, h, w] in [-1, 1], their canonical views [B, 5], and of their maps the bays that are looked at."""

    frames: Tensor
    views: Tensor
    corridor: CorridorMap


class Training(PartTrainer[Batch, Options]):
    """Trains on rendered drives."""

    unit, kind = "frames", Finder

    def draws(self, seed: int) -> Iterator[Batch]:
        """Single frames, each second one mirrored."""
        rng, rows = np.random.default_rng(seed), read_drives(self.options.data)
        while True:
            frames, found = [], []
            for row in rng.integers(len(rows), size=self.options.batch):
                clip, _, drive = rows[int(row)]
                index = int(rng.integers(len(clip)))
                mirrored = rng.random() < 0.5
                frames.append(clip[index, :, ::-1] if mirrored else clip[index])
                (view,), boxes, first, place = seen_from(drive, slice(index, index + 1), mirrored=mirrored)
                found.append((*looking_on(view, boxes, first, place), kind_of(None).numpy()))
            pixels = to_float(np.stack(frames)[:, None])[:, :, 0]
            views = torch.from_numpy(np.stack([view for view, *_ in found]))
            yield Batch(pixels, views, stacked([rest for _, *rest in found]))

    def loss_of(self, batch: Batch) -> tuple[Tensor, dict[str, float], float]:
        """See `Trainer`."""
        corridor, right = batch.corridor, told(batch.views, batch.corridor.ahead)
        with torch.autocast("cpu", torch.bfloat16):
            features, said = self.net(worsened(batch.frames[:, None])[:, 0])
            views = batch.views + torch.randn_like(batch.views) * torch.tensor(LOST)
            parts, shown = self.net.boxes(features, views)
        values = {"place": (said - right)[:, :9].abs().mean(), "there": _THERE * _yes(said[:, 9], right[:, 9])}
        values["ahead"] = ((said - right)[:, 10:].abs() * right[:, 9:10]).mean()
        boxes = corridor.boxes * shown[..., None]
        values["box"] = _yes(parts[..., 0][shown], boxes[..., 0][shown])
        values["form"] = (parts - in_parts(boxes))[..., 1:].abs().mean(-1)[boxes[..., 0] > 0].mean()
        loss = torch.stack(list(values.values())).sum()
        return loss, {name: float(value.detach()) for name, value in values.items()}, len(said)


_yes = F.binary_cross_entropy_with_logits


def looking_on(view: Numbers, boxes: Numbers, first: int, ahead: Numbers) -> tuple[Numbers, Numbers, int, Numbers]:
    """A view [5] and a map, turned by half a turn where it looks back; of the map the bays that are looked at."""
    view = view.copy()
    if math.cos(view[2]) < 0:
        view[:3] = -view[0], -view[1], view[2] + math.pi
        boxes, first = boxes[::-1, ::-1, :, ::-1] * np.array([1, -1, 1, 1, 1], np.float32), -(first + len(boxes))
        ahead = ahead * np.array([1, -1, -1], np.float32)
    view[2] = math.remainder(view[2], 2 * math.pi)
    begin = math.floor(view[1] / BAY_M) + BAYS[0]
    return view, boxes[begin - first : begin - first + len(BAYS)], begin, ahead


if __name__ == "__main__":
    command(Options, Training)
