"""The layout of a still of objects: where they stand, how large they are, how they are turned; camera and light.

Lengths are metres, x to the right, y away from the camera, z up; the camera looks at the point 1.25 m above (0, 0, 0).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor
from torch.nn import functional as F

from cosmorama.text.language import COLORS, SHAPES, Color
from cosmorama.text.reader import NamedObject

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
_WAVES = 4  # what changes within a pixel is learned from what does (arXiv 2006.10739)
MEETING = 7 + len(SHAPES) + 6 * _WAVES
_SURE_THERE, _SURE_KINDS = 1.0, (0.6, 0.7)  # logits of there being an object, chances of its shape and its color
_HARDLY, _CERTAIN = 0.05, 50.0  # chance of what a prompt names, at least; a logit of what is decided
_REACH, _AWAY = 2.2, 7.25  # half of the width that is seen of a square picture, m, with some room; how far away
_LOOK_AT_M, _LAMP_M = 1.25, 14.0  # how high
_TANGENT = math.tan(math.radians(15))  # of half the short side's field of view
_NEAR = 1.8  # sizes from an object's middle within which a ray is told where it passes
_MEETS = 1.6  # within which it may meet it: a cube's corners are 1.53 away


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


def agreed(said: Tensor, wanted: Sequence[NamedObject]) -> Tensor:
    """What a network says of one layout, [1, `NUMBERS`], with the objects that a prompt names where it sees such ones.

    They are given to what is seen so that it is likeliest; of two where one is wanted, the likelier one stays. What is
    hardly likely even so is left as it was said.
    """
    objects, view = said.split([NUMBERS - len(VIEW), len(VIEW)], dim=1)
    seen = objects.unflatten(1, (SLOTS, -1))[0]
    _, *kinds = seen.split([1 + len(OBJECT), *map(len, KINDS)], dim=-1)
    shapes, colors = (kind.log_softmax(-1) for kind in kinds)
    slots = [slot for slot in range(SLOTS) if seen[slot, 0] > 0]
    if not 0 < len(wanted) <= len(slots):
        return said
    named = [
        (SHAPES.index(thing.shape), None if thing.color is None else COLORS.index(thing.color)) for thing in wanted
    ]

    def likely(order: tuple[int, ...]) -> tuple[float, float]:
        chances = [shapes[slot, shape] for slot, (shape, _) in zip(order, named, strict=True)]
        chances += [colors[slot, color] for slot, (_, color) in zip(order, named, strict=True) if color is not None]
        return float(sum(chances)), float(min(chances))

    order = max(permutations(slots, len(named)), key=likely)
    if likely(order)[1] < math.log(_HARDLY):
        return said
    decided = torch.zeros_like(seen)
    decided[:, 0] = -_CERTAIN
    for place, slot in enumerate(sorted(order)):
        shape, color = named[order.index(slot)]
        decided[place] = seen[slot]
        decided[place, 1 + len(OBJECT) + shape] += _CERTAIN
        if color is not None:
            decided[place, -len(COLORS) + color] += _CERTAIN
    return torch.cat([decided.flatten()[None], view], dim=1)


def names(layout: Layout, wanted: Sequence[NamedObject]) -> bool:
    """Whether a layout's objects are those that are wanted, of any color where none is said, and no others."""
    kinds = layout.objects[0, layout.objects[0, :, 0] > 0, 1 + len(OBJECT) :].split(list(map(len, KINDS)), dim=-1)
    shapes, colors = ([kind[index] for index in part.argmax(-1)] for kind, part in zip(KINDS, kinds, strict=True))
    seen = list(zip(shapes, colors, strict=True))
    return len(seen) == len(wanted) and any(
        all(one.shape == shape and one.color in (None, color) for one, (shape, color) in zip(order, seen, strict=True))
        for order in permutations(wanted)
    )


