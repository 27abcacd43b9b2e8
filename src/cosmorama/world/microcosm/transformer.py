"""The layers of a Cosmos transformer, as `cosmos_forward` evaluates them, without what Microcosm has no use for.

Names, shapes and arithmetic are those of diffusers' `CosmosTransformer3DModel`, whose checkpoints fit; learned
positions, padding masks, projections of the text and controls are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cosmorama.world.microcosm.stored import Stored

_BASE_FPS = 24  # whose frames are one apart


class CosmosTransformer(Stored):
    """Args as those of diffusers' class.

    Args:
        in_channels, out_channels: Of the latents.
        num_attention_heads, attention_head_dim: Heads and their width; together the width of a token.
        num_layers: Blocks.
        mlp_ratio: How much wider a block's hidden layer is.
        text_embed_dim: Width of the text states.
        adaln_lora_dim: Width of what the time's modulation goes through.
        max_size: The largest latents, frames, rows and columns.
        patch_size: Latent cells of a token.
        rope_scale: By how much positions are stretched, in frames, rows and columns.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_attention_heads: int,
        attention_head_dim: int,
        num_layers: int,
        text_embed_dim: int,
        adaln_lora_dim: int,
        max_size: Sequence[int] = (64, 64, 64),
        patch_size: Sequence[int] = (1, 2, 2),
        rope_scale: Sequence[float] = (1.0, 1.0, 1.0),
        mlp_ratio: float = 4.0,
        *,
        concat_padding_mask: bool = False,
        extra_pos_embed_type: str | None = None,
        use_crossattn_projection: bool = False,
    ) -> None:
        super().__init__()
        if concat_padding_mask or extra_pos_embed_type or use_crossattn_projection:
            raise ValueError("Microcosm's transformer has no padding mask, learned positions or projection of the text")
        width = num_attention_heads * attention_head_dim
        self.patch_embed = _PatchEmbed(in_channels, width, patch_size)
        self.rope = _Rope(attention_head_dim, max_size, patch_size, rope_scale)
        self.time_embed = _TimeEmbed(width)
        self.transformer_blocks = nn.ModuleList(
            _Block(width, num_attention_heads, text_embed_dim, adaln_lora_dim, mlp_ratio) for _ in range(num_layers)
        )
        self.norm_out = _Modulation(width, adaln_lora_dim, 2)
        self.proj_out = nn.Linear(width, math.prod(patch_size) * out_channels, bias=False)

    def load_lora_adapter(self, *values: Any, **named: Any) -> None:
        """Put an adapter's layers onto these, as diffusers does with its own: from now on this is one of those too."""
        from diffusers.loaders.peft import PeftAdapterMixin

        if not isinstance(self, PeftAdapterMixin):
            self.__class__ = type(type(self).__name__, (type(self), PeftAdapterMixin), {})
        PeftAdapterMixin.load_lora_adapter(self, *values, **named)


class _PatchEmbed(nn.Module):
    def __init__(self, channels: int, width: int, patch: Sequence[int]) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Linear(channels * math.prod(patch), width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] to [B, T, rows, columns, width]."""
        frames, rows, columns = self.patch
        x = x.unflatten(4, (-1, columns)).unflatten(3, (-1, rows)).unflatten(2, (-1, frames))
        return cast(Tensor, self.proj(x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)))


class _Rope(nn.Module):
    """Rotary positions of frames, rows and columns: a third of each head's numbers for each, the rest for frames."""

    def __init__(self, head: int, largest: Sequence[int], patch: Sequence[int], scale: Sequence[float]) -> None:
        super().__init__()
        self.patch, self.longest = patch, max(side // part for side, part in zip(largest, patch, strict=True))
        side = head // 6 * 2
        self.widths = (head - 2 * side, side, side)
        self.bases = [10000.0 * by ** (width / (width - 2)) for by, width in zip(scale, self.widths, strict=True)]

    def forward(self, latents: Tensor, fps: float | None = None) -> tuple[Tensor, Tensor]:
        """Cosines and sines [tokens, head] for latents [B, C, T, H, W]; frames are equally far apart without a rate."""
        counts = [side // part for side, part in zip(latents.shape[2:], self.patch, strict=True)]
        places = torch.arange(self.longest, device=latents.device, dtype=torch.float32)
        angles = []
        for axis, (count, width, base) in enumerate(zip(counts, self.widths, self.bases, strict=True)):
            at = places[:count] if axis or fps is None else places[:count] / fps * _BASE_FPS
            halves = torch.arange(0, width, 2, device=latents.device, dtype=torch.float32)[: width // 2] / width
            angle = torch.outer(at, 1.0 / (base**halves))
            view = [1, 1, 1, angle.shape[1]]
            view[axis] = count
            angles.append(angle.view(view).expand(*counts, -1))
        turns = torch.cat(angles * 2, dim=-1).flatten(0, 2)
        return turns.cos(), turns.sin()


class _RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Divided by the root of the mean square."""
        return x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class _TimeEmbed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.t_embedder = _Layers(width, width, 3 * width)
        self.norm = _RMSNorm(width, 1e-6)

    def forward(self, like: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """What timesteps [N] modulate all blocks with, [N, 3 * width], and they as waves, [N, width]."""
        half = self.width // 2
        rates = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half)
        angles = timesteps[:, None].float() * rates[None]
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1).type_as(like)
        return self.t_embedder.linear_2(F.silu(self.t_embedder.linear_1(waves))), self.norm(waves)


class _Layers(nn.Module):
    def __init__(self, width: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.activation = nn.SiLU()
        self.linear_1 = nn.Linear(width, hidden, bias=False)
        self.linear_2 = nn.Linear(hidden, outputs, bias=False)


class _Modulation(_Layers):
    """A norm, and what says how its result is scaled, shifted and gated."""

    def __init__(self, width: int, hidden: int, numbers: int) -> None:
        super().__init__(width, hidden, numbers * width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, reads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_q, self.norm_k = (_RMSNorm(width // heads, 1e-5) for _ in range(2))
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k, self.to_v = (nn.Linear(reads, width, bias=False) for _ in range(2))
        self.to_out = nn.ModuleList([nn.Linear(width, width, bias=False), nn.Identity()])


class Gelu(nn.Module):
    """A product and its activation, which one kernel can do."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.approximate = "none"
        self.proj = nn.Linear(width, hidden, bias=False)

    def gelu(self, x: Tensor) -> Tensor:
        """Of the projected features."""
        return F.gelu(x, approximate=self.approximate)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] to [..., hidden]."""
        return self.gelu(self.proj(x))


class _FeedForward(nn.Module):
    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        hidden = int(width * ratio)
        self.net = nn.Sequential(Gelu(width, hidden), nn.Identity(), nn.Linear(hidden, width, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] to the same."""
        return cast(Tensor, self.net(x))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, text: int, hidden: int, ratio: float) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (_Modulation(width, hidden, 3) for _ in range(3))
        self.attn1, self.attn2 = _Attention(width, heads, width), _Attention(width, heads, text)
        self.ff = _FeedForward(width, ratio)
