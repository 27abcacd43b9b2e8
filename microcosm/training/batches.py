"""What the denoiser trains on: which latents, captions and given frames make a batch."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from cosmorama.text.scene_language import mirror_caption
from microcosm.scenes.captions import empty_prompt, random_caption
from microcosm.scenes.shots import World, world_of
from microcosm.training.auxiliary import UNKNOWN, scene_classes
from microcosm.training.latents import Group

EMPTY_SHARE = 0.12


@dataclass(frozen=True, slots=True)
class Stage:
    """What a stage trains on: the share of each latent length in the batches, world by world, and how many make a
    batch.
    """

    shares: dict[World, dict[int, float]]
    batch: dict[int, int] = field(default_factory=lambda: {1: 24, 5: 6, 16: 2})

    def share(self, group: Group) -> float:
        """The share of the clips that are of a group's world and length."""
        world, length = _kind(group)
        return self.shares.get(world, {}).get(length, 0)


def _kind(group: Group) -> tuple[World, int]:
    return world_of(group.scenes[0]), group.latents.shape[2]


STAGES = {
    "images": Stage({"objects": {1: 1.0}}),
    "clips": Stage({"objects": {1: 0.25, 5: 0.75}}),
    "full": Stage({"objects": {1: 0.4, 5: 0.35, 16: 0.25}}),
    "onward": Stage({"objects": {1: 0.15, 5: 0.7, 16: 0.15}}),
    # Of objects the network knows by then how stills look.
    "both": Stage({"objects": {1: 0.07, 5: 0.35, 16: 0.08}, "corridor": {1: 0.2, 5: 0.22, 16: 0.08}}),
}


@dataclass(slots=True)
class Batch:
    """Inputs of one training step: clean latents [B, C, T, H, W], prompts, the clips' rate, given frames k [B],
    and what the prompts mean [B, 12] (see `auxiliary.scene_classes`).
    """

    clean: Tensor
    prompts: list[str]
    fps: int
    given: Tensor
    targets: Tensor
    world: World = "objects"


class Batches:
    """Draws batches of one latent shape and rate at a time."""

    def __init__(self, groups: list[Group], stage: Stage) -> None:
        self.groups, self.stage = groups, stage
        self.seed(0, 0)
        rows: dict[tuple[World, int], int] = defaultdict(int)
        for group in groups:
            rows[_kind(group)] += len(group.scenes)
        # Batches are drawn per sequence position, so that a share is one of the computing time.
        weights = np.array(
            [
                stage.share(group)
                / (group.latents.shape[2] * stage.batch[group.latents.shape[2]])
                * len(group.scenes)
                / rows[_kind(group)]
                for group in groups
            ]
        )
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
        return Batch(group.latents[rows].float(), prompts, group.fps, torch.from_numpy(given), targets, _kind(group)[0])

    def _prompt(self, group: Group, row: int) -> str:
        caption = random_caption(group.scenes[row], self.rng)
        return mirror_caption(caption) if group.mirrored[row] else caption
