"""What a frame of a drive shows: `python -m microcosm.evaluation.corridor_probe` trains the network that reads it.

Trained as the probe of objects is: on rendered pictures, half of them as the autoencoder shows them. The last shard of
pictures is kept back to measure it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor, nn
from torch.nn import functional as F

from cosmorama.text.language import COLORS, FLOORS, LIGHTS, Corridor
from microcosm.evaluation.probe import teach, to_input, trunk
from microcosm.scenes.dataset import DATA
from microcosm.scenes.simulate import Frames
from microcosm.training.autoencoder import RUNS

FILE = "corridor_probe.pt"
ANSWERS: dict[str, int] = {
    "shelves": len(COLORS),
    "boxes": len(COLORS),
    "floor": len(FLOORS),
    "light": len(LIGHTS),
    "ahead": 1 + len(COLORS),
}
"""What is asked of a frame, and how many answers there are; ahead is nothing (0) or an object of a color."""
_BATCH = 32


def classes(corridor: Corridor) -> list[int]:
    """The right answers, in the order of `ANSWERS`."""
    ahead = 0 if corridor.ahead is None else 1 + COLORS.index(corridor.ahead.color)
    floor, light = FLOORS.index(corridor.floor), LIGHTS.index(corridor.light)
    return [COLORS.index(corridor.shelves), COLORS.index(corridor.boxes), floor, light, ahead]


class CorridorProbe(nn.Module):
    """The convolutions of `Probe`, and linear answers from their mean over the left, middle and right third."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, width = trunk()
        self.answers = nn.Linear(3 * width, sum(ANSWERS.values()))

    def forward(self, frames: Tensor) -> Sequence[Tensor]:
        """Frames [B, 3, h, w] in [-1, 1] to logits [B, answers] of each question."""
        features = F.adaptive_avg_pool2d(self.layers(frames), (1, 3))
        parts: Sequence[Tensor] = self.answers(features.flatten(1)).split(list(ANSWERS.values()), dim=1)
        return parts

    @torch.inference_mode()
    def look(self, frames: Frames) -> Tensor:
        """The likeliest answers [B, questions] for frames uint8 [B, h, w, 3]."""
        parts = np.array_split(frames, max(1, len(frames) // _BATCH))
        return torch.cat([_likeliest(self(to_input(part))) for part in parts])


def _likeliest(logits: Sequence[Tensor]) -> Tensor:
    return torch.stack([part.argmax(1) for part in logits], 1)


@dataclass(frozen=True, slots=True)
class Labelled:
    """Frames and the right answers [N, questions]; see `probe.Pictures`."""

    frames: Frames
    answers: Tensor

    @classmethod
    def label(cls, frames: Frames, scenes: Sequence[Corridor]) -> Labelled:
        """Frames of drives."""
        return cls(frames, torch.tensor([classes(scene) for scene in scenes]))

    def loss(self, answers: Sequence[Tensor], rows: Tensor) -> Tensor:
        """See `probe.Pictures`."""
        right = self.answers[rows].unbind(1)
        return torch.stack([F.cross_entropy(*pair) for pair in zip(answers, right, strict=True)]).sum()

    def right(self, answers: Sequence[Tensor]) -> dict[str, Tensor]:
        """See `probe.Pictures`."""
        return dict(zip(ANSWERS, (_likeliest(answers) == self.answers).unbind(1), strict=True))


def main(
    data: Annotated[Path, typer.Option()] = DATA,
    runs: Annotated[Path, typer.Option()] = RUNS,
    steps: int = 1200,
    seed: int = 0,
) -> None:
    """Train the probe and measure it on pictures it has not seen, rendered and decoded."""
    torch.manual_seed(seed)
    teach(CorridorProbe(), Labelled.label, "corridor-images", data, runs / FILE, steps)


if __name__ == "__main__":
    typer.run(main)
