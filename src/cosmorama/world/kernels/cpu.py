"""Kernels for a CPU, where allocating memory costs more than the arithmetic, and linear layers by oneDNN.

The library that torch gives float32 products to, MKL, does not make use of all that processors of other makers have: on
a Zen 4 EPYC oneDNN multiplies the matrices of a Cosmos model 1.1 to 1.3 times as fast, and applies a GELU before its
result has left the cache. Lower precision goes to oneDNN anyway. All are for inference alone: they bear no gradients,
and give the same numbers up to the order of a sum.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from cosmorama.world.kernels import gpu
from cosmorama.world.kernels.layers import is_offloaded, is_quantized

_GELU = ("proj", "gelu", "approximate")
"""What a layer has that multiplies and applies a GELU: diffusers', which is not imported for that, and Microcosm's."""


def qk_norm_rope(norm: Any, x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
    """Root-mean-square norm over each head of x `[B, L, heads, head]`, then the rotary embedding, if any.

    Both scale the numbers of a head, so the norm's weights can go into the cosines and sines, and its root come last:
    four passes over x instead of nine, and one allocation instead of six. Without a rotary embedding in x's own place.
    """
    if x.dtype != torch.float32 or is_offloaded(norm):
        return gpu.qk_norm_rope(norm, x, rotary)
    if rotary is None:
        return x.mul_(inverse_root_mean_square(norm, x)).mul_(norm.weight)
    half = x.shape[-1] // 2
    cos, sin = (part[:, None, :half] for part in rotary)
    weight_1, weight_2 = norm.weight.chunk(2)
    first, second = x.chunk(2, dim=-1)
    rotated = torch.empty_like(x)
    torch.mul(first, cos * weight_1, out=rotated[..., :half]).addcmul_(second, sin * weight_2, value=-1)
    torch.mul(second, cos * weight_2, out=rotated[..., half:]).addcmul_(first, sin * weight_1)
    return rotated.mul_(inverse_root_mean_square(norm, x))


def inverse_root_mean_square(norm: Any, x: Tensor) -> Tensor:
    """What the norm multiplies x `[..., width]` with before its weights: `[..., 1]`."""
    mean_square: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_() / x.shape[-1]
    return mean_square.add_(norm.eps).rsqrt_()


def modulate(normed: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Modulated tokens, in the place of the given ones."""
    return normed.mul_(1 + scale).add_(shift)


def gated_add(tokens: Tensor, gate: Tensor, update: Tensor) -> Tensor:
    """What a block's layer makes of its tokens: they and its update, gated; in the update's place."""
    return update.mul_(gate).add_(tokens)


def use_onednn(model: nn.Module) -> None:
    """Let the float32 linear layers of a model on the CPU run by oneDNN.

    Nothing is done where torch was built without it. Weights stay as they are.
    """
    if not torch.backends.mkldnn.is_available():
        return
    layers: Iterable[Any] = model.modules()
    for module in layers:
        if type(module) is nn.Linear and module.weight.dtype == torch.float32:
            module.forward = MethodType(_multiplied, module)  # type: ignore[method-assign]
        elif all(hasattr(module, part) for part in _GELU) and module.proj.weight.dtype == torch.float32:
            module.forward = MethodType(_multiplied_and_activated, module)


def _fits(layer: nn.Linear, x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.is_cpu and not is_quantized(layer.weight)


def _multiplied(layer: Any, x: Tensor) -> Tensor:
    """`nn.Linear.forward`."""
    if not _fits(layer, x):
        return linear(x, layer.weight, layer.bias)
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, "none", [], "")
    return product


def _multiplied_and_activated(layer: Any, x: Tensor) -> Tensor:
    """`GELU.forward`."""
    proj = layer.proj
    if type(proj) is not nn.Linear or is_offloaded(proj) or not _fits(proj, x):  # as with an adapter on it
        activated: Tensor = layer.gelu(proj(x))
    else:
        activated = torch.ops.mkldnn._linear_pointwise(x, proj.weight, proj.bias, "gelu", [], layer.approximate)
    return activated
