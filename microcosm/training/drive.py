"""Trains the network that drives: `python -m microcosm.training.drive --minutes 60`; runs are resumed.

The next frame must be near the real one, and so must its steps from pixel to pixel; what is moved must be near it by
itself too. So that the world does not dissolve as it is driven through, the frames that are gone on from are blurred
and disturbed, and some are the network's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cosmorama.world.microcosm import unet
from cosmorama.world.microcosm.corridor_map import CorridorMap, kind_of
from cosmorama.world.microcosm.drive_net import DriveNet
from cosmorama.world.microcosm.driving import next_frame, parts, seen
from cosmorama.world.microcosm.odometry import BAY_M
from microcosm.scenes.captions import random_caption
from microcosm.scenes.dataset import Label
from microcosm.scenes.simulate import Frames
from microcosm.scenes.steered import LIMITS, Steered, draw_steered
from microcosm.training.autoencoder import to_float
from microcosm.training.batches import shots_by_size
from microcosm.training.loop import PartOptions, PartTrainer, command

DISTURBANCE = 0.08
_EDGES = 0.5  # weight of steps from pixel to pixel
_STOOD, _BLURRED, _ERASED, _SILENT = 0.1, 0.2, 0.3, 0.1  # shares of first frames twice, ..., of no prompt
LOST = (0.04, 0.04, 0.01, 0.02, 0.005)  # m, m, rad, m, rad: how far off the views are that a drive goes by
_MISREAD = 0.03  # share of boxes that the map has wrong
_AROUND = 6  # bays this way and that which are on a map
Numbers = NDArray[np.float32]
SCALE = np.array([high for _, high in LIMITS], np.float32)


@dataclass(frozen=True, kw_only=True)
class Options(PartOptions):
    """One run."""

    name: Annotated[str, typer.Option(help="Name of the checkpoint in RUNS.")] = "drive"
    batch: int = 8
    draws: Annotated[float, typer.Option(help="Of the steps, those that learn to draw and nothing else.")] = 0.3
    rollout: Annotated[int, typer.Option(help="Frames of its own, at most, before the one it learns.")] = 0


@dataclass(slots=True)
class Batch:
    """Stretches of drives.

    Attributes:
        frames: [B, T, 3, h, w] in [-1, 1].
        actions: [B, T - 1, 3], in parts of `SCALE`.
        views: [B, T, 5]; see `odometry`.
        corridor: What is where.
        prompts: What is seen.
    """

    frames: Tensor
    actions: Tensor
    views: Tensor
    corridor: CorridorMap
    prompts: list[str]


def read_drives(data: Path) -> list[tuple[Frames, Label, Steered]]:
    """All rendered drives, mapped from their files."""
    (rows,) = shots_by_size("drives", data).values()
    return [(frames, label, draw_steered(label.seed, len(frames))) for frames, label in rows]


def seen_from(drive: Steered, which: slice, *, mirrored: bool) -> tuple[Numbers, Numbers, int, Numbers]:
    """Some views [T, 5] of a drive, and the map around the last: its boxes, its first bay and what is ahead."""
    views, ahead = drive.views[which], np.array(drive.ahead, np.float32)
    first = math.floor(views[-1, 1] / BAY_M) - _AROUND
    boxes = drive.boxes(first, 2 * _AROUND + 1)
    if mirrored:
        views, ahead = views * np.array([-1, 1, -1, 1, 1], np.float32), ahead * np.array([1, -1, 1], np.float32)
        boxes = boxes[:, ::-1]
    return views, boxes, first, ahead


def stacked(maps: Sequence[Sequence[Any]]) -> CorridorMap:
    """Of maps one by one, each its boxes, its first bay, what is ahead and its kind, the common one."""
    return CorridorMap(*(torch.from_numpy(np.stack(part)) for part in zip(*maps, strict=True)))


def worsened(frames: Tensor) -> Tensor:
    """Frames [B, 2, 3, h, w] with a little noise on half of them, and some of them soft."""
    count = len(frames)
    chance = torch.rand(3, count, 1, 1, 1, 1)
    soft = unet.blurred(frames.flatten(1, 2)).view_as(frames)
    frames = torch.lerp(frames, soft, (chance[0] < _BLURRED).float())
    strength = DISTURBANCE * chance[1] * (chance[2] < 0.5)
    return torch.addcmul(frames, strength, torch.randn_like(frames))


def erased(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Frames [B, 2, 3, h, w] of which some are left without form at one side, or everywhere, and which are whole [B].

    What comes into view has to be drawn from the plan and the prompt. By itself it is a narrow strip, and little is
    learned from that.
    """
    count, height, width = len(frames), *frames.shape[3:]
    coarse = F.adaptive_avg_pool2d(frames.flatten(1, 2), (2, 3))
    formless = F.interpolate(coarse, (height, width), mode="bilinear").view_as(frames)
    shares = torch.where(torch.rand(count) < 0.4, 1.0, torch.rand(count)) * (torch.rand(count) < _ERASED)
    across = torch.arange(width) / width
    across = torch.where(torch.rand(count, 1) < 0.5, across, 1 - across)
    gone = (across < shares[:, None])[:, None, None, None]
    return torch.where(gone, formless, frames), shares == 0


