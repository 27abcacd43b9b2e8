"""Trains what draws stills again: `python -m microcosm.training.still_refiner --minutes 60`; runs are resumed.

It is asked of rendered stills, bent and blurred as sampled ones are, what their layout is, and to draw them as they
were, given the true layout. Outlines are bent in the picture and not in the layout, so it learns to follow that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cosmorama.text.language import COLORS, SHAPES, mirror_caption
from cosmorama.world.microcosm import unet
from cosmorama.world.microcosm.autoencoder import FRAMES_PER_LATENT, VideoAutoencoder
from cosmorama.world.microcosm.layout import KINDS, OBJECT, OBJECT_CHANNELS, SLOTS, VIEW, Layout, plan
from cosmorama.world.microcosm.loader import load_component
from cosmorama.world.microcosm.still_refiner import StillRefiner
from cosmorama.world.microcosm.text_encoder import TextEncoder
from microcosm.scenes.captions import random_caption
from microcosm.scenes.dataset import Label, read_labels, shard_paths, still_time
from microcosm.scenes.simulate import SIZES, Frames, Shot, draw_shot, positions
from microcosm.training.autoencoder import to_float
from microcosm.training.batches import mapped
from microcosm.training.drive import apart
from microcosm.training.export import WEIGHTS
from microcosm.training.loop import OneStageRun, Trainer, command

_WIDE, _OTHER, _SILENT, _WHOLE = 0.8, 0.12, 0.1, 0.15  # shares of 16:9, of the corridor, of no prompt, of sharp ones
_BENT = (((3, 5), 3.0), ((8, 14), 2.0), ((16, 28), 1.2))  # cells in which outlines are bent, and by how many pixels
_NOISE = 0.15  # on latents, whose own deviation is 1 over all channels
_WEIGHTS = torch.tensor([3.0, 1.0, 2.0, 2.0, 0.5])  # of an object's numbers
_TWICE = 0.45  # share of stills that show an object twice, or elsewhere
_PAINTING, _OBJECTS = 4.0, 2.0  # weight of what is drawn, and more of that near objects


@dataclass(frozen=True, kw_only=True)
class Options(OneStageRun):
    """One run."""

    weights: Annotated[Path, typer.Option(help="Where the text encoder and the autoencoder are.")] = WEIGHTS
    name: Annotated[str, typer.Option(help="Name of the checkpoint in RUNS.")] = "still_refiner"
    batch: int = 16


@dataclass(slots=True)
class Batch:
    """Stills of one size.

    Attributes:
        frames: [B, 3, h, w] in [-1, 1].
        layout: What they show.
        known: Which show objects, bool [B]; the layouts of others do not count.
        prompts: What they show, in words.
    """

    frames: Tensor
    layout: Layout
    known: Tensor
    prompts: list[str]


def layout_of(shot: Shot, time_s: float, *, mirrored: bool) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The layout of a shot soon after the start of its action, see `Layout`: its objects and view."""
    found = [
        (
            *(1.0, *place, body.half_size_m, body.yaw_rad),
            *(float(body.kind.shape == shape) for shape in SHAPES),
            *(float(body.kind.color == color) for color in COLORS),
        )
        for place, body in zip(positions(shot, time_s), shot.bodies, strict=True)
    ]
    objects = np.zeros((SLOTS, len(found[0])), np.float32)
    view = np.array([shot.azimuth_deg, shot.elevation_deg, shot.distance_m, *shot.light_xy], np.float32)
    if mirrored:
        found = [(there, -x, y, z, half, -turn, *kind) for there, x, y, z, half, turn, *kind in found]
        view[[0, 3]] = 180 - view[0], -view[3]
    objects[: len(found)] = sorted(found, key=lambda thing: thing[1])
    objects[len(found) :, 4] = 1.0  # no size of nothing: it is divided by
    return objects, view


