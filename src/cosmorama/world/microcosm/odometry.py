"""Where the camera of a drive is, by what was done so far, and how it sees the corridor. Lengths are metres."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cosmorama.text.language import Speed

Pose = tuple[float, float, float]
"""Of the camera: x and y, m, and its turn to the left, rad. At (0, 0, 0) it looks along the corridor, to +y."""

HALF_WIDTH_M = 1.7  # from the middle to the fronts of the shelves
FOV_DEG = 45.0  # of the short side
BAY_M, TOP_M = 2.2, 2.6  # from post to post, and how high the shelves are
HAZE_M = (2.0, 10.0)  # where it begins and where nothing else is left
SPEED_M_S: dict[Speed, tuple[float, float]] = {"slow": (0.3, 0.4), "fast": (0.75, 0.9)}  # of the camera
STOP_M = 1.3  # the camera stops so far from what is ahead
NEAREST_M = 0.55  # that the camera comes to the shelves
MOUNTED = (1.27, math.radians(-5))
"""How high the camera is, m, and how far up it looks, rad: the usual numbers. A view is a pose and these, 5 numbers."""


def step_on(pose: Pose, way: Sequence[float]) -> Pose:
    """The pose after a way forward, a turn and a way to the left (m, rad, m); the shelves stop it."""
    x, y, yaw = pose
    forward, turn, left = way
    middle = yaw + turn / 2
    x += -forward * math.sin(middle) - left * math.cos(middle)
    y += forward * math.cos(middle) - left * math.sin(middle)
    room = HALF_WIDTH_M - NEAREST_M
    return max(-room, min(room, x)), y, yaw + turn


class Rays:
    """What each pixel of pictures [B, rows, columns] looks along, from views [B, 5].

    Attributes:
        x, y, eye: Where the camera is, each [B, 1, 1].
        east, north, rise: How far a ray goes there for every metre ahead.
    """

    def __init__(self, views: Tensor, rows: int, columns: int) -> None:
        self.x, self.y, yaw, self.eye, pitch = (part.view(-1, 1, 1) for part in views.unbind(1))
        focal = rows / 2 / math.tan(math.radians(FOV_DEG / 2))
        down, right = ((torch.arange(count) - (count - 1) / 2) / focal for count in (rows, columns))
        down = down[:, None]
        level = pitch.cos() + down * pitch.sin()  # along the camera's heading
        self.rise = pitch.sin() - down * pitch.cos() + 0 * right
        self.east = -level * yaw.sin() + right * yaw.cos()
        self.north = level * yaw.cos() + right * yaw.sin()

    def to_wall(self, behind_m: float = 0.0) -> Tensor:
        """How far it is to the shelves' fronts, or to a plane so far behind them."""
        side = torch.where(self.east < 0, -1.0, 1.0)
        return (HALF_WIDTH_M + behind_m - side * self.x) / self.east.abs().clamp(min=1e-4)

    def to_floor(self) -> Tensor:
        """How far it is to the floor; infinite above the horizon."""
        return torch.where(self.rise < -1e-3, -self.eye / self.rise.clamp(max=-1e-3), torch.inf)


def on_picture(views: Tensor, points: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Where points [B, N, 3] are in pictures from views [B, 5]: right and down, -1 to 1, [B, N, 2]; and how far ahead,
    m, [B, N].
    """
    x, y, yaw, eye, pitch = (part[:, None] for part in views.unbind(1))
    east, north, up = points[..., 0] - x, points[..., 1] - y, points[..., 2] - eye
    forward, right = north * yaw.cos() - east * yaw.sin(), east * yaw.cos() + north * yaw.sin()
    ahead = forward * pitch.cos() + up * pitch.sin()
    rise = up * pitch.cos() - forward * pitch.sin()
    tangent = math.tan(math.radians(FOV_DEG / 2))
    places = torch.stack([right / tangent * rows / columns, -rise / tangent], dim=-1)
    return places / ahead.clamp(min=0.05)[..., None], ahead
