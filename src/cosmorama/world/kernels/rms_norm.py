"""diffusers' `RMSNorm` in place on a CPU, where each of its four operations allocates as much memory as it norms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cosmorama.world.kernels.layers import is_offloaded


def can_be_inlined(norm: nn.Module, x: Tensor) -> bool:
    """Whether the norm of x can be computed here, from `inverse_root_mean_square` and its weights: not for training."""
    return x.is_cpu and x.dtype == torch.float32 and not torch.is_grad_enabled() and not is_offloaded(norm)


def inverse_root_mean_square(norm: Any, x: Tensor) -> Tensor:
    """What the norm multiplies x [..., width] with before its weights: [..., 1]."""
    mean_square: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_() / x.shape[-1]
    return mean_square.add_(norm.eps).rsqrt_()
