"""Trains what draws details by what the networks around it say, kept once: `python -m microcosm.training.details`.

A small network behind a large one learns in minutes what the two together take hours for. Of the still refiner: which
side of an outline a pixel is on. Of what drives: what stands in the way. Their checkpoints are written back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor, nn
from torch.nn import functional as F

from cosmorama.world.microcosm.corridor_map import PLAN_CHANNELS, kind_of
from cosmorama.world.microcosm.drive_net import AHEAD
from cosmorama.world.microcosm.driving import seen
from cosmorama.world.microcosm.layout import MEETING, Layout, meetings, nearest_first
from cosmorama.world.microcosm.still_refiner import CELL
from microcosm.scenes.captions import random_caption
from microcosm.scenes.corridor import draw_drive
from microcosm.scenes.dataset import DATA, still_time
from microcosm.scenes.steered import Steered
from microcosm.training import drive, still_refiner
from microcosm.training.autoencoder import RUNS, to_float
from microcosm.training.batches import shots_by_size
from microcosm.training.loop import Trainer
from microcosm.training.made import MADE

_CELLS, _EDGES, _PLAIN = 220, 0.8, 0.06  # of a still; how much rather those at edges, and others
_BATCH, _RATE = 2048, 3e-3
_FAR = 30  # cells that what stands ahead covers at least
Kept = Sequence[Tensor]


def cells_of_stills(training: still_refiner.Training, batches: int) -> Iterator[Kept]:
    """Of cells near objects what the U-Net's last layer reads, the true pixels, and how rays pass objects there."""
    read: list[Tensor] = []
    hook = training.net.paint.write.register_forward_pre_hook(lambda layer, given: read.append(given[0]))
    for _, batch in zip(range(batches), training.batches, strict=False):
        layout = Layout(batch.layout.objects[batch.known], batch.layout.view[batch.known])
        if batch.made or batch.frames.shape[2] % CELL or batch.frames.shape[3] % CELL or not len(layout.view):
            continue
        with torch.no_grad():
            text, source = training.text_encoder(batch.prompts)[0][:, 0], batch.before
            if source is None:
                frames, _ = still_refiner.disarranged(batch.frames, still_refiner.plan_of(batch), batch.known)
                source = still_refiner.softened(training.vae, frames)
            real = batch.frames[batch.known]
            training.net.draw(source[batch.known], layout, text[batch.known])
        inside, found = meetings(nearest_first(layout), *real.shape[2:])
        met = found.new_zeros(*inside.shape, MEETING)
        met.transpose(0, 1)[inside.transpose(0, 1)] = found
        x = read.pop()
        patches = F.unfold(x, 3, padding=1).unflatten(2, x.shape[2:]).movedim(1, -1)
        near, rays = by_cell(inside), by_cell(met)
        true = F.pixel_unshuffle(real, CELL).unflatten(1, (3, -1)).permute(0, 3, 4, 2, 1)
        steps = F.pad(real.diff(dim=3).abs(), (0, 1)) + F.pad(real.diff(dim=2).abs(), (0, 0, 0, 1))
        edges = F.max_pool2d(steps.sum(1, keepdim=True), CELL)[:, 0].clamp(max=_EDGES)
        chances = ((_PLAIN + edges) * near.any(-1).any(-1)).flatten(1)
        for row, chance in enumerate(chances):
            count = min(int((chance > 0).sum()), _CELLS)
            if count:
                picked = torch.multinomial(chance, count)
                yield [part[row].flatten(0, 1)[picked].half() for part in (patches, true, near, rays)]
    hook.remove()


def by_cell(pixels: Tensor) -> Tensor:
    """What is told of pixels, [B, rays, h, w, ...], cell by cell, [B, h / 2, w / 2, 4, rays, ...]."""
    parts = [pixels[:, :, row::CELL, column::CELL] for row in range(CELL) for column in range(CELL)]
    return torch.stack(parts, dim=1).movedim((3, 4), (1, 2))


def outlines_wrong(net: Any, kept: Kept) -> Tensor:
    """How far cells are from the true ones, and their steps from pixel to pixel."""
    patches, true, near, rays = (part.float() for part in kept)
    drawn = F.linear(patches, net.paint.write.weight.flatten(1), net.paint.write.bias)
    pixels = drawn.unflatten(1, (-1, CELL**2)).transpose(1, 2)
    inside = near > 0
    color = net.finished(pixels, net.features(inside, rays[inside]))
    error = torch.where(inside.any(-1, keepdim=True), color, pixels[..., :3]) - true
    square = error.unflatten(1, (CELL, CELL))
    wrong: Tensor = error.abs().mean() + 0.5 * (square.diff(dim=1).abs().mean() + square.diff(dim=2).abs().mean())
    return wrong


