"""The network that drives: the next frame of a corridor, from the last two, the prompt, and what the driver does.

One small U-Net says how far every pixel moves, a sum over the actions, and the last frame is moved so. A second one
draws the prompt's corridor as its map (see `corridor_map`) is seen from where the camera comes to. A third says of
every pixel how much of the moved frame stays, the rest being drawn anew, and how much sharper that has to be. Nothing
is ever added up: however long a drive is, it stays between what was seen and what is drawn. Frames are 160 x 88 pixels
in [-1, 1], read as cells of 2 x 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cosmorama.world.microcosm import unet
from cosmorama.world.microcosm.corridor_map import KINDS, PLAN_CHANNELS
from cosmorama.world.microcosm.stored import Stored

CELL = 2
_CHANNELS = 3 * CELL**2
AHEAD, _LIGHT, _WAVES = 18, 16, 4  # channels of a plan before those of what is ahead; numbers of the light; of places
_FADES = 0.2  # share of the frame that is drawn anew in any case, at full speed; of one that stands still, none
_FARTHEST_PX = 8.0  # about what the strongest turn moves a pixel by


class DriveNet(Stored):
    """Makes the next frame.

    Args:
        widths: Features on each level of the U-Net that draws; one block on each.
        motion_widths: Features on each level of the two others.
        context: Width of what they are told.
        text_width: Width D of the text states.
        actions: Numbers A that steer a frame.
    """

    def __init__(
        self,
        widths: Sequence[int] = (48, 96, 128, 160),
        motion_widths: Sequence[int] = (32, 64, 96, 128),
        context: int = 192,
        text_width: int = 192,
        actions: int = 3,
    ) -> None:
        super().__init__()
        self.action_embed = unet.mlp(2 * actions, context)
        self.text_embed = nn.Linear(text_width, context)
        self.mix = nn.Sequential(nn.SiLU(), nn.Linear(context, context), nn.SiLU())
        once = [1] * len(widths)
        self.motion = unet.Levels(2 * _CHANNELS + PLAN_CHANNELS, 2 * actions, motion_widths, once, context)
        self.scene = unet.Levels(PLAN_CHANNELS, _CHANNELS, widths, once, context)
        self.light = nn.Linear(text_width, _LIGHT)
        told = 4 + KINDS + 4 * _WAVES + _CHANNELS + _LIGHT
        self.ahead = nn.Sequential(unet.mlp(told, 64), nn.SiLU(), nn.Linear(64, 8 * CELL**2))
        self.choice = unet.Levels(4 * _CHANNELS + 1 + PLAN_CHANNELS, 2 * CELL**2, motion_widths, once, context)
        with torch.no_grad():  # at first all stays as it is
            cast(Tensor, self.choice.write.bias).copy_(torch.tensor([2.0, -3.0]).repeat_interleave(CELL**2))

    def context(self, actions: Tensor, text: Tensor) -> Tensor:
        """What moves the picture is told, [B, D].

        Args:
            actions: [B, 2, A], what led to the last frame and what leads from it, in parts of its range's end.
            text: The prompt's first state, [B, D]; 0 for none.
        """
        return cast(Tensor, self.mix(self.action_embed(actions.flatten(1)) + self.text_embed(text)))

    def draw(self, plan: Tensor, text: Tensor) -> Tensor:
        """A prompt's corridor as it looks where one sees `plan`, see `corridor_map`: [B, 3, h, w]."""
        drawn = self.scene(plan[:, :PLAN_CHANNELS], self.mix(self.text_embed(text))).float()
        return F.pixel_shuffle(self._with_ahead(drawn, plan[:, AHEAD:], text), CELL)

    def _with_ahead(self, drawn: Tensor, shown: Tensor, text: Tensor) -> Tensor:
        """Cells [B, 12, h, w] with what stands in the way, which a network of its own draws where its kind is known: it
        is small, and too few of all pictures have one for the other to learn its colors.
        """
        known = shown[:, 4:].amax(1) > 0
        cells, shown = (part.movedim(1, -1)[known] for part in (drawn, shown))
        cells = self.thing(shown, cells, text.unsqueeze(1).expand(-1, int(known[0].numel()), -1)[known.flatten(1)])
        return drawn.movedim(1, -1).masked_scatter(known[..., None], cells).movedim(-1, 1)

    def thing(self, shown: Tensor, cells: Tensor, text: Tensor) -> Tensor:
        """Cells [N, 12] where a plan shows [N, 4 + `KINDS`] of what stands in the way, of a prompt [N, D]."""
        angles = (math.pi * 2 ** torch.arange(_WAVES) * shown[:, 1:3, None]).flatten(1)
        light = cast(Tensor, self.light(text)).float()
        said = self.ahead(torch.cat([shown, angles.sin(), angles.cos(), cells, light], dim=1)).float()
        inside, stays, *colors = said.view(-1, 8, CELL**2).tensor_split([1, 2, 5], dim=1)
        thing, around = (color.sigmoid() * 2 - 1 for color in colors)
        behind = torch.lerp(around, cells.view_as(around), stays.sigmoid())
        return torch.lerp(behind, thing, inside.sigmoid()).flatten(1)

    def move(self, frames: Tensor, actions: Tensor, plan: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """The last of frames [B, 2, 3, h, w] moved by `actions` [B, 2, A] to where one sees `plan`: [B, 3, h, w], and
        where it shows something that was in the picture, [B, 1, h, w].
        """
        cells = F.pixel_unshuffle(frames.flatten(1, 2), CELL)
        ways = self.motion(torch.cat([cells, plan[:, :PLAN_CHANNELS]], dim=1), context).float().unflatten(1, (-1, 2))
        flow = _FARTHEST_PX * (ways * actions[:, 1, :, None, None, None]).sum(1)
        height, width = frames.shape[3:]
        flow = F.interpolate(flow, (height, width), mode="bilinear")
        across = torch.linspace(-1 + 1 / width, 1 - 1 / width, width, device=flow.device) + flow[:, 0] * (2 / width)
        down = torch.linspace(-1 + 1 / height, 1 - 1 / height, height, device=flow.device)[:, None]
        down = down + flow[:, 1] * (2 / height)
        inside = ((across.abs() <= 1) & (down.abs() <= 1))[:, None].float()
        grid = torch.stack([across, down], dim=-1)
        return F.grid_sample(frames[:, 1].float(), grid, padding_mode="border", align_corners=False), inside

    def forward(
        self,
        moved: Tensor,
        inside: Tensor,
        drawn: Tensor,
        frames: Tensor,
        actions: Tensor,
        plan: Tensor,
        context: Tensor,
    ) -> Tensor:
        """The next frame [B, 3, h, w]: of the last one `moved`, see `move`, and of one `drawn`."""
        cells = F.pixel_unshuffle(torch.cat([moved, drawn, frames.flatten(1, 2)], dim=1), CELL)
        known = torch.cat([cells, F.avg_pool2d(inside, CELL), plan[:, :PLAN_CHANNELS]], dim=1)
        said = self.choice(known, context).float()
        stays, sharper = F.pixel_shuffle(said, CELL).sigmoid().chunk(2, dim=1)
        stays = stays * (1 - _FADES * actions[:, 1].abs().amax(1)).view(-1, 1, 1, 1)
        anew = (plan[:, AHEAD + 4 :].amax(1, keepdim=True) > 0).to(stays.dtype)  # it is known what stands there
        stays = stays * (1 - F.interpolate(anew, scale_factor=float(CELL)))
        return torch.lerp(drawn, moved + sharper * (moved - unet.blurred(moved)), stays)