class Sampler:
    """Draws batches of rendered stills."""

    def __init__(self, data: Path, batch: int, seed: int) -> None:
        self._rng, self._batch = np.random.default_rng(seed), batch
        self._rows: dict[tuple[str, str], list[tuple[Frames, Label]]] = {}
        for split in ("starts", "corridor-images"):
            for path in shard_paths(split, data):
                arrays = mapped(path)
                for label in read_labels(path):
                    self._rows.setdefault((split, label.array), []).append((arrays[label.array][label.row, 0], label))
        self._nothing = layout_of(draw_shot(0), 0.0, mirrored=False)  # beside pictures of something else
        self._layouts: dict[tuple[int, bool], tuple[NDArray[np.float32], NDArray[np.float32]]] = {}

    def __iter__(self) -> Iterator[Batch]:
        """Batches without end."""
        sizes = [f"{width}x{height}" for width, height in SIZES]
        while True:
            wide = self._rng.random() < _WIDE
            size = sizes[0] if wide else sizes[int(self._rng.integers(len(sizes)))]
            if ("starts", size) in self._rows:
                yield self._drawn(size)

    def _drawn(self, size: str) -> Batch:
        rng, frames, objects, views, known, prompts = self._rng, [], [], [], [], []
        for _ in range(self._batch):
            other = ("corridor-images", size) in self._rows and rng.random() < _OTHER
            rows = self._rows["corridor-images" if other else "starts", size]
            frame, label = rows[int(rng.integers(len(rows)))]
            mirrored = rng.random() < 0.5
            frames.append(frame[:, ::-1] if mirrored else frame)
            prompt = "" if rng.random() < _SILENT else random_caption(label.scene, rng)
            prompts.append(mirror_caption(prompt) if mirrored else prompt)
            one = self._nothing if other else self._layout(label, mirrored)
            objects.append(one[0])
            views.append(one[1])
            known.append(not other)
        layout = Layout(torch.from_numpy(np.stack(objects)), torch.from_numpy(np.stack(views)))
        return Batch(to_float(np.stack(frames)[:, None])[:, :, 0], layout, torch.tensor(known), prompts)

    def _layout(self, label: Label, mirrored: bool) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        key = label.seed, mirrored
        if key not in self._layouts:
            self._layouts[key] = layout_of(draw_shot(label.seed), still_time(label.seed), mirrored=mirrored)
        return self._layouts[key]


class Training(Trainer[Batch, Options]):
    """Trains on rendered stills."""

    unit = "stills"

    def build(self, config: dict[str, Any] | None) -> None:
        """See `Trainer`."""
        self.net = StillRefiner(**(config or {}))
        self.text_encoder = load_component(TextEncoder, self.options.weights / "text_encoder")
        self.vae = load_component(VideoAutoencoder, self.options.weights / "vae")

    def draws(self, seed: int) -> Iterator[Batch]:
        """See `Trainer`."""
        return iter(Sampler(self.options.data, self.options.batch, seed))

    def loss_of(self, batch: Batch) -> tuple[Tensor, dict[str, float], float]:
        """See `Trainer`."""
        known, shown = batch.known, plan_of(batch)
        with torch.no_grad():
            frames, moved = disarranged(batch.frames, shown, known)
            soft, text = softened(self.vae, frames), self.text_encoder(batch.prompts)[0][:, 0]
        with torch.autocast("cpu", torch.bfloat16):
            said = self.net.read(soft, text)
            layout = Layout(batch.layout.objects[known], batch.layout.view[known])
            drawn, clean = self.net.draw(soft[known], layout, text[known]), batch.frames[known]
        there = known & ~moved
        values = said_wrong(said[there, :-1], Layout(batch.layout.objects[there], batch.layout.view[there]))
        values["objects"] = F.binary_cross_entropy_with_logits(said[:, -1], known.float())
        weights = 1 + _OBJECTS * (within(shown[known], 1.8).amax(1, keepdim=True))
        values["drawn"] = _PAINTING * apart(weights * drawn, weights * clean).mean()
        loss = torch.stack(list(values.values())).sum()
        return loss, {name: float(value.detach()) for name, value in values.items()}, len(said)


def said_wrong(said: Tensor, layout: Layout) -> dict[str, Tensor]:
    """How far what is said of layouts is from them: whether there are objects, their numbers, and the view's."""
    right = layout.told()
    (ours, view), (theirs, real) = (
        (part[:, : -len(VIEW)].unflatten(1, (SLOTS, -1)), part[:, -len(VIEW) :]) for part in (said, right)
    )
    there, numbers = theirs[..., :1], slice(1, 1 + len(OBJECT))
    values = {
        "there": F.binary_cross_entropy_with_logits(ours[..., :1], there),
        "places": ((ours - theirs)[..., numbers].abs() * _WEIGHTS * there).sum((1, 2)).mean() / 3,
        "view": 0.5 * (view - real).abs().mean(),
    }
    kinds = (part[there[..., 0] > 0][:, numbers.stop :].split(list(map(len, KINDS)), dim=1) for part in (ours, theirs))
    for name, ours, theirs in zip(("shapes", "colors"), *kinds, strict=True):
        values[name] = F.cross_entropy(ours, theirs)
    return values


def plan_of(batch: Batch) -> Tensor:
    """What is where in each still, [B, `PLAN_CHANNELS`, h, w]."""
    return plan(batch.layout, *batch.frames.shape[2:])


def within(shown: Tensor, sizes: float) -> Tensor:
    """Which pixels look past an object's middle within so many half sizes, 0 or 1, [B, `SLOTS`, h, w]."""
    objects = shown[:, 4:].unflatten(1, (SLOTS, OBJECT_CHANNELS))
    inside: Tensor = objects[:, :, 0] * (objects[:, :, 1:4].norm(dim=2) < sizes)
    return inside


