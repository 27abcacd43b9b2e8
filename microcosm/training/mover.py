"""Trains what moves objects: `python -m microcosm.training.mover --minutes 40 --decay-minutes 20`; runs are resumed.

It sees no pictures: the simulator says where objects are, and that is cheap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor

from cosmorama.text.language import mirror_caption
from cosmorama.text.reader import NamedObject, PromptScene
from cosmorama.world.microcosm.layout import SLOTS, Layout
from cosmorama.world.microcosm.mover import LOOKS, MOTIONS, STEPS_S, Mover, said_of, things_of
from cosmorama.world.microcosm.text_encoder import TextEncoder
from microcosm.scenes.captions import random_caption
from microcosm.scenes.simulate import Shot, draw_shot, states
from microcosm.training.loop import PartOptions, PartTrainer, command
from microcosm.training.stills import layouts_of

_FIRST_SEED, _SHOTS, _SECONDS = 20_000_000, 1000, 5  # of a file
_SILENT, _STRANGE = 0.1, 0.4  # shares of prompts that say nothing, and of which nothing is understood
_OFF = torch.tensor([0.02, 0.08, 0.02, 0.02])  # how far off places are that were read, m and rad, at all moments alike
_JITTER = torch.tensor([0.004, 0.01, 0.004, 0.02])  # and at each
_OFF_HALF = 0.012
_FASTER = 0.02  # how far off velocities are that are rolled from
_BEGINS, _EARLY = 17, 0.6  # steps in which what begins is taken, and the share of these
_NOTHING, _BOTH = 0.45, 0.45  # shares of those of which nothing was seen before, or two moments
_AGE = 4, 16  # steps between two looks
_ROLLED, _FEWER = (16, 96), 4  # steps, and of how few of a batch: each costs as much as all of a guess
_TURN, _OUT_M = 0.2, 4.5  # weight of turns; how far out nobody looks any more


@dataclass(frozen=True, kw_only=True)
class Options(PartOptions):
    """One run."""

    name: Annotated[str, typer.Option(help="Name of the checkpoint in RUNS.")] = "mover"
    files: Annotated[int, typer.Option(help=f"Files of {_SHOTS} simulated shots to learn from.")] = 20
    batch: int = 1024
    processes: int = 1


@dataclass(slots=True)
class Motions:
    """Simulated shots, objects from the left.

    Attributes:
        places: At every step, [N, steps, `SLOTS`, 4], see `Mover`.
        begin: How fast they begin, [N, `SLOTS`, 4].
        things: What they are, [N, `SLOTS`, 11].
        said: What is understood of their prompts, [N, `SLOTS`, `WORDS`].
        text: Their prompts' first states, of two wordings each and those of the mirrored shot, [N, 2, 2, D].
    """

    places: Tensor
    begin: Tensor
    things: Tensor
    said: Tensor
    text: Tensor = field(default_factory=lambda: torch.empty(0))


_ARRAYS = "places", "begin", "things", "said"


def read_motions(folder: Path, numbers: range) -> Motions:
    """Files of simulated shots, which are made if they are not there."""
    parts = []
    for number in numbers:
        path = folder / f"motions-{number:04d}.npz"
        if not path.exists():
            _write(path, [draw_shot(_FIRST_SEED + index) for index in range(number * _SHOTS, (number + 1) * _SHOTS)])
        with np.load(path) as arrays:
            parts.append([torch.from_numpy(arrays[name]) for name in _ARRAYS])
    return Motions(*map(torch.cat, zip(*parts, strict=True)))


@torch.inference_mode()
def wordings(text_encoder: TextEncoder, shots: int) -> Tensor:
    """See `Motions.text`."""
    captions: list[str] = []
    for seed in range(_FIRST_SEED, _FIRST_SEED + shots):
        rng, scene = np.random.default_rng(seed), draw_shot(seed).scene
        for caption in (random_caption(scene, rng), random_caption(scene, rng)):
            captions += caption, mirror_caption(caption)
    states = [text_encoder(captions[first : first + 500])[0][:, 0] for first in range(0, len(captions), 500)]
    told: Tensor = torch.cat(states).unflatten(0, (shots, 2, 2))
    return told


def _write(path: Path, shots: Sequence[Shot]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    times = np.arange(_SECONDS * STEPS_S + 1) / STEPS_S
    places = np.zeros((len(shots), len(times), SLOTS, 4), np.float32)
    for row, shot in zip(places, shots, strict=True):
        moments = states(shot, list(times))
        row[:, : len(shot.bodies)] = moments[:, _order(shot)]
    told = [np.stack(some) for some in zip(*map(_told, shots), strict=True)]
    np.savez(path.with_suffix(".tmp.npz"), **dict(zip(_ARRAYS, (places, *told), strict=True)))  # type: ignore[arg-type]
    path.with_suffix(".tmp.npz").rename(path)


def _order(shot: Shot) -> list[int]:
    """Which objects stand where, from the left."""
    return sorted(range(len(shot.bodies)), key=lambda index: shot.bodies[index].position_m[0])


def _told(shot: Shot) -> tuple[NDArray[np.float32], ...]:
    """How fast a shot's objects begin, what they are, and what its prompt says."""
    ((objects, view),) = layouts_of(shot, [0.0], mirrored=False)
    layout = Layout(torch.from_numpy(objects)[None], torch.from_numpy(view)[None])
    named = tuple(NamedObject(thing.shape, thing.color) for thing in shot.scene.objects)
    said = said_of(PromptScene(named, shot.scene.motion, shot.scene.direction), layout)
    begin = np.zeros((SLOTS, 4), np.float32)
    begin[_order(shot).index(0), 0] = shot.bodies[0].velocity_m_s
    return begin, things_of(layout)[0].numpy(), said[0].numpy()


