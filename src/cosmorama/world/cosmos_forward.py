"""The forward pass of a Cosmos transformer with its modulation evaluated once per latent frame.

`CosmosTransformer3DModel.forward` in diffusers evaluates adaLN once per token when every latent frame has a timestep
of its own, although all tokens of a frame share it, and needs torchvision to resize a padding mask. This is the same
arithmetic on the same modules without either.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn


def cosmos_forward(
    model: nn.Module,
    latents: Tensor,
    timesteps: Tensor,
    text: Tensor,
    *,
    text_mask: Tensor | None = None,
    condition_mask: Tensor | None = None,
    fps: float | None = None,
) -> Tensor:
    """Evaluate a `CosmosTransformer3DModel`.

    Args:
        model: The transformer; its temporal patch size must be 1.
        latents: [B, C, T, H, W]; H and W are multiples of the spatial patch size.
        timesteps: [B, T], one per latent frame, in the scale that the model was trained with.
        text: Prompt embeddings [B, S, D].
        text_mask: bool [B, S], True where `text` is a token and not padding; None if nothing is padding.
        condition_mask: [B, 1, T, H, W], 1 on conditioning frames; only for models with a channel for it.
        fps: Frame rate of the clip, for the temporal rotary embedding; None means the model's base rate.

    Returns:
        The model's prediction [B, C, T, H, W].
    """
    # diffusers ships no types, so its modules are looked at as Any throughout.
    net: Any = model
    batch, _, frames, height, width = latents.shape
    if net.config.patch_size[0] != 1:
        raise ValueError(f"temporal patch size must be 1, not {net.config.patch_size[0]}")
    x = latents if condition_mask is None else torch.cat([latents, condition_mask.to(latents.dtype)], dim=1)
    if net.config.concat_padding_mask:
        x = torch.cat([x, x.new_zeros(batch, 1, frames, height, width)], dim=1)
    rotary = net.rope(x, fps=fps)
    position = net.learnable_pos_embed(x) if net.config.extra_pos_embed_type else None
    if position is not None:
        position = position.unflatten(1, (frames, -1))

    tokens = net.patch_embed(x)
    rows, columns = tokens.shape[2:4]
    tokens = tokens.flatten(2, 3)  # [B, T, rows * columns, hidden]
    temb, embedded = (
        part.view(batch, frames, 1, -1) for part in net.time_embed(tokens, timesteps.flatten())
    )  # broadcast over the tokens of a frame
    if net.config.use_crossattn_projection:
        text = net.crossattn_proj(text)
    mask = None if text_mask is None else text_mask[:, None, None, :]
    for block in net.transformer_blocks:
        tokens = _block(block, tokens, text, embedded, temb, rotary, position, mask)

    tokens = net.proj_out(net.norm_out(tokens, embedded, temb))
    patch_h, patch_w = net.config.patch_size[1:]
    # The output's channel order within a patch differs from the input's: (row, column, frame, channel).
    tokens = tokens.view(batch, frames, rows, columns, patch_h, patch_w, -1).permute(0, 6, 1, 2, 4, 3, 5)
    return cast(Tensor, tokens.reshape(batch, -1, frames, height, width))


def _block(
    block: Any,
    tokens: Tensor,
    text: Tensor,
    embedded: Tensor,
    temb: Tensor,
    rotary: tuple[Tensor, Tensor],
    position: Tensor | None,
    text_mask: Tensor | None,
) -> Tensor:
    """One `CosmosTransformerBlock` on tokens [B, T, N, hidden]; attention sees all frames as one sequence."""
    if position is not None:
        tokens = tokens + position
    normed, gate = block.norm1(tokens, embedded, temb)
    tokens = tokens + gate * block.attn1(normed.flatten(1, 2), image_rotary_emb=rotary).view_as(tokens)
    normed, gate = block.norm2(tokens, embedded, temb)
    attended = block.attn2(normed.flatten(1, 2), encoder_hidden_states=text, attention_mask=text_mask)
    tokens = tokens + gate * attended.view_as(tokens)
    normed, gate = block.norm3(tokens, embedded, temb)
    return cast(Tensor, tokens + gate * block.ff(normed))
