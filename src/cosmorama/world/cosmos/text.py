"""A prompt as a Cosmos transformer's blocks read it: keys and values of every cross-attention, computed once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from cosmorama.world.kernels.table import kernels_for


class BlockText(NamedTuple):
    """What one block reads of a prompt: its own of what `TextContext` has."""

    key: Tensor
    value: Tensor
    bias: Tensor | None
    constant: Tensor | None


@dataclass(frozen=True, slots=True)
class TextContext:
    """What the blocks of one model read of one prompt.

    Attributes:
        keys, values: Per block, `[B, heads, S, head]`.
        bias: Added to the attention scores, broadcast to `[B, heads, L, S]`; or a bool mask; or None.
        constants: Per block, what is added to the attended values at every token, `[B, 1, hidden]`; or None.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    bias: Tensor | None = None
    constants: tuple[Tensor, ...] | None = None

    def block(self, index: int) -> BlockText:
        """What block `index` reads."""
        constant = None if self.constants is None else self.constants[index]
        return BlockText(self.keys[index], self.values[index], self.bias, constant)


def projected(model: nn.Module, states: Tensor) -> Tensor:
    """Text states `[B, S, D]` as the blocks take them: through the model's own projection, where it has one."""
    net: Any = model
    return cast(Tensor, net.crossattn_proj(states)) if net.config.use_crossattn_projection else states


def text_context(model: nn.Module, states: Tensor, *, mask: Tensor | None = None, repeats: int = 1) -> TextContext:
    """Read a prompt for all blocks of a `CosmosTransformer3DModel` or a `CosmosControlNetModel`.

    The image context that some have room for is always empty, so attention to it adds the same row to every token.

    Args:
        model: The network.
        states: Prompt embeddings [B, S, D], `projected`.
        mask: bool [B, S], True where a row is a token and not padding; None if nothing is padding.
        repeats: How many equal rows the last one stands for.
    """
    net: Any = model
    bias = None if mask is None else mask[:, None, None, :]
    if repeats > 1:
        if mask is not None:
            raise ValueError("a folded prompt has no mask")
        folded = copies_as_biases(repeats, states.dtype)
        states = torch.cat([states, *[states[:, -1:]] * (len(folded) - 1)], dim=1)
        bias = states.new_zeros(1, 1, 1, states.shape[1])
        bias[..., -len(folded) :] = bias.new_tensor(folded)
    keys, values = [], []
    for block in blocks_of(net):
        attention = block.attn2
        keys.append(attention.norm_k(attention.to_k(states).unflatten(2, (attention.heads, -1))).transpose(1, 2))
        values.append(attention.to_v(states).unflatten(2, (attention.heads, -1)).transpose(1, 2))
    return TextContext(tuple(keys), tuple(values), bias, _image_constants(net, states))


def copies_as_biases(count: int, dtype: torch.dtype) -> list[float]:
    """Biases that make one key weigh as `count` copies of itself, `sum(exp(bias)) = count`.

    log(count) is rounded when it is stored: by as much as 1.6 % of the weight in bfloat16. What is missing is then
    given to further copies of the key, until a millionth is left.
    """
    biases: list[float] = []
    missing = float(count)
    while missing > 1e-6 * count and len(biases) < 4:
        bias = torch.tensor(math.log(missing)).to(dtype)
        if math.exp(bias.item()) > missing * (1 + 1e-6):
            bias = torch.nextafter(bias, bias.new_tensor(-torch.inf))
        biases.append(bias.item())
        missing -= math.exp(biases[-1])
    return biases


def read_block(attention: Any, x: Tensor, text: BlockText) -> Tensor:
    """Cross-attention of a block: x [B, L, hidden] reads the prompt."""
    query = attention.to_q(x).unflatten(2, (attention.heads, -1))
    query = kernels_for(x).qk_norm_rope(attention.norm_q, query, None).transpose(1, 2)
    attended = scaled_dot_product_attention(query, text.key, text.value, attn_mask=text.bias)
    attended = attended.transpose(1, 2).flatten(2, 3)
    if text.constant is not None:
        attended = attended + text.constant
    return cast(Tensor, attention.to_out[1](attention.to_out[0](attended)))


def blocks_of(model: Any) -> Any:
    """The blocks of a transformer or a ControlNet."""
    return model.control_blocks if hasattr(model, "control_blocks") else model.transformer_blocks


def text_width(model: nn.Module) -> int:
    """How wide the text states are that the blocks of a transformer or a ControlNet read."""
    return int(blocks_of(model)[0].attn2.to_k.in_features)


def _image_constants(net: Any, states: Tensor) -> tuple[Tensor, ...] | None:
    """Attention over equal rows gives the value of one of them, whatever is asked."""
    width = getattr(net.config, "img_context_dim_in", None)
    if not width:
        return None
    image = net.img_context_proj(states.new_zeros(1, 1, width))
    return tuple(block.attn2.v_img(image) for block in blocks_of(net))
