"""Draws a still of objects again, sharp: a network reads its layout off the sampled one, a second one draws that.

What is sampled is soft where the denoiser is not sure where an outline runs. Here it is decided, in numbers: then all
of the picture follows. What the sampled still shows of colors and floors is read beside the layout. A picture of
something else stays as it is, and so does one of which the reading network is not sure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cosmorama.world.microcosm import unet
from cosmorama.world.microcosm.layout import NUMBERS, PLAN_CHANNELS, Layout, is_sure, plan
from cosmorama.world.microcosm.stored import Stored

CELL = 2
_LOOK, _GRID, _SQUEEZED = 4, (6, 10), 16  # pixels a side that are read as one; coarse cells, and features of each


class StillRefiner(Stored):
    """Reads and draws pictures at one eighth of the output size.

    Args:
        reader_widths: Features on each level of what reads.
        painter_widths: Features on each level of the U-Net that draws.
        context: Width of what both are told of the prompt.
        text_width: Width D of the text states.
    """

    def __init__(
        self,
        reader_widths: Sequence[int] = (48, 96, 128),
        painter_widths: Sequence[int] = (32, 64, 96),
        context: int = 128,
        text_width: int = 192,
    ) -> None:
        super().__init__()
        self.hear = nn.Sequential(nn.Linear(text_width, context), nn.SiLU())
        self.first = nn.Conv2d(3 * _LOOK**2 + 2, reader_widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(unet.Block(width, context) for width in reader_widths)
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(reader_widths))
        self.squeeze = nn.Conv2d(reader_widths[-1], _SQUEEZED, 1)
        told = _SQUEEZED * math.prod(_GRID) + context + 1
        self.say = nn.Sequential(unet.mlp(told, 256), nn.SiLU(), nn.Linear(256, NUMBERS + 1))
        self.mix = nn.Sequential(nn.Linear(text_width, context), nn.SiLU(), nn.Linear(context, context), nn.SiLU())
        once = [1] * len(painter_widths)
        self.paint = unet.Levels(3 * CELL**2 + PLAN_CHANNELS, 3 * CELL**2, painter_widths, once, context)

    def read(self, frames: Tensor, text: Tensor) -> Tensor:
        """What stills [B, 3, h, w] in [-1, 1] show: their layouts as `Layout.told` says them, and a logit of whether
        they show objects at all, [B, `NUMBERS` + 1].

        Args:
            frames: The stills.
            text: The prompts' first states, [B, D].
        """
        context, (height, width) = self.hear(text), frames.shape[2:]
        whole = _LOOK * 2 ** len(self.shrink)
        x = F.pixel_unshuffle(F.pad(frames, (0, -width % whole, 0, -height % whole), mode="replicate"), _LOOK)
        x = self.first(torch.cat([x, unet.places(x)], dim=1).contiguous(memory_format=torch.channels_last))
        x = self.blocks[0](x, context)
        for shrink, block in zip(self.shrink, list(self.blocks)[1:], strict=True):
            x = block(shrink(x), context)
        features = F.adaptive_avg_pool2d(F.silu(self.squeeze(unet.normed(x))), _GRID).flatten(1)
        form = torch.full((len(frames), 1), math.log(width / height))
        return cast(Tensor, self.say(torch.cat([features, context, form], dim=1))).float()

    def draw(self, frames: Tensor, layout: Layout, text: Tensor) -> Tensor:
        """Pictures [B, 3, h, w] of layouts, in the colors of `frames` and of the prompts; see `read`."""
        height, width = frames.shape[2:]
        frames = F.pad(frames, (0, -width % CELL, 0, -height % CELL), mode="replicate")
        cells = F.pixel_unshuffle(frames, CELL)
        drawn = self.paint(torch.cat([cells, plan(layout, *cells.shape[2:])], dim=1), self.mix(text))
        return F.pixel_shuffle(drawn.float(), CELL)[..., :height, :width]

    def forward(self, frames: Tensor, text: Tensor) -> Tensor:
        """Stills [B, 3, h, w] drawn again, or as they are: of something else, or where it is not sure of what."""
        said = self.read(frames, text)
        sure = (said[:, -1] > 0) & is_sure(said[:, :-1])
        if not sure.any():
            return frames
        drawn = self.draw(frames, Layout.heard(said[:, :-1]), text)
        return torch.where(sure.view(-1, 1, 1, 1), drawn.clamp(-1, 1), frames)
