"""Microcosm's convolutional networks: a U-Net over single frames, and the blocks it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def normed(x: Tensor) -> Tensor:
    """Features [N, C, h, w] divided by their root mean square over the channels."""
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-5)


def modulated(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """SiLU of features [N, C, h, w], scaled by 1 + gain and shifted, both [N, C, 1, 1]."""
    return F.silu(x * (1 + gain) + shift)


class Levels(nn.Module):
    """A U-Net over single frames; every level has half the cells a side of the one before."""

    def __init__(self, inputs: int, outputs: int, widths: Sequence[int], depths: Sequence[int], context: int) -> None:
        super().__init__()
        self.read = nn.Conv2d(inputs + 2, widths[0], 3, padding=1)
        self.down, self.up, self.shrink, self.grow, self.join = (nn.ModuleList() for _ in range(5))
        for level, (width, depth) in enumerate(zip(widths[:-1], depths, strict=False)):
            self.down.append(Stage(width, depth, context))
            self.up.append(Stage(width, depth, context))
            self.shrink.append(nn.Conv2d(width, widths[level + 1], 2, stride=2))
            self.grow.append(nn.Conv2d(widths[level + 1], width, 1))
            self.join.append(nn.Conv2d(2 * width, width, 1))
        self.middle = Stage(widths[-1], depths[-1], context)
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
            x = stage(x, context)
            kept.append(x)
            x = shrink(F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)))
        return self.middle(x, context), kept

    def upwards(self, x: Tensor, kept: list[Tensor], context: Tensor) -> Tensor:
        """What is made of them."""
        for stage, grow, join, before in reversed(list(zip(self.up, self.grow, self.join, kept, strict=True))):
            larger = F.interpolate(grow(x), scale_factor=2.0, mode="nearest")[..., : before.shape[2], : before.shape[3]]
            x = stage(join(torch.cat([larger, before], dim=1)), context)
        return cast(Tensor, self.write(F.silu(normed(x))))


class Stage(nn.Module):
    """One level of the U-Net: convolution blocks, one after the other."""

    def __init__(self, width: int, depth: int, context: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, context) for _ in range(depth))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Features [B, C, h, w] with context [B, D] to the same shape."""
        for block in self.blocks:
            x = block(x, context)
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


def mlp(inputs: int, width: int) -> nn.Sequential:
    """Two layers."""
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))


def blurred(x: Tensor) -> Tensor:
    """Every pixel of [N, C, h, w] as the mean of itself and its eight neighbours."""
    return F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)


def places(x: Tensor) -> Tensor:
    """Where each cell of features [N, C, h, w] is, -1 to 1: [N, 2, h, w]."""
    count, _, rows, columns = x.shape
    down = torch.linspace(-1, 1, rows, device=x.device).view(1, 1, rows, 1).expand(count, -1, -1, columns)
    across = torch.linspace(-1, 1, columns, device=x.device).view(1, 1, 1, columns).expand(count, -1, rows, -1)
    return torch.cat([down, across], dim=1)
