"""Trains what follows objects through clips: `python -m microcosm.training.tracker --minutes 60`; runs are resumed.

It is shown what the denoiser made of the first frames of rendered clips, and asked where the objects are in those.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from cosmorama.text.language import SHAPES
from cosmorama.world.microcosm.autoencoder import FRAMES_PER_LATENT
from cosmorama.world.microcosm.layout import OBJECT, Layout, in_sight
from cosmorama.world.microcosm.loader import load_component
from cosmorama.world.microcosm.text_encoder import TextEncoder
from cosmorama.world.microcosm.tracker import Tracker
from microcosm.scenes.simulate import draw_shot
from microcosm.training.export import WEIGHTS
from microcosm.training.loop import OneStageRun, Trainer, command
from microcosm.training.made import MADE
from microcosm.training.stills import layouts_of

_READ = torch.tensor([0.02, 0.05, 0.02, 0.01, 0.03])  # how far off a still's layout may be in an object's numbers
_LEAST = 0.01  # spread, in `OBJECT`'s units


@dataclass(frozen=True, kw_only=True)
class Options(OneStageRun):
    """One run."""

    weights: Annotated[Path, typer.Option(help="Where the autoencoder is.")] = WEIGHTS
    made: Annotated[Path, typer.Option(help="What the denoiser made.")] = MADE
    name: Annotated[str, typer.Option(help="Name of the checkpoint in RUNS.")] = "tracker"
    batch: int = 8


@dataclass(slots=True)
class Clip:
    """A clip that was made: its still and the frames looked at, uint8, and where everything really goes."""

    still: Tensor
    looks: Tensor
    given: Tensor
    seconds: float
    layouts: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
    """Objects of all frames and the view, as they are and mirrored."""


@dataclass(slots=True)
class Batch:
    """Clips of one size and length; see `Tracker.forward`, and all layouts [B, 1 + 8 T, ...]."""

    still: Tensor
    looks: Tensor
    seconds: Tensor
    given: Tensor
    objects: Tensor
    view: Tensor


def clips_of(made: Path, data: Path) -> Iterator[Clip]:
    """What was made of rendered clips, see `microcosm.training.made`."""
    for path in sorted(made.glob("*.npz")):
        if path.stem.startswith("stills"):
            continue
        looks, rendered = dict(np.load(path)), dict(np.load(data / path.name))
        taken: dict[str, int] = defaultdict(int)
        for row in map(json.loads, path.with_suffix(".jsonl").read_text().splitlines()):
            name = row["array"]
            looked = looks[name][taken[name]]
            taken[name] += 1
            shot, times = draw_shot(row["seed"]), np.arange(1 + FRAMES_PER_LATENT * len(looked)) / row["fps"]
            both = []
            for mirrored in (False, True):
                found = layouts_of(shot, list(times), mirrored=mirrored)
                both.append((torch.from_numpy(np.stack([one for one, _ in found])), torch.from_numpy(found[0][1])))
            yield Clip(
                torch.from_numpy(rendered[name][row["row"], 0]),
                torch.from_numpy(looked),
                torch.arange(1, len(looked) + 1) * FRAMES_PER_LATENT < row["given"],
                FRAMES_PER_LATENT / row["fps"],
                (both[0], both[1]),
            )


class Training(Trainer[Batch, Options]):
    """Trains on clips that the denoiser made."""

    unit = "clips"

    def build(self, config: dict[str, Any] | None) -> None:
        """See `Trainer`."""
        self.net = Tracker(**(config or {}))
        self.text_encoder = load_component(TextEncoder, self.options.weights / "text_encoder")

    def draws(self, seed: int) -> Iterator[Batch]:
        """See `Trainer`."""
        groups: dict[tuple[int, ...], list[Clip]] = defaultdict(list)
        for clip in clips_of(self.options.made, self.options.data):
            groups[tuple(clip.looks.shape)].append(clip)
        rng, names = np.random.default_rng(seed), list(groups)
        weights = np.array([len(groups[name]) * name[0] ** 0.5 for name in names])
        while True:
            some = groups[names[int(rng.choice(len(names), p=weights / weights.sum()))]]
            size = max(2, self.options.batch * 4 // len(some[0].looks))
            yield _batch([some[int(index)] for index in rng.integers(len(some), size=size)], rng)

    def loss_of(self, batch: Batch) -> tuple[Tensor, dict[str, float], float]:
        """See `Trainer`."""
        first = batch.objects[:, 0].clone()
        first[..., 1:6] += _READ * torch.randn(first[..., 1:6].shape)
        layout = Layout(first, batch.view)
        with torch.autocast("cpu", torch.bfloat16):
            gone, spread = self.net(batch.still, batch.looks, layout, batch.seconds, batch.given)
        later = batch.objects[:, 1:]
        wanted = (later[..., 1:4] - first[:, None, :, 1:4]) / OBJECT[:3, 1]
        turned = 4 * (later[..., 5] - first[:, None, :, 5])
        wanted = torch.cat([wanted, turned.sin()[..., None], turned.cos()[..., None]], dim=-1)
        cube = first[:, None, :, 6 + SHAPES.index("cube")]
        off = (gone - wanted).abs() * torch.tensor([1.0, 0.5, 1.0, 0.15, 0.15])
        off = off[..., :3].sum(-1) + off[..., 3:].sum(-1) * cube
        seen = in_sight(later, *batch.still.shape[2:]).float()
        scale = spread.exp().repeat_interleave(FRAMES_PER_LATENT, dim=1) + _LEAST
        loss = ((off / scale + scale.log()) * seen).sum() / seen.sum().clamp(min=1)
        said = {"off": float(((off * seen).sum() / seen.sum()).detach()), "loss": float(loss.detach())}
        shown = seen[..., None] * (gone - wanted).detach().abs()[..., :3]
        x, y, z = (shown.sum((0, 1, 2)) / seen.sum() * OBJECT[:3, 1]).tolist()
        return loss, said | {"x_m": x, "y_m": y, "z_m": z}, len(gone)


def _batch(clips: list[Clip], rng: np.random.Generator) -> Batch:
    sides = rng.random(len(clips)) < 0.5
    still = [one.still.flip(1) if side else one.still for one, side in zip(clips, sides, strict=True)]
    looks = [one.looks.flip(4) if side else one.looks for one, side in zip(clips, sides, strict=True)]
    layouts = [one.layouts[int(side)] for one, side in zip(clips, sides, strict=True)]
    return Batch(
        torch.stack(still).permute(0, 3, 1, 2).float() / 127.5 - 1,
        torch.stack(looks).float() / 127.5 - 1,
        torch.tensor([one.seconds for one in clips]),
        torch.stack([one.given for one in clips]),
        torch.stack([layout[0] for layout in layouts]),
        torch.stack([layout[1] for layout in layouts]),
    )


if __name__ == "__main__":
    command(Options, "microcosm.training.tracker", Training)
