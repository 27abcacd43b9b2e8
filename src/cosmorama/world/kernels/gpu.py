"""Kernels for a GPU, and for training anywhere: few launches, and what is between two of them stays in registers.

Norm and rotary embedding of queries and keys are 17 kernels of torch that read and write 20 times what they are given;
compiled (torch.compile, Triton) they are one. Whole blocks can be compiled too, one graph for all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from cosmorama.world.kernels.layers import is_offloaded

log = logging.getLogger(__name__)

_FUSED, _BLOCKS = "fused_with_rotary", "compiled_blocks"
"""Attributes of a norm and of a network that say what of it is compiled."""


def qk_norm_rope(norm: Any, x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
    """Root-mean-square norm over each head of x `[B, L, heads, head]`, then the rotary embedding, if any.

    Args:
        norm: diffusers' `RMSNorm`.
        x: Queries or keys.
        rotary: Cosines and sines `[L, head]`; both halves of either are the same, one angle per pair.
    """
    if getattr(norm, _FUSED, False) and not is_offloaded(norm):
        run = normed_and_rotated if torch.compiler.is_compiling() else compiled(normed_and_rotated)
        return run(x, norm.weight, norm.eps, rotary)
    x = norm(x)
    return x if rotary is None else rotated(x, *rotary)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x `[B, L, heads, head]`, in float32: a head's two halves are the pairs' coordinates."""
    half = x.shape[-1] // 2
    c, s = cos[:, None, :half], sin[:, None, :half]
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * c - second * s, second * c + first * s], dim=-1).to(x.dtype)


def normed_and_rotated(x: Tensor, weight: Tensor, eps: float, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
    """`qk_norm_rope` in torch's own operations, as it is compiled."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.float()
    return (normed if rotary is None else rotated(normed, *rotary)).to(x.dtype)


def modulate(normed: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Modulated tokens: one kernel."""
    return torch.addcmul(shift, normed, 1 + scale)


def gated_add(tokens: Tensor, gate: Tensor, update: Tensor) -> Tensor:
    """What a block's layer makes of its tokens: they and its update, gated; one kernel."""
    return torch.addcmul(tokens, gate, update)


def choose_compile(network: nn.Module, what: str) -> None:
    """Let a denoiser or ControlNet on a GPU run compiled: none of it, kernels (norm and rotary), or whole blocks."""
    setattr(network, _BLOCKS, what == "blocks")
    for module in network.modules():
        for name in ("norm_q", "norm_k"):
            if isinstance(getattr(getattr(module, name, None), "weight", None), Tensor):
                setattr(getattr(module, name), _FUSED, what != "none")


def block_of(network: nn.Module, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function that evaluates one block of a network: compiled, if that was chosen for the network."""
    return compiled(function) if getattr(network, _BLOCKS, False) else function


@cache
def compiled(function: Callable[..., Tensor], backend: str | Callable[..., Any] = "inductor") -> Callable[..., Tensor]:
    """A function compiled for tensors of any size; where that fails, said once, it runs as it is from then on."""
    # "default" mode: max-autotune was measured to be slower for such networks (sglang).
    fast, works = torch.compile(function, dynamic=True, backend=backend), True

    def run(*arguments: Any) -> Tensor:
        nonlocal works
        if works:
            try:
                return fast(*arguments)
            except torch._dynamo.exc.TorchDynamoException as error:
                works = False
                first = next(iter(str(error).splitlines()), "")
                log.warning("%s cannot be compiled and runs as it is, slower: %s", function.__name__, first)
        return function(*arguments)

    return run
