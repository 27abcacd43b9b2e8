"""What a frame of a drive shows: `python -m microcosm.evaluation.corridor_probe` trains the network that reads it.

Trained as the probe of objects is: on rendered pictures, half of them as the autoencoder shows them. The last shard of
pictures is kept back to measure it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor, nn
from torch.nn import functional as F

from cosmorama.text.corridor_language import LIGHTS, Corridor
from cosmorama.text.scene_language import COLORS, FLOORS
from cosmorama.world.microcosm.autoencoder import VideoAutoencoder
from microcosm.evaluation.probe import as_decoded, to_input, train, trunk
from microcosm.scenes.dataset import DATA, read_shards
from microcosm.scenes.simulate import SIZES, Frames
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
class Pictures:
    """Rendered frames uint8 [N, 88, 160, 3] and the right answers [N, questions]."""

    frames: Frames
    answers: Tensor

    def loss(self, logits: Sequence[Tensor], rows: Tensor) -> Tensor:
        """How wrong a probe's answers to some of the frames are."""
        right = self.answers[rows].unbind(1)
        return torch.stack([F.cross_entropy(*pair) for pair in zip(logits, right, strict=True)]).sum()


@torch.inference_mode()
def accuracy(probe: CorridorProbe, frames: Tensor, answers: Tensor) -> dict[str, float]:
    """Share of right answers to each question."""
    found = torch.cat([_likeliest(probe(part)) for part in frames.split(_BATCH)])
    shares = (found == answers).float().mean(0).tolist()
    return {name: round(share, 4) for name, share in zip(ANSWERS, shares, strict=True)}


def load_corridor_probe(path: Path) -> tuple[CorridorProbe, dict[str, Any]]:
    """The trained probe and how well it did on pictures it was not trained on."""
    state = torch.load(path, weights_only=True)
    probe = CorridorProbe()
    probe.load_state_dict(state["probe"])
    return probe.eval(), state["accuracy"]


def read_pictures(folder: Path) -> list[Pictures]:
    """The 16:9 pictures of each shard."""
    name = f"{SIZES[0][0]}x{SIZES[0][1]}"
    shards = []
    for arrays, labels in read_shards("corridor-images", folder):
        scenes = [label.scene for label in labels if label.array == name and isinstance(label.scene, Corridor)]
        shards.append(Pictures(arrays[name][:, 0], torch.tensor([classes(scene) for scene in scenes])))
    return shards


def main(
    data: Annotated[Path, typer.Option()] = DATA,
    runs: Annotated[Path, typer.Option()] = RUNS,
    steps: int = 1200,
    seed: int = 0,
) -> None:
    """Train the probe and measure it on pictures it has not seen, rendered and decoded."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    vae = VideoAutoencoder.from_pretrained(runs / "vae")
    *shards, unseen = read_pictures(data)
    together = Pictures(np.concatenate([some.frames for some in shards]), torch.cat([some.answers for some in shards]))
    probe = CorridorProbe()
    train(probe, together.frames, together.loss, vae, steps)
    frames = to_input(unseen.frames)
    figures = {
        "rendered": accuracy(probe, frames, unseen.answers),
        "decoded": accuracy(probe, as_decoded(vae, frames), unseen.answers),
    }
    torch.save({"probe": probe.state_dict(), "accuracy": figures}, runs / FILE)
    print(json.dumps(figures))


if __name__ == "__main__":
    typer.run(main)
