"""Says where the objects of a still go: how fast they are from what is seen and said, and then step by step.

How fast an object goes is read off earlier frames where there are any, and else off the prompt. What that leaves open
is drawn by chance: the network says a velocity for each share of those that are lower (implicit quantiles, arXiv
1806.06923). From there two more networks move the objects, each by its own state and by how it meets the other one (an
interaction network, arXiv 1612.00222), 48 times a second. They have learned that from the simulator.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from cosmorama.text.language import COLORS, MOTION_WORDS, SHAPES
from cosmorama.text.reader import PromptScene
from cosmorama.world.microcosm.layout import KINDS, OBJECT, Layout
from cosmorama.world.microcosm.stored import Stored

STEPS_S = 48
"""Steps a second."""
LOOKS = 3
"""Moments that are looked at: now, and before."""
MOTIONS = tuple(MOTION_WORDS)
WORDS = len(MOTIONS) + 1 + 2 + 2
"""Numbers of what is understood of a prompt for an object: each motion, or none; whether it goes to the right or the
left (1, -1), and whether that is said; whether it is the one that acts first, or the other one is."""
_SOLID = 1 + len(SHAPES)  # numbers of a thing that matter to the others: half its size, its shape
_HEARD = 48  # features of the prompt
_MEMORY, _MESSAGE = 8, 24  # numbers that an object keeps, and that it is told of the other one
_AT = 1 + len(OBJECT), 1 + len(OBJECT) + len(SHAPES)  # where its shape and its color stand in a layout
_CUBE = SHAPES.index("cube")
_CUBE_HALF = 0.88  # of its half size, a cube's height; see the simulator
_APART_M = 3.0  # farther away nothing is felt
_PUSH, _SHIFT_M = 0.3, 0.01  # how much velocities and places change by, about


class Mover(Stored):
    """Moves objects.

    Places are [B, `SLOTS`, 4]: x, y, z in m (see `layout`) and the turn, rad. Things are [B, `SLOTS`, 11]: whether
    there is one, half its size in m, and 1 at its shape and at its color.

    Args:
        width: Of the networks.
        text_width: Width D of the text states.
    """

    def __init__(self, width: int = 64, text_width: int = 192) -> None:
        super().__init__()
        thing, history = _SOLID + len(COLORS), (LOOKS - 1) * 5 + 4
        self.hear = nn.Sequential(nn.Linear(text_width, _HEARD), nn.SiLU())
        told = 2 + 1 + 2 + thing + history + WORDS + _HEARD + 4
        self.guess = _mlp(told + 3 + thing + 1 + history, 2 * width, width, 4)
        self.meet = _mlp(7 + 2 * (_SOLID + 2) + 1, width, _MESSAGE)
        self.push = _mlp(3 + 4 + _SOLID + 2 + _MEMORY + _MESSAGE, width, width, 7 + _MEMORY)
        for net in (self.guess, self.push):
            nn.init.zeros_(cast(nn.Linear, net[-1]).weight)
            nn.init.zeros_(cast(Tensor, cast(nn.Linear, net[-1]).bias))

    def velocities(
        self, seen: Tensor, ages: Tensor, things: Tensor, said: Tensor, text: Tensor, chance: Tensor
    ) -> Tensor:
        """How fast objects go now, in m and rad a second, [B, `SLOTS`, 4].

        Args:
            seen: Places at the moments that are looked at, now first, [B, `LOOKS`, `SLOTS`, 4].
            ages: How long ago those were, s, [B, `LOOKS`]; negative: that is not known.
            things: The objects.
            said: What is understood of the prompt for each, [B, `SLOTS`, `WORDS`].
            text: The prompts' first states, [B, D]; most words that are not understood are in there.
            chance: [B, `SLOTS`, 4] in 0 to 1: which share of the velocities that may be is lower; 0.5: what most likely
                is.
        """
        now, known = seen[:, 0], (ages[:, 1:] > 0).float()
        ago = ages[:, 1:].clamp(min=1e-3)
        means = (now[:, None] - seen[:, 1:]) / ago[..., None, None] * known[..., None, None]
        late, early = means.unbind(1)
        # Of what falls evenly faster: how fast it is at the end.
        newest = (
            late
            + (late - early)
            * (ago[:, :1] / (ago[:, 1:] - ago[:, :1]).clamp(min=1e-3))[..., None]
            * (known[:, 1:, None])
        )
        flags = torch.stack([known, ago * known], dim=-1).flatten(1)[:, None].expand(-1, now.shape[1], -1)
        history = torch.cat([late, early, newest, flags[..., :2]], dim=-1)
        state = torch.cat([now[..., :2] / 2, *_state(now, things), things[..., 1:]], dim=-1)
        others = things.flip(1)
        other = (
            torch.cat([(now.flip(1) - now)[..., :3] / 2, others[..., 1:], others[..., :1]], dim=-1) * others[..., :1]
        )
        heard = self.hear(text)[:, None].expand(-1, now.shape[1], -1)
        features = torch.cat([state, history, said, heard, chance, other, history.flip(1)], dim=-1)
        velocity: Tensor = (newest + self.guess(features)) * things[..., :1]
        return velocity

    def forward(self, places: Tensor, velocities: Tensor, things: Tensor, steps: int) -> Tensor:
        """Where objects are after each of so many steps, [B, steps, `SLOTS`, 4]."""
        memory, found = places.new_zeros(*places.shape[:2], _MEMORY), []
        for _ in range(steps):
            places, velocities, memory = self._step(places, velocities, memory, things)
            found.append(places)
        return torch.stack(found, dim=1)

    def _step(self, places: Tensor, velocities: Tensor, memory: Tensor, things: Tensor) -> tuple[Tensor, ...]:
        things = things[..., : 1 + _SOLID]
        there, others = things[..., :1], things.flip(1)
        foot, turn = _state(places, things)
        away = places.flip(1)[..., :3] - places[..., :3]
        faster = velocities.flip(1)[..., :3] - velocities[..., :3]
        far = away[..., :2].norm(dim=-1, keepdim=True)
        kinds = [things[..., 1:], turn, others[..., 1:], turn.flip(1)]
        gap = far - things[..., 1:2] - others[..., 1:2]
        met = self.meet(torch.cat([away, faster, gap, *kinds, velocities[..., 3:]], dim=-1))
        met = met * there * others[..., :1] * (far < _APART_M)
        ground = [foot, *((-foot / reach).clamp(max=1).exp() for reach in (0.05, 0.01))]
        state = torch.cat([*ground, velocities, things[..., 1:], turn, memory, met], dim=-1)
        pushed, shifted, kept = (self.push(state) * there).split([4, 3, _MEMORY], dim=-1)
        velocities = velocities + _PUSH * pushed
        shifted = nn.functional.pad(_SHIFT_M * shifted, (0, 1))
        return places + velocities / STEPS_S + shifted, velocities, memory + kept


def _mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def _state(places: Tensor, things: Tensor) -> tuple[Tensor, Tensor]:
    """How high above the floor objects are, m, and of cubes how they are turned, which is all that matters of it."""
    cube = things[..., 2 + _CUBE, None]
    foot = places[..., 2:3] - things[..., 1:2] * torch.where(cube > 0, _CUBE_HALF, 1.0)
    return foot, torch.stack([(4 * places[..., 3]).sin(), (4 * places[..., 3]).cos()], dim=-1) * cube


def things_of(layout: Layout) -> Tensor:
    """The objects of layouts as a mover is told of them, [B, `SLOTS`, 11]."""
    return layout.objects[..., [0, 4, *range(1 + len(OBJECT), layout.objects.shape[-1])]]


def places_of(layout: Layout) -> Tensor:
    """And where they are, [B, `SLOTS`, 4]."""
    return layout.objects[..., [1, 2, 3, 5]]


def said_of(scene: PromptScene | None, layout: Layout) -> Tensor:
    """What is understood of a prompt for each object of one layout, [1, `SLOTS`, `WORDS`]."""
    said = torch.zeros(1, layout.objects.shape[1], WORDS)
    motion = None if scene is None else scene.motion
    said[..., len(MOTIONS) if motion is None else MOTIONS.index(motion)] = 1
    if scene is None:
        return said
    if scene.direction is not None:
        said[..., -4], said[..., -3] = (1.0 if scene.direction == "right" else -1.0), 1
    first = scene.objects[0]
    wanted = (first.shape, KINDS[0]), (first.color, KINDS[1])
    alike = [
        bool(thing[0])
        and all(
            kind is None or bool(thing[at + names.index(kind)]) for at, (kind, names) in zip(_AT, wanted, strict=True)
        )
        for thing in layout.objects[0]
    ]
    if sum(alike) == 1:
        said[0, :, -2] = torch.tensor(alike, dtype=torch.float32)
        said[0, :, -1] = 1 - said[0, :, -2]
    return said


def moved(layout: Layout, places: Tensor) -> Layout:
    """The layout of one still with its objects elsewhere, [N, `SLOTS`, 4]: N layouts."""
    objects = layout.objects.expand(len(places), -1, -1).clone()
    objects[..., [1, 2, 3, 5]] = places
    return Layout(objects, layout.view.expand(len(places), -1))
