"""What the denoiser trains on: which latents, captions and given frames make a batch."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from cosmorama.text.scene_language import mirror_caption
from microcosm.auxiliary import UNKNOWN, scene_classes
from microcosm.captions import empty_prompt, random_caption
from microcosm.latents import Group

EMPTY_SHARE = 0.12


@dataclass(frozen=True, slots=True)
class Stage:
    """What a stage trains on: the share of each latent length in the batches, and how many make a batch."""

    shares: dict[int, float]
    batch: dict[int, int] = field(default_factory=lambda: {1: 24, 5: 6, 16: 2})


STAGES = {
    "images": Stage({1: 1.0}),
    "clips": Stage({1: 0.25, 5: 0.75}),
    "full": Stage({1: 0.4, 5: 0.35, 16: 0.25}),
    "onward": Stage({1: 0.15, 5: 0.7, 16: 0.15}),
}


@dataclass(slots=True)
class Batch:
    """Inputs of one training step: clean latents [B, C, T, H, W], prompts, the clips' rate, given frames k [B],
    and what the prompts mean [B, 8] (see `auxiliary.scene_classes`).
    """

    clean: Tensor
    prompts: list[str]
    fps: int
    given: Tensor
    targets: Tensor


class Batches:
    """Draws batches of one latent shape and rate at a time."""

    def __init__(self, groups: list[Group], stage: Stage) -> None:
        self.groups, self.stage = groups, stage
        self.seed(0, 0)
        weights = np.zeros(len(groups))
        for length, share in stage.shares.items():
            rows = [len(group.scenes) if group.latents.shape[2] == length else 0 for group in groups]
            # Batches are drawn per sequence position, so that a share is one of the computing time.
            weights += share / (length * stage.batch[length]) * np.array(rows) / max(1, sum(rows))
        self.weights = weights / weights.sum()

    def seed(self, seed: int, rank: int) -> None:
        """Begin anew. Workers with one seed draw batches of the same shape, so that none waits long for another."""
        self.rng, self._shapes = np.random.default_rng([seed, rank]), np.random.default_rng(seed)

    def draw(self) -> Batch:
        """The next batch."""
        group = self.groups[int(self._shapes.choice(len(self.groups), p=self.weights))]
        length = group.latents.shape[2]
        rows = self.rng.integers(len(group.scenes), size=self.stage.batch[length])
        targets = torch.tensor([scene_classes(group.scenes[row], group.mirrored[row]) for row in rows])
        targets[torch.from_numpy(self.rng.random(len(rows)) < EMPTY_SHARE)] = UNKNOWN
        is_empty = (targets == UNKNOWN).all(1).tolist()
        prompts = [
            empty_prompt(self.rng) if empty else self._prompt(group, int(row))
            for row, empty in zip(rows, is_empty, strict=True)
        ]
        given = self.rng.choice((1, 2), size=len(rows), p=(0.55, 0.45)) if length > 2 else np.zeros(len(rows), int)
        return Batch(group.latents[rows].float(), prompts, group.fps, torch.from_numpy(given), targets)

    def _prompt(self, group: Group, row: int) -> str:
        caption = random_caption(group.scenes[row], self.rng)
        return mirror_caption(caption) if group.mirrored[row] else caption
