"""The forward pass of a Cosmos transformer, with nothing computed twice that depends on the request alone.

`CosmosTransformer3DModel.forward` in diffusers evaluates adaLN once per token when every latent frame has a timestep
of its own, although all tokens of a frame share it; computes positions, text keys and text values again on every call;
and needs torchvision to resize a padding mask. This is the same arithmetic on the same modules without that: what the
blocks read of a prompt is a `TextContext`, computed once.

Several processes can evaluate a network together, each some of its tokens; see `ranks.shares`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from cosmorama.world.kernels import cpu, gpu
from cosmorama.world.kernels.attention import attend
from cosmorama.world.kernels.gpu import block_of
from cosmorama.world.ranks.shares import Share, share_of


class Positions(NamedTuple):
    """Where the tokens of a clip are: cosines and sines `[L, head]` for the rotary embedding, and what each block adds
    to its tokens, `[B, T, N, hidden]` or None."""

    cos: Tensor
    sin: Tensor
    learned: Tensor | None

    def taken(self, share: Share | None, frames: int) -> Positions:
        """Those of this process's tokens in a clip of so many latent frames."""
        if share is None:
            return self
        cos, sin = (share.take(part.unflatten(0, (frames, -1)), 1).flatten(0, 1) for part in (self.cos, self.sin))
        return Positions(cos, sin, None if self.learned is None else share.take(self.learned, 2))


def positions_of(model: nn.Module, latents: Tensor, fps: float | None) -> Positions:
    """The positions of latents `[B, C, T, H, W]` at `fps` frames per second; None means the model's base rate."""
    net: Any = model
    cos, sin = net.rope(latents, fps=fps)
    learned = net.learnable_pos_embed(latents) if net.config.extra_pos_embed_type else None
    return Positions(cos, sin, None if learned is None else learned.unflatten(1, (latents.shape[2], -1)))


def cosmos_forward(
    model: nn.Module,
    latents: Tensor,
    timesteps: Tensor,
    text: Tensor | TextContext,
    *,
    text_mask: Tensor | None = None,
    condition_mask: Tensor | None = None,
    fps: float | None = None,
    positions: Positions | None = None,
    residuals: Mapping[int, Tensor] | None = None,
) -> Tensor:
    """Evaluate a `CosmosTransformer3DModel`.

    Args:
        model: The transformer; its temporal patch size must be 1.
        latents: [B, C, T, H, W] in the model's dtype; H and W are multiples of the spatial patch size.
        timesteps: [B, T], one per latent frame, or [B, 1] for all, in the scale that the model was trained with.
        text: Prompt embeddings [B, S, D], or the context they were read into (`text_context`).
        text_mask: bool [B, S], True where `text` is a token and not padding; None if nothing is padding. Not with a
            context, which has its own.
        condition_mask: [B, 1, T, H, W], 1 on conditioning frames; only for models with a channel for it.
        fps: Frame rate of the clip, for the temporal rotary embedding; None means the model's base rate.
        positions: Those of the clip, if they are known (`positions_of`); `fps` is not looked at then.
        residuals: What a ControlNet adds after the blocks with these indices, [B, L, hidden]; of the same share of the
            tokens as the model evaluates.

    Returns:
        The model's prediction [B, C, T, H, W]; whole, also where processes share the tokens.
    """
    # diffusers ships no types, so its modules are looked at as Any throughout.
    net: Any = model
    batch, _, frames, height, width = latents.shape
    if net.config.patch_size[0] != 1:
        raise ValueError(f"temporal patch size must be 1, not {net.config.patch_size[0]}")
    if positions is None:
        positions = positions_of(net, latents, fps)
    x = latents if condition_mask is None else torch.cat([latents, condition_mask.to(latents.dtype)], dim=1)
    if net.config.concat_padding_mask:
        x = torch.cat([x, x.new_zeros(batch, 1, frames, height, width)], dim=1)

    tokens = net.patch_embed(x)
    rows, columns = tokens.shape[2:4]
    tokens = tokens.flatten(2, 3)  # [B, T, rows * columns, hidden]
    share = share_of(net, rows * columns)
    if share is not None:
        tokens = share.take(tokens, 2)
    positions = positions.taken(share, frames)
    temb, embedded = (
        part.view(batch, timesteps.shape[1], 1, -1) for part in net.time_embed(tokens, timesteps.flatten())
    )  # broadcast over the tokens of a frame
    if isinstance(text, Tensor):
        text = text_context(net, projected(net, text), mask=text_mask)
    forward = block_of(net, block_forward) if share is None else block_forward
    for index, block in enumerate(net.transformer_blocks):
        tokens = forward(block, tokens, text.block(index), embedded, temb, positions, share)
        if residuals is not None and index in residuals:
            tokens = tokens + residuals[index].view_as(tokens)

    shift, scale = _modulation(net.norm_out, embedded, temb[..., : 2 * tokens.shape[-1]]).chunk(2, dim=-1)
    tokens = net.proj_out(kernels_for(tokens).modulate(net.norm_out.norm(tokens), scale, shift))
    if share is not None:
        tokens = share.join(tokens, 2)
    patch_h, patch_w = net.config.patch_size[1:]
    # The output's channel order within a patch differs from the input's: (row, column, frame, channel).
    tokens = tokens.view(batch, frames, rows, columns, patch_h, patch_w, -1).permute(0, 6, 1, 2, 4, 3, 5)
    return cast(Tensor, tokens.reshape(batch, -1, frames, height, width))


