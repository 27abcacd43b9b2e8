"""The map of a corridor: how it looks from a view, and a view and a map that are read off a picture."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmorama.text.language import SceneObject
from cosmorama.world.microcosm.corridor_map import (
    KINDS,
    PLAN_CHANNELS,
    RANGES,
    REACH,
    CorridorMap,
    kind_of,
    plan,
    random_boxes,
)
from cosmorama.world.microcosm.finder import BAYS, found, heard, told
from cosmorama.world.microcosm.odometry import BAY_M, HALF_WIDTH_M, MOUNTED, on_picture
from tests.tiny import tiny_driver

LEFT, RIGHT, FLOOR, BOX, SHADE, THERE = 0, 1, 2, 10, 11, 18
AHEAD = (0.0, 0.0, 0.0, *MOUNTED)


def corridor(boxes: torch.Tensor | None = None, ahead: tuple[float, float, float] = (0, 0, 0)) -> CorridorMap:
    table = random_boxes(1)[None] if boxes is None else boxes
    kind = kind_of(SceneObject("cube", "red"))[None] * ahead[0]
    return CorridorMap(table, torch.tensor([REACH[0]]), torch.tensor([ahead]), kind)


def test_walls_are_on_both_sides_and_turn_with_the_camera() -> None:
    ahead, left = (plan(torch.tensor([[0.0, 0, yaw, *MOUNTED]]), corridor(), 44, 80)[0] for yaw in (0.0, math.pi / 2))
    assert ahead.shape == (PLAN_CHANNELS + 1 + KINDS, 44, 80)
    assert ahead[LEFT, :, :10].mean() > 0.7
    assert ahead[RIGHT, :, -10:].mean() > 0.7
    assert ahead[FLOOR, -1, 40] == 1
    assert torch.allclose(ahead[LEFT], ahead[RIGHT].flip(1))
    assert left[LEFT, 10:30].mean() > 0.9
    assert left[RIGHT].sum() == 0


def test_a_box_is_seen_where_it_stands() -> None:
    boxes = torch.zeros(1, len(REACH), 2, 2, 2, len(RANGES))
    low, high = RANGES.unbind(1)
    boxes[..., 1:] = ((low + high) / 2)[1:]
    boxes[0, 1 - REACH[0], 1, 0, 0, 0] = 1  # right, below, in the first half of the bay at 2.2 m
    seen = plan(torch.tensor([AHEAD]), corridor(boxes), 44, 80)[0]
    rows, columns = seen[BOX].nonzero().float().mean(0).tolist()
    middle = torch.tensor([[[HALF_WIDTH_M + 0.1, 1.28 * BAY_M, 0.13 + 0.43]]])
    (place,), ahead = (part[0] for part in on_picture(torch.tensor([AHEAD]), middle, 44, 80))
    assert ahead.item() == pytest.approx(1.28 * BAY_M, abs=0.1)
    assert columns == pytest.approx(40 * (1 + place[0].item()) - 0.5, abs=2)
    assert rows == pytest.approx(22 * (1 + place[1].item()) - 0.5, abs=2)
    assert seen[SHADE][seen[BOX] > 0].unique().tolist() == pytest.approx([0.86])
    assert plan(torch.tensor([AHEAD]), corridor(0 * boxes), 44, 80)[0, BOX].sum() == 0


def test_what_stands_in_the_way_is_seen_larger_when_near() -> None:
    far, near = (
        plan(torch.tensor([AHEAD]), corridor(ahead=(1, 0, y)), 44, 80)[0, THERE].sum().item() for y in (6.0, 3.0)
    )
    assert near > 3 * far > 0
    shown = plan(torch.tensor([AHEAD]), corridor(ahead=(1, 0, 4.0)), 44, 80)[0]
    inside = shown[THERE] > 0
    assert shown[THERE + 3][inside].mean().item() == pytest.approx(0.25, abs=0.01)
    assert [bool(kind[inside].all()) for kind in shown[PLAN_CHANNELS + 1 :]] == [False, True, False, True] + 5 * [False]
    assert not shown[PLAN_CHANNELS:, ~inside].any()
    assert plan(torch.tensor([AHEAD]), corridor(ahead=(1, 0, -3)), 44, 80)[0, THERE].sum() == 0


VIEWS = st.tuples(*(st.floats(*ends) for ends in ((-1.1, 1.1), (-1, 1), (-1.5, 1.5), (1.1, 1.4), (-0.12, -0.05))))


@settings(deadline=None, max_examples=50)
@given(VIEWS)
def test_what_is_to_be_said_of_a_view_tells_it(view: tuple[float, ...]) -> None:
    x, y, yaw = view[:3]
    ahead = torch.tensor([[1.0, x - 3 * math.sin(yaw), y + 3 * math.cos(yaw)]])
    said = told(torch.tensor([view]), ahead)
    again, there = heard(said)
    assert torch.allclose(again, torch.tensor([view]), atol=1e-4)
    assert torch.allclose(there, ahead, atol=1e-4)
    turned = torch.tensor([[-x, -y, yaw + math.pi, *view[3:]]])  # a corridor from its other end is a corridor again
    assert torch.allclose(told(turned, ahead * torch.tensor([1, -1, -1])), said, atol=1e-4)


def test_a_first_frame_decides_on_what_it_shows_and_the_seed_on_the_rest() -> None:
    (_, finder), frame = tiny_driver(), torch.rand(1, 3, 88, 160, generator=torch.Generator().manual_seed(0)) * 2 - 1
    (view, one), (same, other) = (found(finder, frame, kind_of(None), seed) for seed in (1, 2))
    assert torch.equal(view, same)
    alike = (one.boxes == other.boxes).flatten(2).all(2)[0]
    here = math.floor(view[1].item() / BAY_M) - REACH[0]
    assert alike.sum() < len(BAYS)
    assert not alike[here + BAYS[-1] + 1 :].any()
    low, high = RANGES.unbind(1)
    assert ((one.boxes >= low - 1e-6) & (one.boxes <= high + 1e-6)).all()
    assert torch.equal(found(finder, frame, kind_of(None), 1)[1].boxes, one.boxes)
