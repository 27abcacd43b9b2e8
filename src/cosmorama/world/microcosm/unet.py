"""Microcosm's convolutional denoiser: a U-Net over the cells of latent frames, with attention where cells are few.

Convolutions keep a picture's spatial structure, so that an object stays whole; time is mixed between neighbouring
latent frames on every level, and between all of them, and with the prompt, by attention on the coarsest one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cosmorama.world.microcosm.stored import Stored

_WAVES = 32
_LONGEST_S = 20.0  # of the waves that tell the network when a latent frame is


def normed(x: Tensor) -> Tensor:
    """Features [N, C, h, w] divided by their root mean square over the channels."""
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-5)


def modulated(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """SiLU of features [N, C, h, w], scaled by 1 + gain and shifted, both [N, C, 1, 1]."""
    return F.silu(x * (1 + gain) + shift)


class VideoUNet(Stored):
    """Estimates clean latents from noisy ones.

    Args:
        channels: Latent channels C.
        widths: Features on each level; every level has half the cells a side of the one before.
        depths: Convolution blocks on each level, on the way down and on the way up.
        text_width: Width D of the text states.
        heads: Attention heads on the coarsest level.
        actions: Numbers per latent frame that steer it; 0 for none.
    """

    def __init__(
        self,
        channels: int = 32,
        widths: Sequence[int] = (64, 96, 192, 256),
        depths: Sequence[int] = (1, 1, 2, 3),
        text_width: int = 192,
        heads: int = 4,
        actions: int = 0,
    ) -> None:
        super().__init__()
        context = widths[-1]
        self.read = nn.Conv2d(2 * channels + 3, widths[0], 3, padding=1)
        self.level_embed = mlp(2 * _WAVES, context)
        self.when_embed = mlp(2 * _WAVES + 2, context)
        self.text_embed = nn.Linear(text_width, context)
        self.action_embed = nn.Linear(actions + 1, context) if actions else None
        self.mix = nn.Sequential(nn.SiLU(), nn.Linear(context, context), nn.SiLU())
        self.down, self.up, self.shrink, self.grow, self.join = (nn.ModuleList() for _ in range(5))
        for level, (width, depth) in enumerate(zip(widths[:-1], depths, strict=False)):
            # Between latent frames a third of a second passes: the finest cells have nothing to tell each other.
            self.down.append(Stage(width, depth, context, timed=level > 0))
            self.up.append(Stage(width, depth, context, timed=level > 0))
            self.shrink.append(nn.Conv2d(width, widths[level + 1], 2, stride=2))
            self.grow.append(nn.Conv2d(widths[level + 1], width, 1))
            self.join.append(nn.Conv2d(2 * width, width, 1))
        self.middle = nn.ModuleList(Block(context, context) for _ in range(depths[-1]))
        self.attention = nn.ModuleList(Attention(context, text_width, heads) for _ in range(depths[-1]))
        self.write = nn.Conv2d(widths[0], channels + 1, 3, padding=1)
        silent = [self.write, self.action_embed]
        for layer in silent:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(cast(Tensor, layer.bias))

    def forward(
        self,
        latents: Tensor,
        levels: Tensor,
        text: Tensor,
        text_mask: Tensor,
        *,
        beside: Tensor,
        given: Tensor,
        seconds: Tensor,
        actions: Tensor | None = None,
    ) -> Tensor:
        """One evaluation.

        Args:
            latents: [B, C, T, H, W], the given frames clean.
            levels: Noise levels [B, T], 0 to 1; 0 where frames are given.
            text: States of the prompts [B, S, D], the first one that of the start token.
            text_mask: bool [B, S], True on real tokens.
            beside: What is known of each frame, [B, C, T, H, W].
            given: bool [B, T], which frames are given.
            seconds: When each latent frame ends, [B, T].
            actions: [B, T, A + 1], the last number 1 where the others count; None for no actions.

        Returns:
            [B, C + 1, T, H, W]; the last channel says how much of the held frame stays, less 1.
        """
        batch, _, frames = latents.shape[:3]
        context = self._context(levels, text, given, seconds, actions)
        x = torch.cat([latents, beside], dim=1).transpose(1, 2).flatten(0, 1)
        marked = given.flatten().float().view(-1, 1, 1, 1).expand(-1, -1, *x.shape[2:])
        x = self.read(torch.cat([x, places(x), marked], dim=1).contiguous(memory_format=torch.channels_last))
        kept = []
        for stage, shrink in zip(self.down, self.shrink, strict=True):
            x = stage(x, context, frames)
            kept.append(x)
            x = shrink(F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)))
        for block, attention in zip(self.middle, self.attention, strict=True):
            x = attention(block(x, context), text, text_mask, frames)
        for stage, grow, join, before in reversed(list(zip(self.up, self.grow, self.join, kept, strict=True))):
            larger = F.interpolate(grow(x), scale_factor=2.0, mode="nearest")[..., : before.shape[2], : before.shape[3]]
            x = stage(join(torch.cat([larger, before], dim=1)), context, frames)
        written: Tensor = self.write(F.silu(normed(x)))
        return cast(Tensor, written.unflatten(0, (batch, frames))).transpose(1, 2)

    def _context(self, levels: Tensor, text: Tensor, given: Tensor, seconds: Tensor, actions: Tensor | None) -> Tensor:
        """What modulates the blocks, [B * T, context]."""
        still = torch.full_like(seconds, float(seconds.shape[1] == 1))
        when = torch.cat([_waves(seconds / _LONGEST_S), still[..., None], given[..., None].float()], dim=-1)
        context = self.level_embed(_waves(levels)) + self.when_embed(when) + self.text_embed(text[:, :1])
        if self.action_embed is not None and actions is not None:
            context = context + self.action_embed(actions)
        return cast(Tensor, self.mix(context.flatten(0, 1)))


class Levels(nn.Module):
    """A U-Net over single frames; every level has half the cells a side of the one before."""

    def __init__(self, inputs: int, outputs: int, widths: Sequence[int], depths: Sequence[int], context: int) -> None:
        super().__init__()
        self.read = nn.Conv2d(inputs + 2, widths[0], 3, padding=1)
        self.down, self.up, self.shrink, self.grow, self.join = (nn.ModuleList() for _ in range(5))
        for level, (width, depth) in enumerate(zip(widths[:-1], depths, strict=False)):
            self.down.append(Stage(width, depth, context, timed=False))
            self.up.append(Stage(width, depth, context, timed=False))
            self.shrink.append(nn.Conv2d(width, widths[level + 1], 2, stride=2))
            self.grow.append(nn.Conv2d(widths[level + 1], width, 1))
            self.join.append(nn.Conv2d(2 * width, width, 1))
        self.middle = Stage(widths[-1], depths[-1], context, timed=False)
        self.write = nn.Conv2d(widths[0], outputs, 3, padding=1)
        nn.init.zeros_(self.write.weight)
        nn.init.zeros_(cast(Tensor, self.write.bias))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Cells [B, inputs, h, w] with context [B, D] to [B, outputs, h, w]."""
        return self.upwards(*self.downwards(x, context), context)

    def downwards(self, x: Tensor, context: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The features of the coarsest level, and of the finer ones."""
        x = self.read(torch.cat([x, places(x)], dim=1).contiguous(memory_format=torch.channels_last))
        kept = []
        for stage, shrink in zip(self.down, self.shrink, strict=True):
            x = stage(x, context, 1)
            kept.append(x)
            x = shrink(F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)))
        return self.middle(x, context, 1), kept

    def upwards(self, x: Tensor, kept: list[Tensor], context: Tensor) -> Tensor:
        """What is made of them."""
        for stage, grow, join, before in reversed(list(zip(self.up, self.grow, self.join, kept, strict=True))):
            larger = F.interpolate(grow(x), scale_factor=2.0, mode="nearest")[..., : before.shape[2], : before.shape[3]]
            x = stage(join(torch.cat([larger, before], dim=1)), context, 1)
        return cast(Tensor, self.write(F.silu(normed(x))))


class Stage(nn.Module):
    """One level of the U-Net: convolution blocks, and a look at the latent frames before and after."""

    def __init__(self, width: int, depth: int, context: int, *, timed: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, context) for _ in range(depth))
        self.time = TimeMix(width) if timed else None

    def forward(self, x: Tensor, context: Tensor, frames: int) -> Tensor:
        """Features [B * T, C, h, w] to the same shape."""
        for index, block in enumerate(self.blocks):
            x = block(x, context)
            if index == 0 and frames > 1 and self.time is not None:
                x = self.time(x, frames)
        return x


class Block(nn.Module):
    """Two convolutions beside the features, what is between them scaled and shifted by the context."""

    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.context = nn.Linear(context, 2 * width)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(cast(Tensor, self.second.bias))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Features [N, C, h, w] with context [N, D] to the same shape."""
        gain, shift = self.context(context)[:, :, None, None].chunk(2, dim=1)
        return x + cast(Tensor, self.second(modulated(self.first(normed(x)), gain, shift)))


class TimeMix(nn.Module):
    """Every cell sees itself in the latent frames before and after."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3 * width, width, 1)
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(cast(Tensor, self.mix.bias))

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """Features [B * T, C, h, w] to the same shape."""
        clips = normed(x).unflatten(0, (-1, frames))
        before = torch.cat([clips[:, :1], clips[:, :-1]], dim=1)
        after = torch.cat([clips[:, 1:], clips[:, -1:]], dim=1)
        both = torch.cat([before, clips, after], dim=2).flatten(0, 1)
        return x + cast(Tensor, self.mix(both))


class Attention(nn.Module):
    """All cells of all latent frames see each other, and the words of the prompt."""

    def __init__(self, width: int, text_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.own, self.query = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.words = nn.Linear(text_width, 2 * width)
        self.outs = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.inner, self.outer = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        for layer in (*self.outs, self.outer):
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, text: Tensor, text_mask: Tensor, frames: int) -> Tensor:
        """Features [B * T, C, h, w] with text [B, S, D] to the same shape."""
        rows, columns = x.shape[2:]
        tokens = x.unflatten(0, (-1, frames)).permute(0, 1, 3, 4, 2).flatten(1, 3)
        tokens = tokens + _positions(frames, rows, columns, tokens.shape[2]).to(tokens)
        query, key, value = (self._split(part) for part in self.own(self.norms[0](tokens)).chunk(3, dim=-1))
        tokens = tokens + self.outs[0](self._merge(F.scaled_dot_product_attention(query, key, value)))
        key, value = (self._split(part) for part in self.words(text).chunk(2, dim=-1))
        query = self._split(self.query(self.norms[1](tokens)))
        seen = F.scaled_dot_product_attention(query, key.to(query), value.to(query), attn_mask=text_mask[:, None, None])
        tokens = tokens + self.outs[1](self._merge(seen))
        tokens = tokens + self.outer(F.gelu(self.inner(self.norms[2](tokens))))
        clips = tokens.unflatten(1, (frames, rows, columns)).permute(0, 1, 4, 2, 3)
        features: Tensor = clips.flatten(0, 1).to(x.dtype).contiguous(memory_format=torch.channels_last)
        return features

    def _split(self, x: Tensor) -> Tensor:
        return cast(Tensor, x.unflatten(2, (self.heads, -1))).transpose(1, 2)

    def _merge(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)


def mlp(inputs: int, width: int) -> nn.Sequential:
    """Two layers."""
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))


def _waves(x: Tensor) -> Tensor:
    """Numbers of about 0 to 1 as sines and cosines, [..., 2 * _WAVES]."""
    angles = x[..., None] * torch.exp(torch.linspace(0, math.log(1000.0), _WAVES, device=x.device))
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def blurred(x: Tensor) -> Tensor:
    """Every pixel of [N, C, h, w] as the mean of itself and its eight neighbours."""
    return F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)


def places(x: Tensor) -> Tensor:
    """Where each cell of features [N, C, h, w] is, -1 to 1: [N, 2, h, w]."""
    count, _, rows, columns = x.shape
    down = torch.linspace(-1, 1, rows, device=x.device).view(1, 1, rows, 1).expand(count, -1, -1, columns)
    across = torch.linspace(-1, 1, columns, device=x.device).view(1, 1, 1, columns).expand(count, -1, rows, -1)
    return torch.cat([down, across], dim=1)


def _positions(frames: int, rows: int, columns: int, width: int) -> Tensor:
    """Sines and cosines of frame, row and column of every token, [T * h * w, width]."""
    each = width // 6
    rates = torch.exp(torch.linspace(0, math.log(0.05), each))
    grid = torch.meshgrid(*(torch.arange(side) for side in (frames, rows, columns)), indexing="ij")
    angles = [place.flatten()[:, None] * rates for place in grid]
    waves = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)
    return F.pad(waves, (0, width - waves.shape[1]))