class Training(PartTrainer[Batch, Options]):
    """Trains on rendered drives."""

    unit, kind = "frames", DriveNet

    def draws(self, seed: int) -> Iterator[Batch]:
        """Stretches of drives, each second one mirrored."""
        rng, rows, rollout = np.random.default_rng(seed), read_drives(self.options.data), self.options.rollout
        while True:
            length = 3 + (int(rng.integers(rollout + 1)) if rollout else 0)
            clips, moves, views, maps, prompts = [], [], [], [], []
            for row in rng.integers(len(rows), size=self.options.batch):
                frames, label, drive = rows[int(row)]
                start = int(rng.integers(len(frames) - length + 1))
                clip, way = frames[start : start + length], drive.actions[start : start + length - 1] / SCALE
                mirrored = rng.random() < 0.5
                if mirrored:
                    clip, way = clip[:, :, ::-1], way * np.array([1, -1, -1], np.float32)
                where, *around = seen_from(drive, slice(start, start + length), mirrored=mirrored)
                prompt = "" if rng.random() < _SILENT else random_caption(label.scene, rng)
                around.append(kind_of(drive.scene.ahead if prompt else None).numpy())
                if rng.random() < _STOOD:  # as a drive begins from one frame
                    clip = np.concatenate([clip[1:2], clip[1:]])
                    way = np.concatenate([0 * way[:1], way[1:]])
                clips.append(clip)
                moves.append(way)
                views.append(where)
                maps.append(around)
                prompts.append(prompt)
            pixels = to_float(np.ascontiguousarray(np.stack(clips))).transpose(1, 2)
            yield Batch(
                pixels,
                torch.from_numpy(np.stack(moves)),
                torch.from_numpy(np.stack(views)),
                stacked(maps),
                prompts,
            )

    def loss_of(self, batch: Batch) -> tuple[Tensor, dict[str, float], float]:
        """See `Trainer`."""
        count = len(batch.frames)
        said = torch.tensor([[float(bool(prompt))] for prompt in batch.prompts])
        text = self.text_encoder(batch.prompts)[0][:, 0] * said
        if torch.rand(()) < self.options.draws:
            with torch.autocast("cpu", torch.bfloat16):
                drawn = self.net.draw(seen(batch.views[:, -1], batch.corridor), text)
            error = apart(drawn, batch.frames[:, -1]).mean()
            return error, {"drawn": float(error.detach())}, count
        views, corridor = misled(batch.views, batch.corridor)
        own = batch.frames.shape[1] - 3
        frames = batch.frames[:, :2]
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                for index in range(own):
                    actions, plans = batch.actions[:, index : index + 2], seen(views[:, index + 2], corridor)
                    made = next_frame(self.net, frames, actions, plans, text)
                    frames = torch.stack([frames[:, 1], made], dim=1)
            frames, whole = erased(worsened(frames))
            actions, clean = batch.actions[:, own : own + 2], batch.frames[:, own + 2]
            known = parts(self.net, frames, actions, seen(views[:, own + 2], corridor), text)
            painted = self.net(*known)
        error, drawn = apart(painted, clean), apart(known[2], clean)
        off = ((known[0] - clean).abs() * known[1])[whole].sum() / clean.numel()
        values = {f"own {own}": float(error.detach().mean()), "drawn": float(drawn.detach().mean())}
        values["moved"] = float(off.detach())
        return error.mean() + drawn.mean() + off, values, count


def misled(views: Tensor, corridor: CorridorMap) -> tuple[Tensor, CorridorMap]:
    """Views [B, T, 5] and a map as they are found: a little off."""
    off = torch.randn(len(views), 1, 5) * torch.tensor(LOST)
    wrong = (torch.rand(corridor.boxes.shape[:-1]) < _MISREAD).float()
    boxes = torch.cat([(corridor.boxes[..., 0] - wrong).abs()[..., None], corridor.boxes[..., 1:]], dim=-1)
    return views + off, replace(corridor, boxes=boxes)


def apart(made: Tensor, real: Tensor) -> Tensor:
    """How far frames [B, 3, h, w] are from the real ones, and their steps from pixel to pixel: [B]."""
    error = made - real
    down, right = error.diff(dim=2).abs().mean((1, 2, 3)), error.diff(dim=3).abs().mean((1, 2, 3))
    return error.abs().mean((1, 2, 3)) + _EDGES * (down + right)


if __name__ == "__main__":
    command(Options, Training)