def disarranged(frames: Tensor, shown: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Stills [B, 3, h, w] of which some show an object twice, as sampled ones do, the true one being the one to the
    left; in some the true one is gone, bool [B]: of those only what is drawn can be learned.
    """
    frames, (height, width) = frames.clone(), frames.shape[2:]
    moved = torch.zeros(len(frames), dtype=torch.bool)
    masks, around = within(shown, 1.05), within(shown, 1.4)
    for row in ((torch.rand(len(frames)) < _TWICE) & known).nonzero()[:, 0].tolist():
        present = int((masks[row].amax((1, 2)) > 0).sum())
        slot = int(torch.randint(max(present, 1), ()))
        mask, others = masks[row, slot], masks[row].sum(0) - masks[row, slot]
        gone = bool(torch.rand(()) < 0.4)
        side = 1 if not gone or torch.rand(()) < 0.5 else -1
        across, down = side * int((0.06 + 0.3 * torch.rand(())) * width), int(torch.randint(-3, 4, ()))
        source = frames[row].clone()
        if gone:
            hidden = around[row, slot]
            plain = (source * (1 - around[row].amax(0))).sum(2, keepdim=True)
            plain = plain / (1 - around[row].amax(0)).sum(1, keepdim=True).clamp(min=1)
            frames[row] = torch.where(hidden > 0, plain.expand(-1, height, width), frames[row])
            moved[row] = True
        there = mask.roll((down, across), (0, 1))
        edge = slice(None, across) if across > 0 else slice(across, None)
        there[:, edge] = 0
        strength = there * (1 - others) * (0.4 + 0.6 * torch.rand(())) * (torch.rand(()) < 0.9)
        frames[row] = torch.lerp(frames[row], source.roll((down, across), (1, 2)), strength)
    return frames, moved


def softened(vae: VideoAutoencoder, frames: Tensor) -> Tensor:
    """Stills [B, 3, h, w] as a denoiser makes them: outlines bent, noise on the latents, some of them blurred."""
    count = len(frames)
    some = (torch.rand(count) >= _WHOLE).float().view(-1, 1, 1, 1)
    frames = bent(frames, [some * pixels * torch.rand(count, 1, 1, 1) for _, pixels in _BENT])
    frames = still_roundtrip(vae, frames, some * _NOISE * torch.rand(count, 1, 1, 1))
    half = frames[: count // 2, :, None].expand(-1, -1, FRAMES_PER_LATENT, -1, -1)
    if vae.refiner is not None:
        with torch.autocast("cpu", torch.bfloat16):
            frames[: count // 2] = vae.refiner(half).float()[:, :, -1]
    blurred = some * (torch.rand(count, 1, 1, 1) < 0.5) * torch.rand(count, 1, 1, 1)
    return torch.lerp(frames, unet.blurred(frames), blurred).clamp(-1.1, 1.1)


def bent(frames: Tensor, pixels: Sequence[Tensor]) -> Tensor:
    """Frames [B, 3, h, w] moved a little, every cell elsewhere; by so many pixels, [B, 1, 1, 1] for each of `_BENT`."""
    count, _, height, width = frames.shape
    small, flow = (height // 4, width // 4), torch.zeros(())
    for (cells, _), far in zip(_BENT, pixels, strict=True):
        drawn = far * torch.randn(count, 2, *cells)
        flow = flow + F.interpolate(drawn, small, mode="bicubic", align_corners=True)
    flow = F.interpolate(flow, (height, width), mode="bilinear", align_corners=True)
    across = torch.linspace(-1, 1, width) + flow[:, 0] * (2 / width)
    down = torch.linspace(-1, 1, height)[:, None] + flow[:, 1] * (2 / height)
    return F.grid_sample(frames, torch.stack([across, down], dim=-1), padding_mode="border", align_corners=True)


def still_roundtrip(vae: VideoAutoencoder, frames: Tensor, noise: Tensor) -> Tensor:
    """Stills [B, 3, h, w] encoded and decoded, with noise [B, 1, 1, 1] on the latents: `encode_small` and
    `decode_linear` of eight equal frames, at an eighth of the cost.
    """
    cell, (height, width) = vae.cell, frames.shape[2:]
    filled = F.pad(frames, (0, -width % cell, 0, -height % cell), mode="replicate")
    basis, mean = (part.unflatten(-1, (3, FRAMES_PER_LATENT, -1)) for part in (vae.basis, vae.mean))
    pixels = F.pixel_unshuffle(filled, cell).permute(0, 2, 3, 1)
    latents = (pixels @ basis.sum(2).flatten(1).T - (basis * mean).sum((1, 2, 3))) * vae.scaling_factor
    latents = latents + noise * torch.randn_like(latents)
    pixels = latents / vae.scaling_factor @ basis[:, :, -1].flatten(1) + mean[:, -1].flatten()
    return F.pixel_shuffle(pixels.permute(0, 3, 1, 2), cell)[..., :height, :width]


if __name__ == "__main__":
    command(Options, "microcosm.training.still_refiner", Training)
