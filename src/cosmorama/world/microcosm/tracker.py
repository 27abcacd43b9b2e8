"""Follows the objects of a still through the clip that was sampled from it.

What the denoiser makes of motion is soft where it is fast, or not sure. Here it is said in numbers: of every frame
where each object is and how it is turned. Where an object is seen best says a map over the picture, by the geometry of
the camera; what that misses, and the frames between, a recurrent network adds that sees all of the clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cosmorama.world.microcosm import unet
from cosmorama.world.microcosm.autoencoder import FRAMES_PER_LATENT
from cosmorama.world.microcosm.layout import (
    NUMBERS,
    OBJECT,
    PLAN_CHANNELS,
    SLOTS,
    Layout,
    in_sight,
    near,
    plan,
    rays_of,
)
from cosmorama.world.microcosm.stored import Stored

LOOKS = (3, 7)
"""Which of a latent frame's eight frames are looked at."""
_LOOK, _SHARP = 4, 12.0  # pixels a side that are read as one; how narrow the likeness of colors is
_PLACE = OBJECT[:3, 1]  # about how far an object's x, y and z are from the middle
_SEEN = SLOTS * len(LOOKS) * 5  # of every map: where in x and z, how wide and how high
_SURE = 4.0  # of what it says of how far off it is: farther than a picture is wide, it knows nothing
_SUM, _TOLD = 5, 3  # numbers of an object and frame: what is added to x, y, z, and its turn; others of a token


