"""Actions in Cosmos3: the robots it knows, and rows of numbers as latents beside the clip.

Numbers and widths are those of diffusers' `Cosmos3OmniPipeline` (Cosmos 3 paper, figure 3): an action is put together
from poses (3 of translation, 6 of rotation), grippers (1) and hands (15).
"""

from __future__ import annotations

import torch
from torch import Tensor

from cosmorama.request import Action, ActionDomain, Mode

DOMAINS: tuple[ActionDomain, ...] = (
    ActionDomain(1, "av", 9),
    ActionDomain(2, "camera_pose", 9),
    ActionDomain(3, "hand_pose", 57),
    ActionDomain(4, "pusht", 2),
    ActionDomain(6, "umi", 10),
    ActionDomain(7, "bridge_orig_lerobot", 10),
    ActionDomain(8, "droid_lerobot", 10),
    ActionDomain(9, "galbot", 30),
    ActionDomain(12, "robomind-franka-dual", 20),
    ActionDomain(13, "robomind-ur", 10),
    ActionDomain(15, "agibotworld", 29),
    ActionDomain(20, "fractal", 10),
)
ACTION_MODES: tuple[Mode, ...] = ("forward_dynamics", "inverse_dynamics", "policy")


def known_domains(action_dim: int, domains: int) -> tuple[ActionDomain, ...]:
    """The robots of a checkpoint with actions of `action_dim` numbers and projections for `domains` robots."""
    return tuple(domain for domain in DOMAINS if domain.width <= action_dim and domain.id < domains)


def given_actions(action: Action, action_dim: int) -> Tensor:
    """The request's actions `[steps, action_dim]`: the last one repeated or the rest left out, padded with zeros."""
    values = torch.tensor(action.values, dtype=torch.float32)
    missing = max(0, action.steps - len(values))
    values = torch.cat([values, values[-1:].expand(missing, -1)])[: action.steps]
    return torch.nn.functional.pad(values, (0, action_dim - values.shape[1]))
