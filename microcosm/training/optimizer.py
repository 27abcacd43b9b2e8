"""Muon for the matrices of the transformer, AdamW for the rest, and an exponential moving average of all weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Muon:
    """Momentum with orthogonalised updates (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).

    Matrices of equal shape are orthogonalised in one batch; the kernels of a convolution are one matrix. The update is
    scaled by 0.2 sqrt(max(rows, columns)) so that its size matches Adam's and one learning rate serves both (arXiv
    2502.16982). bfloat16 is exact enough for the orthogonalisation.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        groups: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for matrix in matrices:
            groups[matrix.shape].append(matrix)
        self.groups = list(groups.values())
        self.buffers = [group[0].new_zeros(len(group), *group[0].flatten(1).shape) for group in self.groups]
        self.momentum, self.weight_decay, self.dtype = momentum, weight_decay, dtype

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Update every matrix from its gradient."""
        for group, buffer in zip(self.groups, self.buffers, strict=True):
            gradient = torch.stack([_gradient(matrix).flatten(1) for matrix in group])
            buffer.lerp_(gradient, 1 - self.momentum)
            update = orthogonalise(gradient.lerp_(buffer, self.momentum).to(self.dtype)).float()
            scale = 0.2 * max(update.shape[-2:]) ** 0.5
            for matrix, part in zip(group, update, strict=True):
                matrix.mul_(1 - learning_rate * self.weight_decay)
                matrix.sub_(part.view_as(matrix), alpha=learning_rate * scale)

    def state_dict(self) -> list[Tensor]:
        """The momentum buffers."""
        return self.buffers

    def load_state_dict(self, state: list[Tensor]) -> None:
        """Restore the momentum buffers."""
        for buffer, saved in zip(self.buffers, state, strict=True):
            buffer.copy_(saved)


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def orthogonalise(batch: Tensor, iterations: int = 4) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly, to [n, rows, columns], by a quintic Newton-Schulz iteration."""
    a, b, c = _NEWTON_SCHULZ
    tall = batch.shape[1] > batch.shape[2]
    x = batch.transpose(1, 2) if tall else batch
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.transpose(1, 2) if tall else x


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon takes this weight: matrices and kernels inside the blocks, not what is at the ends."""
    if parameter.ndim == 4:
        return not {"read", "write"} & set(name.split(".")) and min(parameter.shape[:2]) >= 32
    inside = "transformer_blocks." in name or name.startswith("attention.")
    return inside and parameter.ndim == 2 and min(parameter.shape) >= 64


class Optimizer:
    """Muon and AdamW together over some modules, with gradient clipping and moving averages."""

    def __init__(self, modules: Iterable[nn.Module], muon: bool, ema_decay: float, bf16: bool = False) -> None:
        named = [(name, parameter) for module in modules for name, parameter in module.named_parameters()]
        named = [(name, parameter) for name, parameter in named if parameter.requires_grad]
        self.parameters: list[Tensor] = [parameter for _, parameter in named]
        matrices = [parameter for name, parameter in named if muon and is_matrix(name, parameter)]
        taken = {id(matrix) for matrix in matrices}
        rest = [parameter for parameter in self.parameters if id(parameter) not in taken]
        self.muon = Muon(matrices, dtype=torch.bfloat16 if bf16 else torch.float32)
        self.adamw = torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.01, foreach=True)
        self.averages = [parameter.detach().clone() for parameter in self.parameters]
        self.ema_decay, self.steps = ema_decay, 0

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Clip the gradients to norm 1, update the weights and the averages, clear the gradients."""
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.muon.step(learning_rate)
        for group in self.adamw.param_groups:
            group["lr"] = learning_rate
        self.adamw.step()
        self.steps += 1
        decay = min(self.ema_decay, (self.steps + 1) / (self.steps + 20))
        torch._foreach_lerp_(self.averages, [parameter.detach() for parameter in self.parameters], 1 - decay)
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Everything but the weights themselves."""
        return {
            "muon": self.muon.state_dict(),
            "adamw": self.adamw.state_dict(),
            "averages": self.averages,
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])
        for average, saved in zip(self.averages, state["averages"], strict=True):
            average.copy_(saved)
        self.steps = state["steps"]
