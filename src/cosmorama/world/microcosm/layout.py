"""The layout of a still of objects: where they stand, how large they are, how they are turned; camera and light.

Lengths are metres, x to the right, y away from the camera, z up; the camera looks at the point 1.25 m above (0, 0, 0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cosmorama.text.language import COLORS, SHAPES

SLOTS = 2  # objects at most, from left to right
OBJECT = torch.tensor([(0.0, 1.2), (0.0, 0.7), (0.6, 0.7), (0.6, 0.1), (0.0, 0.35)])
"""Of an object: the middle of x, y, z, half its size and its turn (rad), and about how far they are from that."""
VIEW = torch.tensor([(90.0, 2.0), (-11.0, 1.2), (7.25, 0.15), (0.0, 0.2), (0.125, 0.15)])
"""The same of the camera's azimuth and elevation (degrees) and distance, and of where the light leans to (x, y)."""
KINDS = (SHAPES, COLORS)
"""Of which an object is one each."""
_KINDS = sum(map(len, KINDS))
NUMBERS = SLOTS * (1 + len(OBJECT) + _KINDS) + len(VIEW)
OBJECT_CHANNELS = 10 + _KINDS
PLAN_CHANNELS = 4 + OBJECT_CHANNELS * SLOTS
_SURE_THERE, _SURE_KINDS = 1.0, (0.6, 0.7)  # logits of there being an object, chances of its shape and its color
_REACH, _AWAY = 2.2, 7.25  # half of the width that is seen of a square picture, m, with some room; how far away
_LOOK_AT_M, _LAMP_M = 1.25, 14.0  # how high
_TANGENT = math.tan(math.radians(15))  # of half the short side's field of view
_NEAR = 1.8  # sizes from an object's middle within which a ray is told where it passes


@dataclass(frozen=True, slots=True)
class Layout:
    """Layouts of B stills.

    Attributes:
        objects: [B, `SLOTS`, 15]: 1 where there is one, its `OBJECT` numbers, and 1 at its shape and at its color.
        view: [B, 5], `VIEW` numbers.
    """

    objects: Tensor
    view: Tensor

    def told(self) -> Tensor:
        """As a network is to say it, [B, `NUMBERS`]; for whether there is an object, and of which shape and
        color it is, it says logits.
        """
        there, numbers, kinds = self.objects.split([1, len(OBJECT), _KINDS], dim=-1)
        objects = torch.cat([there, (numbers - OBJECT[:, 0]) / OBJECT[:, 1], kinds], dim=-1)
        return torch.cat([objects.flatten(1), (self.view - VIEW[:, 0]) / VIEW[:, 1]], dim=1)

    @classmethod
    def heard(cls, said: Tensor) -> Layout:
        """The inverse of `told`."""
        objects, view = said.split([NUMBERS - len(VIEW), len(VIEW)], dim=1)
        there, numbers, *kinds = objects.unflatten(1, (SLOTS, -1)).split([1, len(OBJECT), *map(len, KINDS)], dim=-1)
        chosen = [F.one_hot(kind.argmax(-1), kind.shape[-1]) for kind in kinds]
        return cls(
            torch.cat([(there > 0).float(), numbers * OBJECT[:, 1] + OBJECT[:, 0], *chosen], dim=-1),
            view * VIEW[:, 1] + VIEW[:, 0],
        )


def is_sure(said: Tensor) -> Tensor:
    """Whether a network that says [B, `NUMBERS`] of layouts (`Layout.told`) is sure which objects there are, bool [B].

    One at least; two of one color are in no scene.
    """
    objects = said[:, : -len(VIEW)].unflatten(1, (SLOTS, -1))
    there, sure = objects[..., 0] > 0, objects[..., 0].abs() > _SURE_THERE
    _, *kinds = objects.split([1 + len(OBJECT), *map(len, KINDS)], dim=-1)
    for kind, least in zip(kinds, _SURE_KINDS, strict=True):
        sure &= ~there | (kind.softmax(-1).amax(-1) > least)
    colors = kinds[-1].argmax(-1)
    alike = there.all(1) & (colors[:, 0] == colors[:, 1])
    certain: Tensor = sure.all(1) & there.any(1) & ~alike
    return certain


