"""The kernels of a Cosmos block that are not products or attention, by where they run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cosmorama.world.kernels import cpu, gpu


@dataclass(frozen=True, slots=True)
class Kernels:
    """One implementation of each.

    Attributes:
        qk_norm_rope: Norm of queries or keys `[B, L, heads, head]` (RMSNorm), and rotary embedding (RoPE), if any.
        modulate: Normed tokens, scaled and shifted (adaLN).
        gated_add: Tokens and a layer's update, which is gated.
    """

    qk_norm_rope: Callable[[Any, Tensor, tuple[Tensor, Tensor] | None], Tensor]
    modulate: Callable[[Tensor, Tensor, Tensor], Tensor]
    gated_add: Callable[[Tensor, Tensor, Tensor], Tensor]


_CPU = Kernels(cpu.qk_norm_rope, cpu.modulate, cpu.gated_add)
_GPU = Kernels(gpu.qk_norm_rope, gpu.modulate, gpu.gated_add)


def kernels_for(x: Tensor) -> Kernels:
    """Those for where x is; what may be differentiated is never written over."""
    return _CPU if x.is_cpu and not torch.is_grad_enabled() else _GPU
