"""Where a picture of a corridor was taken, and what it shows there: the map that a drive begins with.

A corridor turned by half a turn is a corridor again. Views are canonical here: they look to +y, with turns of -pi/2 to
pi/2, and what a network says of them stays the same where two such views meet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cosmorama.world.microcosm import unet
from cosmorama.world.microcosm.corridor_map import LEVELS_M, NUMBERS, REACH, SLOTS, CorridorMap, of_parts, random_boxes
from cosmorama.world.microcosm.odometry import BAY_M, HALF_WIDTH_M, HAZE_M, MOUNTED, NEAREST_M, on_picture
from cosmorama.world.microcosm.stored import Stored

BAYS = range(-2, 5)  # that are looked at, from the camera's
_CELL, _ROWS, _COLUMNS = 4, 22, 40  # pixels a side, and how many there are
_FEATURES, _SQUEEZED = 48, 32
_WHERE = 12
_EYE_M, _PITCH_RAD = 0.1, 0.03  # about how far views differ from the usual ones
_FRONT_M, _BOX_UP_M = 0.1, 0.43  # where the middle of a box's front is


class Finder(Stored):
    """Reads pictures of 160 x 88 pixels.

    Args:
        widths: Features on each level of its U-Net.
        context: Width of what reads off them where the camera is.
    """

    def __init__(self, widths: Sequence[int] = (64, 96, 128), context: int = 192) -> None:
        super().__init__()
        self.look = unet.Levels(3 * _CELL**2, _FEATURES, widths, [1] * len(widths), 1)
        coarse = math.prod(-(-side // 2 ** (len(widths) - 1)) for side in (_ROWS, _COLUMNS))
        self.squeeze = nn.Conv2d(widths[-1], _SQUEEZED, 1)
        self.where = nn.Sequential(unet.mlp(_SQUEEZED * coarse, context), nn.SiLU(), nn.Linear(context, _WHERE))
        self.slot = nn.Sequential(unet.mlp(3 * _FEATURES + 6, 96), nn.SiLU(), nn.Linear(96, NUMBERS))

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """What frames [B, 3, h, w] show, [B, D, h', w'], and where that is, as `told` says it, [B, 12]."""
        nothing = frames.new_zeros(len(frames), 1)
        middle, kept = self.look.downwards(F.pixel_unshuffle(frames, _CELL), nothing)
        where: Tensor = self.where(F.silu(self.squeeze(unet.normed(middle))).flatten(1))
        return self.look.upwards(middle, kept, nothing).float(), where.float()

    def boxes(self, features: Tensor, views: Tensor) -> tuple[Tensor, Tensor]:
        """The boxes that `features` show, from canonical views [B, 5] in `BAYS` from the camera's: [B, bays, 2, 2, 2,
        `NUMBERS`], the first one's logit, the others in parts of their ranges; and which are in the picture, bool.
        """
        points, told, looks, size = _middles(views), [], [], features.shape[2:]
        for along in (-0.35, 0.0, 0.35):
            places, ahead = on_picture(views, points.flatten(1, 4) + torch.tensor([0.0, along, 0.0]), *size)
            places = places.clamp(-3, 3)
            if along == 0.0:
                shown = (ahead > 0.3) & (ahead < HAZE_M[1] - 2) & (places.abs().amax(-1) < 1.1)
            looks.append(F.grid_sample(features, places[:, :, None], align_corners=False)[..., 0].mT)
            told.append(places / 3)
        near = 1 / ahead.clamp(min=0.3)
        read = torch.cat([*looks, told[0], told[2], near[..., None], ahead[..., None].clamp(-1, 10) / 10], dim=-1)
        said: Tensor = self.slot(read)
        return said.float().unflatten(1, points.shape[1:-1]), shown.unflatten(1, points.shape[1:-1])


def _middles(views: Tensor) -> Tensor:
    """Of the fronts of boxes in `BAYS` from the camera's: [B, bays, 2, 2, 2, 3]."""
    bays = (views[:, 1] / BAY_M).floor()[:, None] + torch.tensor(BAYS)
    sides = torch.tensor([-1.0, 1.0]) * (HALF_WIDTH_M + _FRONT_M)
    y = (bays[..., None] + torch.tensor(SLOTS)) * BAY_M
    shape = (len(views), len(BAYS), 2, 2, 2)
    x, up = sides.view(1, 1, 2, 1, 1), (torch.tensor(LEVELS_M) + _BOX_UP_M).view(1, 1, 1, 2, 1)
    return torch.stack([part.expand(shape) for part in (x, y[:, :, None, None], up)], dim=-1)