def cells_ahead(training: drive.Training, data: Path) -> Iterator[Kept]:
    """Of cells where something stands in the way of a drive or a picture of one: what the plan shows there, what the
    network drew, the true pixels, and the prompt's first state.
    """
    rng = np.random.default_rng(0)
    rows = drive.read_drives(data)
    for frames, label in shots_by_size("corridor-images", data)["160x88"]:
        shot = draw_drive(label.seed)
        pose = Steered(shot, np.zeros((0, 3), np.float32), (shot.pose(still_time(label.seed)),))
        rows.append((frames, label, pose))
    for frames, label, one in rows:
        if one.scene.ahead is None:
            continue
        prompt = random_caption(label.scene, rng)
        with torch.no_grad():
            text = training.text_encoder([prompt])[0][:, 0]
        for index in range(0, len(frames), 3):
            (view,), *around = drive.seen_from(one, slice(index, index + 1), mirrored=False)
            corridor = drive.stacked([(*around, kind_of(one.scene.ahead).numpy())])
            shown = seen(torch.from_numpy(view)[None].float(), corridor)
            known = shown[0, PLAN_CHANNELS + 1 :].amax(0) > 0
            if known.sum() < _FAR:
                continue
            with torch.no_grad():
                drawn = training.net.scene(shown[:, :PLAN_CHANNELS], training.net.mix(training.net.text_embed(text)))
            true = F.pixel_unshuffle(to_float(frames[None, index : index + 1])[:, :, 0], CELL)
            parts = [part[0].movedim(0, -1)[known] for part in (shown[:, AHEAD:], drawn, true)]
            yield [*parts, text.expand(len(parts[0]), -1)]


def ahead_wrong(net: Any, kept: Kept) -> Tensor:
    """How far cells of what stands in the way are from the true ones."""
    shown, drawn, true, text = kept
    wrong: Tensor = (net.thing(shown, drawn, text) - true).abs().mean()
    return wrong


def learn(net: Any, parts: Sequence[nn.Module], kept: Kept, wrong: Callable[[Any, Kept], Tensor], steps: int) -> float:
    """Train parts of a network on kept cells; how wrong it is at the end."""
    weights = [weight.requires_grad_(True) for part in parts for weight in part.parameters()]
    optimizer = torch.optim.AdamW(weights, _RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps, pct_start=0.05)
    last = 0.0
    for step in range(steps):
        rows = torch.randint(len(kept[0]), (_BATCH,))
        loss = wrong(net, [part[rows] for part in kept])
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        last += (float(loss.detach()) - last) / min(step + 1, 100)
        if step % 500 == 499:
            print(f"{step + 1} steps: {last:.4f}", flush=True)
    return last


def write_back(training: Trainer[Any, Any]) -> None:
    """The checkpoint, with these weights as their own averages."""
    averages = training.optimizer.averages
    for average, weight in zip(averages, training.optimizer.parameters, strict=True):
        average.copy_(weight.detach())
    training.save()


def main(
    data: Annotated[Path, typer.Option()] = DATA,
    made: Annotated[Path, typer.Option()] = MADE,
    runs: Annotated[Path, typer.Option()] = RUNS,
    batches: Annotated[int, typer.Option(help="Of stills.")] = 110,
    steps: int = 5000,
) -> None:
    """Train both."""
    stills = still_refiner.Training(
        still_refiner.Options(data=data, made=made, runs=runs, processes=1, compiled=False), 0
    )
    kept = [torch.cat(part) for part in zip(*cells_of_stills(stills, batches), strict=True)]
    learn(stills.net, [stills.net.paint.write, stills.net.outline, stills.net.finish], kept, outlines_wrong, steps)
    write_back(stills)
    drives = drive.Training(drive.Options(data=data, runs=runs, processes=1, compiled=False), 0)
    kept = [torch.cat(part) for part in zip(*cells_ahead(drives, data), strict=True)]
    learn(drives.net, [drives.net.light, drives.net.ahead], kept, ahead_wrong, steps)
    write_back(drives)


if __name__ == "__main__":
    typer.run(main)