def block_forward(
    block: Any,
    tokens: Tensor,
    text: BlockText,
    embedded: Tensor,
    temb: Tensor,
    positions: Positions,
    share: Share | None = None,
) -> Tensor:
    """One `CosmosTransformerBlock` on tokens [B, T, N, hidden]; attention sees all frames as one sequence.

    With a share, tokens and positions are this process's, and attention sees those of all processes. Nothing that it is
    given says which block it is, so that one compiled graph serves all of them.
    """
    kernels = kernels_for(tokens)
    if positions.learned is not None:
        tokens = tokens + positions.learned
    normed, gate = _modulated(block.norm1, tokens, embedded, temb)
    attended = _self_attention(block.attn1, normed.flatten(1, 2), positions, share)
    tokens = kernels.gated_add(tokens, gate, attended.view_as(tokens))
    normed, gate = _modulated(block.norm2, tokens, embedded, temb)
    attended = read_block(block.attn2, normed.flatten(1, 2), text)
    tokens = kernels.gated_add(tokens, gate, attended.view_as(tokens))
    normed, gate = _modulated(block.norm3, tokens, embedded, temb)
    return cast(Tensor, kernels.gated_add(tokens, gate, block.ff(normed)))


def kernels_for(x: Tensor) -> ModuleType:
    """`kernels.cpu` or `kernels.gpu`, by where x is; what may be differentiated is never written over."""
    return cpu if x.is_cpu and not torch.is_grad_enabled() else gpu


def _modulated(norm: Any, tokens: Tensor, embedded: Tensor, temb: Tensor) -> tuple[Tensor, Tensor]:
    """`CosmosAdaLayerNormZero`: the modulated tokens, and the gate of what is made of them."""
    shift, scale, gate = _modulation(norm, embedded, temb).chunk(3, dim=-1)
    return kernels_for(tokens).modulate(norm.norm(tokens), scale, shift), gate


def _modulation(norm: Any, embedded: Tensor, temb: Tensor) -> Tensor:
    return cast(Tensor, norm.linear_2(norm.linear_1(norm.activation(embedded))) + temb)


def _self_attention(attention: Any, x: Tensor, positions: Positions, share: Share | None) -> Tensor:
    """`CosmosAttnProcessor2_0` on x [B, L, hidden] without its copies of keys and values."""
    heads, rotary, normed = attention.heads, (positions.cos, positions.sin), kernels_for(x).qk_norm_rope
    key = normed(attention.norm_k, attention.to_k(x).unflatten(2, (heads, -1)), rotary)
    value = attention.to_v(x).unflatten(2, (heads, -1))
    if share is not None:
        joined = share.joining(torch.stack([key, value]).unflatten(2, (-1, share.size)), 3)
    query = normed(attention.norm_q, attention.to_q(x).unflatten(2, (heads, -1)), rotary)
    if share is not None:
        key, value = joined().flatten(2, 3)
    attended = attend(attention, query, key, value)
    return cast(Tensor, attention.to_out[1](attention.to_out[0](attended.flatten(2, 3))))


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
