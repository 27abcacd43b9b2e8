"""The ControlNet of Transfer2.5: what a control clip adds to the tokens of some of the transformer's blocks.

The arithmetic of diffusers' `CosmosControlNetModel` on the same modules, with what depends on the request alone taken
out of the steps: the control's own tokens, positions, and the keys and values of the text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cosmorama.world.cosmos.forward import Positions, block_forward, positions_of
from cosmorama.world.cosmos.text import TextContext
from cosmorama.world.kernels.gpu import block_of
from cosmorama.world.ranks.shares import share_of


@dataclass(frozen=True, slots=True)
class ControlTokens:
    """A control clip as the first block takes it in: `[B, T, N, hidden]`, and where those tokens are."""

    tokens: Tensor
    positions: Positions


def control_tokens(model: nn.Module, control: Tensor, condition_mask: Tensor) -> ControlTokens:
    """Bring a control clip in.

    Args:
        model: A `CosmosControlNetModel`.
        control: Latents of the control clip `[B, C, T, H, W]`.
        condition_mask: `[B, 1, T, H, W]`, 1 on conditioning frames.
    """
    net: Any = model
    batch, channels, frames, height, width = control.shape
    room = net.config.in_channels - 2 - channels  # the mask and the padding mask come last
    x = torch.cat([control, control.new_zeros(batch, room, frames, height, width), condition_mask], dim=1)
    x = torch.cat([x, x.new_zeros(batch, 1, frames, height, width)], dim=1)
    tokens = net.control_blocks[0].before_proj(net.patch_embed(x).flatten(2, 3))
    return ControlTokens(tokens, positions_of(net, x, None))


def control_residuals(
    model: nn.Module,
    control: ControlTokens,
    latents: Tensor,
    timesteps: Tensor,
    text: TextContext,
    condition_mask: Tensor,
) -> list[Tensor]:
    """Evaluate a `CosmosControlNetModel`.

    Args:
        model: The ControlNet.
        control: From `control_tokens`.
        latents: What is being sampled `[B, C, T, H, W]`.
        timesteps: `[B, T]`.
        text: From `text_context`.
        condition_mask: `[B, 1, T, H, W]`.

    Returns:
        One tensor `[B, T, N, hidden]` per block, not weighted; where processes share the tokens, of this one's.
    """
    net: Any = model
    batch, _, frames, height, width = latents.shape
    padding = latents.new_zeros(batch, 1, frames, height, width)
    base = net.patch_embed_base(torch.cat([latents, condition_mask.to(latents.dtype), padding], dim=1)).flatten(2, 3)
    temb, embedded = (part.view(batch, frames, 1, -1) for part in net.time_embed(base, timesteps.flatten()))
    share = share_of(net, base.shape[2])
    tokens, positions = control.tokens + base, control.positions.taken(share, frames)
    if share is not None:
        tokens = share.take(tokens, 2)
    residuals = []
    forward = block_of(net, block_forward) if share is None else block_forward
    for index, block in enumerate(net.control_blocks):
        tokens = forward(block, tokens, text.block(index), embedded, temb, positions, share)
        residuals.append(block.after_proj(tokens))
    return residuals
