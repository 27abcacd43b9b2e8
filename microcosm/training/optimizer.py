"""Muon for the matrices inside the networks, AdamW for the rest, and an exponential moving average of all weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon takes this weight: matrices and kernels inside the blocks, not what is at the ends."""
    if parameter.ndim == 4:
        return not {"read", "write"} & set(name.split(".")) and min(parameter.shape[:2]) >= 32
    return "transformer_blocks." in name and parameter.ndim == 2 and min(parameter.shape) >= 64


class Optimizer:
    """Muon (arXiv 2502.16982) and AdamW together over some modules, with gradient clipping and moving averages.

    The size of Muon's updates matches that of AdamW's, so one learning rate serves both.
    """

    def __init__(self, modules: Iterable[nn.Module], ema_decay: float) -> None:
        named = [(name, parameter) for module in modules for name, parameter in module.named_parameters()]
        named = [(name, parameter) for name, parameter in named if parameter.requires_grad]
        self.parameters: list[Tensor] = [parameter for _, parameter in named]
        self._inner = [parameter for name, parameter in named if is_matrix(name, parameter)]
        # The kernels of a convolution are one matrix, in the same memory.
        self._matrices = [parameter.detach().view(len(parameter), -1) for parameter in self._inner]
        rest = [parameter for name, parameter in named if not is_matrix(name, parameter)]
        self._muon = torch.optim.Muon(
            [{"params": self._matrices}], weight_decay=0.01, ns_steps=4, adjust_lr_fn="match_rms_adamw"
        )
        self._adamw = torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.01, foreach=True)
        self.averages = [parameter.detach().clone() for parameter in self.parameters]
        self.ema_decay, self.steps = ema_decay, 0

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Clip the gradients to norm 1, update the weights and the averages, clear the gradients."""
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for matrix, parameter in zip(self._matrices, self._inner, strict=True):
            matrix.grad = None if parameter.grad is None else parameter.grad.flatten(1)
        for group in (*self._muon.param_groups, *self._adamw.param_groups):
            group["lr"] = learning_rate
        self._muon.step()
        self._adamw.step()
        self.steps += 1
        decay = min(self.ema_decay, (self.steps + 1) / (self.steps + 20))
        torch._foreach_lerp_(self.averages, [parameter.detach() for parameter in self.parameters], 1 - decay)
        for weight in self.parameters:
            weight.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Everything but the weights themselves."""
        return {
            "muon": self._muon.state_dict(),
            "adamw": self._adamw.state_dict(),
            "averages": self.averages,
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._muon.load_state_dict(state["muon"])
        self._adamw.load_state_dict(state["adamw"])
        self.averages, self.steps = state["averages"], state["steps"]
