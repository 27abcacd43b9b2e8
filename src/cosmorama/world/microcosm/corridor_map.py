"""The map of a corridor that is driven through: which boxes are on its shelves, and what stands in the way.

As a street map in models that drive on roads, it says what is where, and not how that looks: the network draws. What
the first frame shows is read off it (see `finder`); what lies beyond follows from the seed. Lengths are metres.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cosmorama.text.language import COLORS, SHAPES, SceneObject
from cosmorama.text.reader import NamedObject
from cosmorama.world.microcosm.odometry import BAY_M, HALF_WIDTH_M, HAZE_M, TOP_M, Rays

LEVELS_M, SLOTS = (0.13, 1.38), (0.28, 0.72)
"""Where boxes stand: how high, and in which part of a bay their middles are."""
RANGES = torch.tensor([(0.0, 1.0), (-0.05, 0.05), (0.34, 0.44), (0.68, 1.04), (0.72, 1.0)])
"""Of a box: whether it is there, its middle's way from the slot's, half its length, its height, its shade."""
NUMBERS = len(RANGES)
REACH = range(-172, 172)  # bays that the longest drive may come to see
PLAN_CHANNELS = 21
KINDS = len(SHAPES) + len(COLORS)
_BOX_SHARE = 0.8  # of the places
_DEPTHS_M = (0.1, 0.5)  # of the boxes' fronts, and of about their middles
_OBJECT_M = 0.45  # half of what stands in the way


@dataclass(frozen=True, slots=True)
class CorridorMap:
    """Maps of B corridors.

    Attributes:
        boxes: [B, bays, left or right, levels, slots, `NUMBERS`]; see `RANGES`.
        first: The first bay, [B].
        ahead: What stands in the way: 1 if something does, and its x and y, [B, 3].
        kind: 1 at its shape and at its color, [B, `KINDS`]; 0 if that is not known.
    """

    boxes: Tensor
    first: Tensor
    ahead: Tensor
    kind: Tensor


def kind_of(thing: NamedObject | SceneObject | None) -> Tensor:
    """For `CorridorMap.kind`, of one map: [`KINDS`]."""
    wanted = () if thing is None or thing.color is None else (thing.shape, thing.color)
    return torch.tensor([float(name in wanted) for name in (*SHAPES, *COLORS)])


def of_parts(parts: Tensor) -> Tensor:
    """Boxes [..., `NUMBERS`] of numbers from 0 to 1, which say where in its range each number is."""
    low, high = RANGES.unbind(1)
    return low + parts * (high - low)


def in_parts(boxes: Tensor) -> Tensor:
    """The inverse of `of_parts`."""
    low, high = RANGES.unbind(1)
    return (boxes - low) / (high - low)


def random_boxes(seed: int) -> Tensor:
    """The boxes that a seed puts into bays `REACH`: [bays, left or right, levels, slots, `NUMBERS`]."""
    generator = torch.Generator().manual_seed(seed)
    boxes = of_parts(torch.rand(len(REACH), 2, 2, 2, NUMBERS, generator=generator))
    boxes[..., 0] = (boxes[..., 0] < _BOX_SHARE).float()
    return boxes


def plan(views: Tensor, corridor: CorridorMap, rows: int, columns: int) -> Tensor:
    """What is where in the picture, from views [B, 5]: [B, `PLAN_CHANNELS` + 1 + `KINDS`, rows, columns].

    Left wall, right wall, floor, and haze, each 0 to 1; height on the wall, place across the floor; where along the
    corridor, as sines and cosines of once and twice the way from post to post. Then, at the fronts of the boxes and
    farther in: whether there is a box, how light it is, and where along and up it; and the same of what is in the way;
    how near that is, and its kind.
    """
    rays = Rays(views, rows, columns)
    to_wall, to_floor = rays.to_wall(), rays.to_floor()
    distance = torch.minimum(to_wall, to_floor).clamp(0, 50)
    height, along = rays.eye + distance * rays.rise, rays.y + distance * rays.north
    wall = ((to_wall < to_floor) & (height < TOP_M)).float()
    floor = (to_floor <= to_wall).float()
    seen = ((HAZE_M[1] - distance) / (HAZE_M[1] - HAZE_M[0])).clamp(0, 1)
    turns = [2 * math.pi * times * along / BAY_M for times in (1, 2)]
    waves = [part * seen for turn in turns for part in (turn.sin(), turn.cos())]
    across = floor * (rays.x + distance * rays.east) / HALF_WIDTH_M
    channels = [wall * (rays.east < 0), wall * (rays.east > 0), floor, seen, wall * height / TOP_M, across, *waves]
    for depth in _DEPTHS_M:
        channels += _boxes_at(rays, corridor, rays.to_wall(depth).clamp(0, 50), seen)
    inside, beside, up, near = _ahead(rays, corridor.ahead, distance)
    channels += [inside, beside, up, near, *(inside * kind.view(-1, 1, 1) for kind in corridor.kind.unbind(1))]
    return torch.stack([channel.expand(len(views), rows, columns) for channel in channels], dim=1)


def _boxes_at(rays: Rays, corridor: CorridorMap, distance: Tensor, seen: Tensor) -> list[Tensor]:
    """Which box a ray meets in a plane along the shelves."""
    height, along = rays.eye + distance * rays.rise, rays.y + distance * rays.north
    bay = (along / BAY_M).floor()
    level, slot = (height >= LEVELS_M[1] - 0.1).long(), ((along / BAY_M - bay) >= 0.5).long()
    row = bay.long() - corridor.first.view(-1, 1, 1)
    bays = corridor.boxes.shape[1]
    index = ((row.clamp(0, bays - 1) * 2 + (rays.east > 0).long()) * 2 + level) * 2 + slot
    found = corridor.boxes.flatten(1, 4).gather(1, index.flatten(1)[..., None].expand(-1, -1, NUMBERS))
    there, off, half, tall, shade = found.unflatten(1, index.shape[1:]).unbind(-1)
    known = (row >= 0) & (row < bays) & (height > 0) & (height < TOP_M)
    there = there * known * (seen > 0)
    middle = (bay + torch.tensor(SLOTS)[slot]) * BAY_M + off
    u, v = (along - middle) / half, (height - torch.tensor(LEVELS_M)[level]) / tall
    inside = there * (u.abs() <= 1) * (v >= 0) * (v <= 1)
    return [inside, inside * shade, there * u.clamp(-2, 2), there * v.clamp(-1, 2)]


def _ahead(rays: Rays, ahead: Tensor, distance: Tensor) -> list[Tensor]:
    """Where a ray passes what stands in the way, and how near that is."""
    there, x, y = (part.view(-1, 1, 1) for part in ahead.unbind(1))
    east, north = x - rays.x, y - rays.y
    level = rays.east.square() + rays.north.square()
    nearest = (east * rays.east + north * rays.north) / level
    beside = (east * rays.north - north * rays.east) / level.sqrt() / _OBJECT_M
    up = (rays.eye + nearest * rays.rise) / (2 * _OBJECT_M)
    before = there * (nearest > 0.2) * (nearest < distance + 1) * (nearest < HAZE_M[1])
    inside = before * (beside.abs() < 1.4) * (up > -0.3) * (up < 1.2)
    return [inside, inside * beside.clamp(-2, 2), inside * up.clamp(-1, 2), inside / nearest.clamp(min=0.2)]