class Training(PartTrainer[Motions, Options]):
    """Trains both on the same shots: velocities by what is seen and said, and steps from true ones."""

    unit, kind = "shots", Mover

    def new(self) -> dict[str, Any]:
        """See `PartTrainer`."""
        return {"text_width": self.text_encoder.config["width"]}

    def draws(self, seed: int) -> Iterator[Motions]:
        """See `Trainer`."""
        known, rng = read_motions(self.options.data, range(self.options.files)), np.random.default_rng(seed)
        known.text = wordings(self.text_encoder, len(known.places)).clone()
        self._nothing = self.text_encoder([""])[0][:, 0].detach()
        while True:
            yield taken(known, torch.from_numpy(rng.integers(len(known.places), size=self.options.batch)))

    def loss_of(self, batch: Motions) -> tuple[Tensor, dict[str, float], float]:
        """See `Trainer`."""
        fewer = slice(len(batch.begin) // _FEWER)
        some = Motions(batch.places[fewer], batch.begin[fewer], batch.things[fewer], batch.said[fewer])
        rolled, guessed = self.rolled(some), self.guessed(batch)
        return (
            rolled + guessed,
            {"rolled": float(rolled.detach()), "guessed": float(guessed.detach())},
            len(batch.begin),
        )

    def rolled(self, batch: Motions) -> Tensor:
        """How far objects come from where they really go, in m."""
        steps = int(torch.randint(*_ROLLED, ()))
        start = self._starts(batch, steps)
        later, things = self._read(batch, start[:, None] + torch.arange(steps + 1))
        velocity = velocities_at(batch, start)
        off = self.net(later[:, 0], velocity + _FASTER * torch.randn_like(velocity), things, steps) - later[:, 1:]
        there, cube = things[:, None, :, 0], things[:, None, :, 3]
        turned = _TURN * cube * (2 - 2 * (4 * off[..., 3]).cos() + 1e-6).sqrt()
        counts = there * (later[:, 1:, :, 0].abs() < _OUT_M)
        away: Tensor = ((off[..., :3].abs().sum(-1) + turned) * counts).sum() / counts.sum()
        return away

    def guessed(self, batch: Motions) -> Tensor:
        """How far velocities are from quantiles of what they really are: the pinball loss."""
        start = self._starts(batch, 1)
        gap = torch.randint(*_AGE, start.shape)
        looks, which = start[:, None] - gap[:, None] * torch.arange(LOOKS), torch.rand(len(start))
        known = (looks >= 0) & ((which > _NOTHING)[:, None] | (torch.arange(LOOKS) == 0))
        known &= (which > 1 - _BOTH)[:, None] | (torch.arange(LOOKS) < LOOKS - 1)
        seen, things = self._read(batch, looks.clamp(min=0))
        seen = seen + _JITTER * torch.randn_like(seen)
        ages = torch.where(known, gap[:, None] * torch.arange(LOOKS) / STEPS_S, -1.0)
        said, text, chance = batch.said.clone(), batch.text.clone(), torch.rand(*batch.begin.shape)
        silent = torch.rand(len(said))
        text[silent < _SILENT] = self._nothing
        said[silent < _SILENT + _STRANGE] = 0
        said[silent < _SILENT + _STRANGE, :, len(MOTIONS)] = 1
        off = velocities_at(batch, start) - self.net.velocities(seen, ages, things, said, text, chance)
        loss = torch.maximum(chance * off, (chance - 1) * off) * torch.tensor([1.0, 0.5, 1.0, 0.3])
        return (loss.sum(-1) * things[..., 0]).sum() / things[..., 0].sum()

    def _read(self, batch: Motions, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Where objects are at steps [B, T], as they would be read off pictures, and the objects so."""
        places, things = batch.places[torch.arange(len(steps))[:, None], steps], batch.things.clone()
        things[..., 1] += _OFF_HALF * torch.randn_like(things[..., 1])
        return places + _OFF * torch.randn_like(batch.begin)[:, None], things

    def _starts(self, batch: Motions, steps: int) -> Tensor:
        """At which steps what is taken begins: many at the beginning of the action."""
        count, most = len(batch.begin), batch.places.shape[1] - 1 - steps
        early = torch.rand(count) < _EARLY
        return (torch.rand(count) ** 1.5 * torch.where(early, _BEGINS, most // 2)).long() * (torch.rand(count) > 0.2)


def velocities_at(batch: Motions, steps: Tensor) -> Tensor:
    """How fast the objects of shots are at a step each, [B, `SLOTS`, 4]."""
    rows = torch.arange(len(steps))
    since = (batch.places[rows, steps] - batch.places[rows, (steps - 1).clamp(min=0)]) * STEPS_S
    return torch.where((steps > 0).view(-1, 1, 1), since, batch.begin)


def taken(known: Motions, rows: Tensor) -> Motions:
    """Some shots, about half of them mirrored."""
    places, begin, things, said = (part[rows].clone() for part in (known.places, known.begin, known.things, known.said))
    mirrored = torch.rand(len(rows)) < 0.5
    sides = torch.where(mirrored, -1.0, 1.0)
    for part in (places[..., 0], places[..., 3], begin[..., 0], said[..., -4]):
        part *= sides.view(-1, *[1] * (part.ndim - 1))
    return Motions(places, begin, things, said, known.text[rows, torch.randint(2, (len(rows),)), mirrored.long()])


if __name__ == "__main__":
    command(Options, Training)