def plan(layout: Layout, rows: int, columns: int) -> Tensor:
    """What is where in pictures of so many rows and columns, [B, `PLAN_CHANNELS`, rows, columns].

    How far down each ray looks, how near the floor is, where the light leans to; then for every object whether the ray
    passes near it, where (in the object's own directions and sizes), how it is turned, how far away it is, its
    shape and color; and where the light's ray to the floor passes it.
    """
    eye, rays = rays_of(layout.view, rows, columns)
    distance = (eye[..., 2] / (-rays[..., 2]).clamp(min=1e-3)).clamp(max=60)
    floor = (rays[..., 2] < -1e-3).float()
    points = eye + distance[..., None] * rays
    x, y = (part.view(-1, 1, 1) for part in layout.view[:, 3:].unbind(1))
    lamp = torch.stack([-_LAMP_M * x, -_LAMP_M * y, torch.full_like(x, _LAMP_M)], dim=-1)
    light = F.normalize(lamp - points, dim=-1)
    channels = [4 * rays[..., 2], floor / (1 + distance / 8), x / 0.3, y / 0.3]
    for thing in layout.objects.unbind(1):
        there, turn, middle = thing[:, 0].view(-1, 1, 1), thing[:, 5].view(-1, 1, 1), thing[:, None, None, 1:4]
        along, passed = _passing(eye, rays, middle, turn, thing[:, 4])
        near = there * (passed.norm(dim=-1) < _NEAR)
        kinds = [near * kind.view(-1, 1, 1) for kind in thing[:, 6:].unbind(1)]
        channels += [near, *(passed * near[..., None]).unbind(-1), near * turn, near * (along - 7) / 2, *kinds]
        _, passed = _passing(points, light, middle, turn, thing[:, 4])
        shade = there * floor * (passed.norm(dim=-1) < _NEAR)
        channels += [shade, *(passed * shade[..., None]).unbind(-1)]
    return torch.stack([channel.expand(len(layout.view), rows, columns) for channel in channels], dim=1)


def near(shown: Tensor, sizes: float = 0.6) -> Tensor:
    """Where a plan [B, `PLAN_CHANNELS`, h, w] has an object, within so many half sizes, bool [B, `SLOTS`, h, w]."""
    objects = shown[:, 4:].unflatten(1, (SLOTS, OBJECT_CHANNELS))
    inside: Tensor = (objects[:, :, 0] > 0) & (objects[:, :, 1:4].norm(dim=2) < sizes)
    return inside


def pixel_step(rows: int, columns: int) -> float:
    """By how much more the ray of the next pixel leans, in the middle of a picture of so many rows and columns."""
    return 2 * _TANGENT / min(rows, columns)


def in_sight(objects: Tensor, rows: int, columns: int) -> Tensor:
    """Which objects [..., 15] can be seen in pictures of such a form, roughly, bool [...]."""
    reach = _REACH * max(columns / rows, 1.0) * (1 + objects[..., 2] / _AWAY)
    return (objects[..., 0] > 0) & (objects[..., 1].abs() - objects[..., 4] < reach)


def rays_of(view: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Where the cameras are, [B, 1, 1, 3], and what each pixel looks along, [B, rows, columns, 3], of length 1."""
    azimuth, elevation, distance = view[:, 0].deg2rad(), view[:, 1].deg2rad(), view[:, 2]
    level = elevation.cos()
    ahead = torch.stack([level * azimuth.cos(), level * azimuth.sin(), elevation.sin()], dim=1)
    right = torch.stack([azimuth.sin(), -azimuth.cos(), torch.zeros_like(azimuth)], dim=1)
    up = torch.linalg.cross(right, ahead)
    eye = torch.tensor([0.0, 0.0, _LOOK_AT_M]) - distance[:, None] * ahead
    step = pixel_step(rows, columns)
    down, across = ((torch.arange(count) - (count - 1) / 2) * step for count in (rows, columns))
    ahead, right, up = (part[:, None, None] for part in (ahead, right, up))
    rays = ahead + across[:, None] * right - down[:, None, None] * up
    return eye[:, None, None], F.normalize(rays, dim=-1)


def _passing(start: Tensor, rays: Tensor, middle: Tensor, turn: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    """How far along a ray is nearest to an object's middle, and where that is, in its directions and half sizes."""
    along = ((middle - start) * rays).sum(-1)
    x, y, z = (start + along[..., None] * rays - middle).unbind(-1)
    turned = [turn.cos() * x + turn.sin() * y, turn.cos() * y - turn.sin() * x, z]
    return along, torch.stack(turned, dim=-1) / half.view(-1, 1, 1, 1)