def recolored(layout: Layout, color: Color, other: Color) -> Layout:
    """A layout in which what has a color has another one."""
    objects = layout.objects.clone()
    colors = objects[..., -len(COLORS) :]
    colors[colors.argmax(-1) == COLORS.index(color)] = F.one_hot(torch.tensor(COLORS.index(other)), len(COLORS)).float()
    return Layout(objects, layout.view)


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
    light = F.normalize(_lamp(layout) - points, dim=-1)
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


def hidden(shown: Tensor, met: Tensor) -> Tensor:
    """A plan in which of two objects, the nearer first, only the one that is seen is told of where rays meet one.

    Args:
        shown: The plan.
        met: How much of each place meets each object, `[B, SLOTS, rows, columns]`.
    """
    near, far = met.split(1, dim=1)
    view, first, shade, second, its_shade = shown.split([4, *[OBJECT_CHANNELS - 4, 4] * SLOTS], dim=1)
    return torch.cat([view, first * (1 - far * (1 - near)), shade, second * (1 - near), its_shade], dim=1)


def nearest_first(layout: Layout) -> Layout:
    """The same layouts, their objects in the order of how far from the camera they are."""
    eye = rays_of(layout.view, 1, 1)[0][:, 0]
    away = (layout.objects[..., 1:4] - eye).norm(dim=-1) + 100 * (1 - layout.objects[..., 0])
    return Layout(layout.objects.gather(1, away.argsort(1)[..., None].expand_as(layout.objects)), layout.view)


def meetings(layout: Layout, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """How each pixel's ray, and the light's ray to where it meets the floor, pass each object.

    Returns:
        Whether they pass near it, bool [B, 2 * `SLOTS`, rows, columns]; and of those N that do where (in the object's
        own directions and half sizes, and as waves of that), along which direction, how many half sizes a pixel is
        wide there, and the shape, [N, `MEETING`].
    """
    eye, rays = rays_of(layout.view, rows, columns)
    distance = (eye[..., 2] / (-rays[..., 2]).clamp(min=1e-3)).clamp(max=60)
    floor = rays[..., 2] < -1e-3
    points = eye + distance[..., None] * rays
    light = F.normalize(_lamp(layout) - points, dim=-1)
    step, inside, met = pixel_step(rows, columns), [], []
    for thing in layout.objects.unbind(1):
        there, turn, middle = thing[:, 0].view(-1, 1, 1) > 0, thing[:, 5].view(-1, 1, 1), thing[:, None, None, 1:4]
        kinds = [shape.view(-1, 1, 1).expand(-1, rows, columns) for shape in thing[:, 6 : 6 + len(SHAPES)].unbind(1)]
        for start, ways, shown in ((eye, rays, there), (points, light, there & floor)):
            along, passed = _passing(start, ways, middle, turn, thing[:, 4])
            close = shown & (passed.square().sum(-1) < _MEETS**2)
            wide = step * (along if start is eye else distance) / thing[:, 4].view(-1, 1, 1)
            inside.append(close)
            met.append(torch.cat([passed, _turned(ways, turn), torch.stack([wide, *kinds], dim=-1)], dim=-1)[close])
    numbers = torch.cat(met)
    angles = (math.pi * 2 ** torch.arange(_WAVES) * numbers[:, :3, None]).flatten(1)
    return torch.stack(inside, dim=1), torch.cat([numbers, angles.sin(), angles.cos()], dim=1)


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
    return along, _turned(start + along[..., None] * rays - middle, turn) / half.view(-1, 1, 1, 1)


def _turned(ways: Tensor, turn: Tensor) -> Tensor:
    """Directions [B, h, w, 3] as those of an object that is turned."""
    x, y, z = ways.unbind(-1)
    return torch.stack([turn.cos() * x + turn.sin() * y, turn.cos() * y - turn.sin() * x, z], dim=-1)


def _lamp(layout: Layout) -> Tensor:
    """Where the lights are, [B, 1, 1, 3]."""
    x, y = (part.view(-1, 1, 1) for part in layout.view[:, 3:].unbind(1))
    return torch.stack([-_LAMP_M * x, -_LAMP_M * y, torch.full_like(x, _LAMP_M)], dim=-1)
