"""Objects that are followed: places on the picture are places in the world, and what is said moves the layout."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cosmorama.world.microcosm.layout import Layout
from cosmorama.world.microcosm.tracker import Tracker, moved
from microcosm.scenes.simulate import SIZES, draw_shot
from microcosm.training.stills import layout_of
from tests.tiny import tiny_tracker


def layout(seed: int) -> Layout:
    return Layout(*(torch.from_numpy(part[None]) for part in layout_of(draw_shot(seed), 0.0, mirrored=False)))


@pytest.mark.parametrize("size", SIZES)
def test_objects_that_stand_still_are_where_they_were_and_those_that_move_go_as_far_as_is_seen(
    size: tuple[int, int],
) -> None:
    """With maps of the likeness of colors, and nothing added: a picture that is shifted is a world that has moved."""
    width, height = size
    net = tiny_tracker()
    torch.nn.init.zeros_(net.say[-1].weight)  # type: ignore[arg-type]
    pictures = 2 * 3 * 16  # channels before those of the likeness
    for block in net.blocks:
        torch.nn.init.zeros_(block.second.weight)  # type: ignore[arg-type]
    for part in (net.first, net.grow, net.where):
        for weight in part.parameters():
            torch.nn.init.zeros_(weight)
    for index in range(4):  # the likeness of two looks to two objects goes through
        net.first.weight.data[index, pictures + index, 1, 1] = 1
        net.where.weight.data[index, index, 1, 1] = 30
    one = layout(3)
    one.objects[0, 0] = torch.tensor([1, 0.1, 0.0, 0.7, 0.5, 0.0, 1, 0, 0, 1, 0, 0, 0, 0, 0])
    one.objects[0, 1] = torch.tensor([0.0] * 4 + [1.0] + [0.0] * 10)
    one.view[0] = torch.tensor([90.0, -11.0, 7.25, 0.0, 0.1])
    step = 2 * np.tan(np.radians(15)) / min(size)  # of a pixel, a metre before the camera
    row, column = 4 * round((0.1 / step + height / 2) / 4), 4 * round(width / 8)  # whole cells
    still = torch.full((1, 3, height, width), -0.6)
    reach = 4 * round(0.35 / (4 * 7.25 * step))
    still[:, :, row - reach : row + reach, column - reach : column + reach] = torch.tensor([0.9, -0.9, -0.9]).view(
        3, 1, 1
    )
    shift = 24  # as wide as it is at most, so that the maps do not overlap
    looks = torch.stack([still, still.roll(shift, 3)], dim=1)[:, None]  # seen at the fourth and at the eighth frame
    gone, _ = net(still, looks, one, torch.tensor([1 / 3]), torch.zeros(1, 1, dtype=torch.bool))
    assert gone.shape == (1, 8, 2, 5)
    after = moved(one, gone[0]).objects
    far = shift * step * 7.25
    assert float(after[3, 0, 1]) == pytest.approx((column - width / 2) * step * 7.25, abs=0.06)
    assert float(after[7, 0, 1] - after[3, 0, 1]) == pytest.approx(far, rel=0.15)
    assert float(after[5, 0, 1] - after[3, 0, 1]) == pytest.approx(far / 2, rel=0.15)  # evenly in between
    assert float(after[7, 0, 3] - after[3, 0, 3]) == pytest.approx(0, abs=0.03)
    assert torch.equal(after[:, 0, 4], one.objects[:, 0, 4].expand(8))
    assert torch.allclose(after[:, 0, 5], one.objects[:, 0, 5].expand(8))


def test_a_turn_is_a_quarter_of_the_angle_that_is_said() -> None:
    one, gone = layout(5), torch.zeros(1, 2, 5)
    gone[..., 3], gone[..., 4] = np.sin(4 * 0.3), np.cos(4 * 0.3)
    assert torch.allclose(moved(one, gone).objects[..., 5] - one.objects[..., 5], torch.tensor(0.3), atol=1e-5)


@pytest.mark.parametrize("count", [1, 4, 15])
def test_clips_of_any_length_are_followed_and_batches_say_what_single_ones_do(count: int) -> None:
    net: Tracker = tiny_tracker()
    both = [layout(1), layout(2)]
    joined = Layout(*(torch.cat(part) for part in zip(*((one.objects, one.view) for one in both), strict=True)))
    still, looks = torch.rand(2, 3, 33, 47) * 2 - 1, torch.rand(2, count, 2, 3, 33, 47) * 2 - 1
    given = torch.zeros(2, count, dtype=torch.bool)
    gone, spread = net(still, looks, joined, torch.tensor([0.3, 0.5]), given)
    assert gone.shape == (2, 8 * count, 2, 5)
    assert spread.shape == (2, count, 2)
    alone, _ = net(still[1:], looks[1:], both[1], torch.tensor([0.5]), given[1:])
    torch.testing.assert_close(gone[1:], alone, rtol=1e-3, atol=1e-4)
