"""Where the camera of a drive is, by what was done so far, and what it would see there of an empty corridor.

Poses are reckoned from the first frame, which is taken for the start of a drive: in the middle, looking along the
corridor. The plan is two walls, the floor, and how far apart the shelves' posts are; all else is learned. Lengths are
metres.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Pose = tuple[float, float, float]
"""Of the camera: x and y, m, and its turn to the left, rad. At (0, 0, 0) it looks along the corridor, to +y."""

HALF_WIDTH_M = 1.7  # from the middle to the fronts of the shelves
FOV_DEG = 45.0  # of the short side
BAY_M, TOP_M = 2.2, 2.6  # from post to post, and how high the shelves are
HAZE_M = (2.0, 10.0)  # where it begins and where nothing else is left
PLAN_CHANNELS = 10
_NEAREST_M = 0.55  # that the camera comes to the shelves
_EYE_M, _PITCH_RAD = 1.27, math.radians(-5)  # the usual ones


def step_on(pose: Pose, way: Sequence[float]) -> Pose:
    """The pose after a way forward, a turn and a way to the left (m, rad, m); the shelves stop it."""
    x, y, yaw = pose
    forward, turn, left = way
    middle = yaw + turn / 2
    x += -forward * math.sin(middle) - left * math.cos(middle)
    y += forward * math.cos(middle) - left * math.sin(middle)
    room = HALF_WIDTH_M - _NEAREST_M
    return max(-room, min(room, x)), y, yaw + turn


def plan(poses: Tensor, rows: int, columns: int) -> Tensor:
    """What is where in the picture, of an empty corridor seen from poses [B, 3]: [B, `PLAN_CHANNELS`, rows, columns].

    Left wall, right wall, floor, and haze, each 0 to 1; height on the wall, place across the floor; and where along the
    corridor, as sines and cosines of once and twice the way from post to post.
    """
    rays, to_wall, to_floor = _rays(poses, rows, columns)
    east, north, rise = rays
    x, y, _ = (part.view(-1, 1, 1) for part in poses.unbind(1))
    distance = torch.minimum(to_wall, to_floor).clamp(0, 50)
    height, along = _EYE_M + distance * rise, y + distance * north
    wall = ((to_wall < to_floor) & (height < TOP_M)).float()
    floor = (to_floor <= to_wall).float()
    seen = ((HAZE_M[1] - distance) / (HAZE_M[1] - HAZE_M[0])).clamp(0, 1)
    turns = [2 * math.pi * times * along / BAY_M for times in (1, 2)]
    waves = [part * seen for turn in turns for part in (turn.sin(), turn.cos())]
    across = floor * (x + distance * east) / HALF_WIDTH_M
    channels = [wall * (east < 0), wall * (east > 0), floor, seen, wall * height / TOP_M, across, *waves]
    return torch.stack([channel.expand(len(poses), rows, columns) for channel in channels], dim=1)


def distances(poses: Tensor, rows: int, columns: int) -> Tensor:
    """How far ahead, m, what each pixel shows of an empty corridor is: [B, rows, columns]."""
    _, to_wall, to_floor = _rays(poses, rows, columns)
    return torch.minimum(to_wall, to_floor).clamp(0, 50)


def _slopes(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """How far down [rows, 1] and right [1, columns] each ray goes for every metre ahead."""
    focal = rows / 2 / math.tan(math.radians(FOV_DEG / 2))
    down, right = ((torch.arange(count) - (count - 1) / 2) / focal for count in (rows, columns))
    return down[:, None], right[None]


def _rays(poses: Tensor, rows: int, columns: int) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor]:
    """Where each pixel looks, to the east, north and up for every metre ahead, and metres to the wall and the floor."""
    down, right = _slopes(rows, columns)
    x, _, yaw = (part.view(-1, 1, 1) for part in poses.unbind(1))
    level = math.cos(_PITCH_RAD) + down * math.sin(_PITCH_RAD)  # along the camera's heading
    rise = math.sin(_PITCH_RAD) - down * math.cos(_PITCH_RAD) + 0 * right
    east = -level * yaw.sin() + right * yaw.cos()
    north = level * yaw.cos() + right * yaw.sin()
    side = torch.where(east < 0, -1.0, 1.0)
    to_wall = (HALF_WIDTH_M - side * x) / east.abs().clamp(min=1e-4)
    to_floor = torch.where(rise < -1e-3, -_EYE_M / rise.clamp(max=-1e-3), torch.inf)
    return (east, north, rise), to_wall, to_floor