def told(views: Tensor, ahead: Tensor) -> Tensor:
    """Canonical views [B, 5] and what stands in the way, [B, 3], as the network is to say them, [B, 12]; for whether
    something stands there it says a logit.
    """
    x, y, yaw, eye, pitch = views.unbind(1)
    turn = 2 * math.pi * y / BAY_M
    there, east, north = ahead[:, 0], ahead[:, 1] - x, ahead[:, 2] - y
    forward, right = north * yaw.cos() - east * yaw.sin(), east * yaw.cos() + north * yaw.sin()
    there = there * (forward > 0.3) * (forward < HAZE_M[1] - 2) * (right.abs() < forward)
    numbers = [x * yaw.cos(), x * yaw.sin(), (2 * yaw).cos(), (2 * yaw).sin()]
    numbers += [turn.cos(), turn.sin() * yaw.cos(), turn.sin() * yaw.sin()]
    numbers += [(eye - MOUNTED[0]) / _EYE_M, (pitch - MOUNTED[1]) / _PITCH_RAD]
    return torch.stack([*numbers, there, there * right / 2, there * forward / 4], dim=1)


def heard(said: Tensor) -> tuple[Tensor, Tensor]:
    """Views [B, 5] and what stands in the way, [B, 3], of what the network says; see `told`."""
    yaw = torch.atan2(said[:, 3], said[:, 2]) / 2
    x = (said[:, 0] * yaw.cos() + said[:, 1] * yaw.sin()).clamp(NEAREST_M - HALF_WIDTH_M, HALF_WIDTH_M - NEAREST_M)
    y = torch.atan2(said[:, 5] * yaw.cos() + said[:, 6] * yaw.sin(), said[:, 4]) * BAY_M / (2 * math.pi)
    eye, pitch = MOUNTED[0] + _EYE_M * said[:, 7].clamp(-2, 2), MOUNTED[1] + _PITCH_RAD * said[:, 8].clamp(-2, 2)
    right, forward = said[:, 10] * 2, said[:, 11] * 4
    ahead = [said[:, 9] > 0, x + right * yaw.cos() - forward * yaw.sin(), y + right * yaw.sin() + forward * yaw.cos()]
    return torch.stack([x, y, yaw, eye, pitch], dim=1), torch.stack([part.float() for part in ahead], dim=1)


def found(finder: Finder, frame: Tensor, kind: Tensor, seed: int) -> tuple[Tensor, CorridorMap]:
    """Where a frame [1, 3, h, w] was taken, [5], and the map: what it shows, and elsewhere what the seed puts there; of
    what stands in the way the kind is said, see `kind_of`.
    """
    features, said = finder(frame)
    view, ahead = heard(said)
    parts, shown = finder.boxes(features, view)
    parts = torch.cat([(parts[..., :1] > 0).float(), parts[..., 1:].clamp(0, 1)], dim=-1)
    boxes = random_boxes(seed)[None]
    first = int((view[0, 1] / BAY_M).floor()) + BAYS[0] - REACH[0]
    around = boxes[:, first : first + len(BAYS)]
    around.copy_(torch.where(shown[..., None], of_parts(parts), around))
    return view[0], CorridorMap(boxes, torch.tensor([REACH[0]]), ahead, kind[None])
