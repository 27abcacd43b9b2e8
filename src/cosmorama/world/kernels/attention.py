"""Self-attention by the kernel that an operator chooses: torch's own choice (SDPA), cuDNN, FlashAttention 3, Sage...

What there is and how it is called is diffusers' (`attention_dispatch`). Only a denoiser's self-attention goes this way:
it is nearly all of its attention, has no mask, and so every backend can do it.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from cosmorama.errors import ModelNotFoundError

_BACKEND = "attention_backend"
"""The attribute of an attention layer that says which backend it has."""


def choose_attention(network: nn.Module, backend: str) -> None:
    """Let the attention layers of a denoiser use a backend, by diffusers' names; auto: torch's own choice.

    Raises:
        ModelNotFoundError: there is none of that name, or it is not installed.
    """
    if backend == "auto":
        return
    # Only here and in `attend`: importing diffusers takes longer than all else at the start of a small model.
    from diffusers.models.attention_dispatch import (
        AttentionBackendName,
        _check_attention_backend_requirements,
        _maybe_download_kernel_for_backend,
    )

    named = {name.value: name for name in AttentionBackendName}
    if backend not in named:
        raise ModelNotFoundError(f"COSMORAMA_ATTENTION is {backend!r}; it must be auto or one of {', '.join(named)}")
    try:
        _check_attention_backend_requirements(named[backend])
        _maybe_download_kernel_for_backend(named[backend])
    except (RuntimeError, ImportError, OSError, ValueError) as error:
        raise ModelNotFoundError(f"COSMORAMA_ATTENTION={backend} cannot be used here: {error}") from error
    for module in network.modules():
        if hasattr(module, "to_q"):
            setattr(module, _BACKEND, named[backend])


def attend(layer: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of queries `[B, L, heads, head]` to keys and values `[B, S, key heads, head]`, as the layer says."""
    backend = getattr(layer, _BACKEND, None)
    grouped = query.shape[2] != key.shape[2]
    if backend is not None:
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        return cast(Tensor, dispatch_attention_fn(query, key, value, enable_gqa=grouped, backend=backend))
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return scaled_dot_product_attention(query, key, value, enable_gqa=grouped).transpose(1, 2)
