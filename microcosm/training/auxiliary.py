"""Extra supervision during training, dropped afterwards: the simulator knows what every caption and every token means.

Two linear heads: one reads the scene off the text encoder's start token, one reads off the tokens of a middle layer of
the denoiser which color of object, if any, each will show (the idea of arXiv 2410.06940, with exact labels). Both make
small objects count that are a few percent of the picture and of its squared error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cosmorama.text.language import (
    COLORS,
    DIRECTIONS,
    FLOORS,
    LIGHTS,
    MOTIONS,
    SHAPES,
    SKIES,
    SPEEDS,
    Corridor,
    SceneObject,
)
from cosmorama.world.microcosm.autoencoder import VideoAutoencoder
from microcosm.evaluation.probe import classes_of
from microcosm.scenes.shots import AnyScene

_THING = (len(COLORS), len(SHAPES))
_DRIVE = (len(COLORS), len(COLORS), len(LIGHTS), len(SPEEDS))
_CLASSES = (*_THING, len(MOTIONS), len(DIRECTIONS), len(FLOORS), len(SKIES), *_THING, *_DRIVE)
ATTRIBUTES = len(_CLASSES)
UNKNOWN = -1


def scene_classes(scene: AnyScene, mirrored: bool) -> list[int]:
    """Class numbers of a scene's attributes, in the order of the text head; what it lacks is `UNKNOWN`."""
    if isinstance(scene, Corridor):
        colors = [COLORS.index(scene.shelves), COLORS.index(scene.boxes)]
        floor = [UNKNOWN, UNKNOWN, FLOORS.index(scene.floor), UNKNOWN]
        drive = [*colors, LIGHTS.index(scene.light), SPEEDS.index(scene.speed)]
        return [*_thing(scene.ahead), *floor, UNKNOWN, UNKNOWN, *drive]
    direction = UNKNOWN if scene.direction is None else DIRECTIONS.index(scene.direction) ^ int(mirrored)
    return [
        *_thing(scene.objects[0]),
        MOTIONS.index(scene.motion),
        direction,
        FLOORS.index(scene.floor),
        SKIES.index(scene.sky),
        *_thing(scene.objects[1] if len(scene.objects) > 1 else None),
        *[UNKNOWN] * 4,
    ]


def _thing(thing: SceneObject | None) -> list[int]:
    return [UNKNOWN, UNKNOWN] if thing is None else [COLORS.index(thing.color), SHAPES.index(thing.shape)]


def cell_classes(vae: VideoAutoencoder, clean: Tensor) -> Tensor:
    """Which color of object each cell of latents [B, C, T, H, W] mostly shows: [B, T, H, W], 0 for none."""
    colors = vae.basis.unflatten(1, (3, -1)).mean(2) / vae.scaling_factor
    offset = vae.mean.unflatten(0, (3, -1)).mean(1)
    return 1 + classes_of((torch.einsum("bcthw,cd->bthwd", clean, colors) + offset) / 2 + 0.5, 0.15)


class Auxiliary(nn.Module):
    """The two heads.

    Args:
        width: Hidden width of the denoiser.
        text_width: Width of the text encoder.
    """

    def __init__(self, width: int, text_width: int) -> None:
        super().__init__()
        self.text_head = nn.Linear(text_width, sum(_CLASSES))
        self.token_head = nn.Linear(width, 1 + len(COLORS))
        self.tokens: Tensor | None = None

    def watch(self, net: Any, layer: int) -> None:
        """Keep what enters transformer block `layer` at every evaluation."""

        def keep(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
            self.tokens = arguments[0]

        net.transformer_blocks[layer].norm1.norm.register_forward_pre_hook(keep)

    def loss(self, clean_classes: Tensor, is_given: Tensor, text: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropies of both heads.

        Args:
            clean_classes: [B, T, H, W] from `cell_classes`.
            is_given: bool [B, T], frames that are conditions and so give the answer away.
            text: Text states [B, S, D].
            targets: [B, ATTRIBUTES] from `scene_classes`, all `UNKNOWN` for empty prompts.
        """
        assert self.tokens is not None
        logits = self.token_head(self.tokens.float())  # [B, T, rows * columns, classes]
        patches = (
            clean_classes.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).transpose(3, 4)
        )  # [B, T, rows, columns, 2, 2]
        labels = patches.flatten(4).amax(4).flatten(2).masked_fill(is_given[:, :, None], UNKNOWN)
        weights = torch.tensor([0.15] + [1.0] * len(COLORS), device=labels.device)
        total = F.cross_entropy(logits.flatten(0, 2), labels.flatten(), weights, ignore_index=UNKNOWN)
        return total + self._text_loss(text[:, 0], targets)

    def _text_loss(self, start: Tensor, targets: Tensor) -> Tensor:
        parts: Sequence[Tensor] = self.text_head(start).split(_CLASSES, dim=1)
        losses = [
            F.cross_entropy(part, target, ignore_index=UNKNOWN, reduction="sum")
            for part, target in zip(parts, targets.T, strict=True)
        ]
        return torch.stack(losses).sum() / (targets != UNKNOWN).sum().clamp_min(1)