class Tracker(Stored):
    """Looks at clips at one eighth of the output size.

    Args:
        widths: Features of the maps' network on its two levels.
        state: Width of the recurrent network, each way.
        context: Width of what the maps' network is told of the still's layout.
    """

    def __init__(self, widths: tuple[int, int] = (24, 48), state: int = 64, context: int = 48) -> None:
        super().__init__()
        fine, coarse = widths
        self.hear = nn.Sequential(nn.Linear(NUMBERS, context), nn.SiLU())
        pictures = 3 * _LOOK**2 * (1 + len(LOOKS)) + SLOTS * len(LOOKS)
        self.first = nn.Conv2d(pictures + PLAN_CHANNELS + 2, fine, 3, padding=1)
        self.shrink, self.grow = nn.Conv2d(fine, coarse, 2, stride=2), nn.Conv2d(coarse, fine, 1)
        self.blocks = nn.ModuleList(unet.Block(width, context) for width in (fine, coarse, fine))
        self.where = nn.Conv2d(fine, SLOTS * len(LOOKS), 3, padding=1)
        self.token = nn.Sequential(nn.Linear(_SEEN + NUMBERS + _TOLD, state), nn.SiLU())
        self.along = nn.GRU(state, state, batch_first=True, bidirectional=True)
        numbers = SLOTS * (FRAMES_PER_LATENT * _SUM + 1)
        self.say = nn.Sequential(nn.SiLU(), nn.Linear(2 * state, 2 * state), nn.SiLU(), nn.Linear(2 * state, numbers))
        nn.init.zeros_(cast(nn.Linear, self.say[-1]).weight)
        nn.init.zeros_(cast(nn.Linear, self.say[-1]).bias)

    def forward(
        self, still: Tensor, looks: Tensor, layout: Layout, seconds: Tensor, given: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Where the objects of stills go.

        Args:
            still: Frames 0, [B, 3, h, w] in [-1, 1].
            looks: Of each later latent frame the frames `LOOKS`, [B, T, 2, 3, h, w].
            layout: What the stills show.
            seconds: How long a latent frame lasts, [B].
            given: bool [B, T], which latent frames were given and not sampled.

        Returns:
            Of each later frame and object how far it has gone in x, y and z, in `OBJECT`'s units, and sine and cosine
            of four times its turn since then, [B, 8 T, `SLOTS`, 5]; and the logarithm of about how far off that is,
            [B, T, `SLOTS`].
        """
        count = looks.shape[1]
        seen = self._seen(still, looks, layout)
        times = seconds[:, None] * torch.arange(1, count + 1)
        told = torch.stack([seconds[:, None].expand(-1, count), times / 4, given.float()], dim=-1)
        layouts = layout.told()[:, None].expand(-1, count, -1)
        tokens = self.token(torch.cat([seen.flatten(2), layouts, told], dim=-1))
        said = self.say(self.along(tokens)[0]).float().unflatten(-1, (SLOTS, -1))
        added = said[..., :-1].unflatten(-1, (FRAMES_PER_LATENT, _SUM)).transpose(2, 3).flatten(1, 2)
        base = _between(seen[..., :2])
        x, y, z, sine, cosine = added.unbind(-1)
        gone = torch.stack([x + base[..., 0], y, z + base[..., 1], sine, 1 + cosine], dim=-1)
        return gone, said[..., -1] - 2

    def layouts(
        self, still: Tensor, layout: Layout, pieces: Sequence[Tensor], given: int, fps: float
    ) -> list[Layout] | None:
        """The layouts of a clip's frames, eight for each latent frame after the first.

        Args:
            still: Its frame 0, [1, 3, h, w].
            layout: What that shows.
            pieces: The clip as it was sampled, frame 0, and then [8, 3, h, w] of each latent frame.
            given: How many of the frames were given.
            fps: Frames a second.

        Returns:
            None where it is not sure enough.
        """
        looks = torch.stack([piece[list(LOOKS)] for piece in pieces[1:]])[None]
        known = torch.arange(1, len(pieces)) * FRAMES_PER_LATENT < given
        gone, spread = self(still, looks, layout, torch.tensor([FRAMES_PER_LATENT / fps]), known[None])
        found = [moved(layout, part) for part in gone[0].split(FRAMES_PER_LATENT)]
        there = torch.stack([in_sight(one.objects, *still.shape[2:]).any(0) for one in found])
        return found if float((spread[0].exp() * there).amax()) < _SURE else None

    def _seen(self, still: Tensor, looks: Tensor, layout: Layout) -> Tensor:
        """Where each object is seen at each look, in x and z since the still, in `OBJECT`'s units, were it as far away
        as then; how scattered that is, and how sure: [B, T, 2, `SLOTS`, 5].
        """
        batch, count = looks.shape[:2]
        whole = (0, -still.shape[-1] % (2 * _LOOK), 0, -still.shape[-2] % (2 * _LOOK))
        still = F.pad(still, whole, mode="replicate")
        frames = F.pad(looks.flatten(0, 2), whole, mode="replicate")
        rows, columns = still.shape[2] // _LOOK, still.shape[3] // _LOOK
        shown = plan(layout, rows, columns)
        alike = self._alike(still, frames.unflatten(0, (batch, -1)), near(shown))
        cells = F.pixel_unshuffle(frames, _LOOK).unflatten(0, (batch, count, -1)).flatten(2, 3)
        alike = alike.unflatten(1, (count, -1)).flatten(2, 3)
        fixed = torch.cat([F.pixel_unshuffle(still, _LOOK), shown, unet.places(shown)], dim=1)
        x = torch.cat([cells, alike, fixed[:, None].expand(-1, count, -1, -1, -1)], dim=2).flatten(0, 1)
        context = self.hear(layout.told())[:, None].expand(-1, count, -1).flatten(0, 1)
        x = self.blocks[0](self.first(x.contiguous(memory_format=torch.channels_last)), context)
        x = x + F.interpolate(self.grow(self.blocks[1](self.shrink(x), context)), scale_factor=2.0, mode="nearest")
        maps = self.where(F.silu(unet.normed(self.blocks[2](x, context)))).float()
        likely = maps.flatten(2).softmax(-1).unflatten(0, (batch, count)).unflatten(2, (len(LOOKS), SLOTS))
        eye, rays = rays_of(layout.view, rows, columns)
        depth = layout.objects[:, :, None, None, 2] - eye[:, None, ..., 1]
        met = eye[:, None] + depth[..., None] / rays[:, None, ..., 1:2] * rays[:, None]
        places = (met[..., (0, 2)].flatten(2, 3) - layout.objects[:, :, None, (1, 3)]) / _PLACE[[0, 2]]
        middle = torch.einsum("btksn,bsnc->btksc", likely, places)
        spread = torch.einsum("btksn,bsnc->btksc", likely, places.square()) - middle.square()
        return torch.cat([middle, (spread.clamp(min=0) + 1e-6).sqrt(), likely.amax(-1, keepdim=True)], dim=-1)

    def _alike(self, still: Tensor, frames: Tensor, inside: Tensor) -> Tensor:
        """How much cells of frames [B, N, 3, H, W] have the colors of a still's objects, [B, N, `SLOTS`, h, w]."""
        cells, inside = F.avg_pool2d(still, _LOOK), inside.float()
        mean = torch.einsum("bshw,bchw->bsc", inside, cells) / inside.sum((2, 3)).clamp(min=1)[..., None]
        shown = F.avg_pool2d(frames.flatten(0, 1), _LOOK).unflatten(0, frames.shape[:2])
        apart = (shown[:, :, None] - mean[:, None, :, :, None, None]).square().sum(3)
        return torch.exp(-_SHARP * apart) * (inside.sum((2, 3)) > 0)[:, None, :, None, None]


def _between(seen: Tensor) -> Tensor:
    """Places at the looks [B, T, 2, `SLOTS`, C] to those in each frame, [B, 8 T, `SLOTS`, C]: in between evenly, and 0
    before the first.
    """
    points = torch.cat([torch.zeros_like(seen[:, :1, 0]), seen.flatten(1, 2)], dim=1)  # half a latent frame apart
    half = FRAMES_PER_LATENT // len(LOOKS)
    shares = torch.arange(1, half + 1) / half
    steps = torch.lerp(points[:, :-1, None], points[:, 1:, None], shares.view(-1, 1, 1))
    return steps.flatten(1, 2)


def moved(layout: Layout, gone: Tensor) -> Layout:
    """The layout of one still, moved to [N, `SLOTS`, 5] of a tracker's answer: N layouts."""
    there, places, half, turn, kinds = layout.objects.split([1, 3, 1, 1, layout.objects.shape[-1] - 6], dim=-1)
    turns = turn + torch.atan2(gone[..., 3:4], gone[..., 4:5]) / 4
    count = len(gone)
    parts = [part.expand(count, -1, -1) for part in (there, half, kinds)]
    objects = torch.cat([parts[0], places + gone[..., :3] * _PLACE, parts[1], turns, parts[2]], dim=-1)
    return Layout(objects, layout.view.expand(count, -1))
