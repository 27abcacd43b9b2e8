"""Objects that are moved: what is told of them and of the prompt, what is seen of their way, and each by itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cosmorama.text.reader import parse_scene
from cosmorama.world.microcosm.layout import SLOTS, Layout
from cosmorama.world.microcosm.mover import MOTIONS, STEPS_S, WORDS, Mover, moved, places_of, said_of, things_of
from microcosm.scenes.simulate import draw_shot
from microcosm.training.stills import layouts_of
from tests.tiny import tiny_mover


def layout(seed: int, *, mirrored: bool = False) -> Layout:
    return Layout(*(torch.from_numpy(part[None]) for part in layouts_of(draw_shot(seed), [0.0], mirrored=mirrored)[0]))


def two() -> Layout:
    """A shot of two objects, from the left."""
    return next(one for one in map(layout, range(100)) if (one.objects[0, :, 0] == 1).all())


def likely(seen: Tensor, ages: Tensor, net: Mover, one: Layout) -> Tensor:
    count = len(seen)
    things = things_of(one).expand(count, -1, -1)
    said = said_of(None, one).expand(count, -1, -1)
    return net.velocities(seen, ages, things, said, torch.zeros(count, 16), torch.full((count, SLOTS, 4), 0.5))


def test_a_new_network_goes_on_as_fast_as_was_seen_even_where_that_changes_evenly() -> None:
    net, one = Mover(8, 16), two()
    now, rate, change = places_of(one), torch.tensor([0.8, 0.0, 1.2, 0.1]), torch.tensor([0.4, 0.0, -9.8, 0.0])
    ages = torch.tensor([0.0, 1 / 6, 1 / 3])
    seen = now[:, None] - rate * ages.view(-1, 1, 1) + change * ages.view(-1, 1, 1) ** 2 / 2
    torch.testing.assert_close(likely(seen, ages[None], net, one), rate.expand(1, SLOTS, -1), rtol=1e-3, atol=1e-3)
    unknown = torch.tensor([[0.0, -1.0, -1.0]])
    assert not likely(seen, unknown, net, one).any()  # of one moment nothing is seen


def test_a_new_network_moves_objects_evenly_and_what_is_not_there_not_at_all() -> None:
    one, velocity = layout(3), torch.tensor([0.9, 0.1, 0.0, 0.4])
    one.objects[:, 1] = 0
    places = Mover()(places_of(one), velocity * things_of(one)[..., :1], things_of(one), STEPS_S)
    assert places.shape == (1, STEPS_S, SLOTS, 4)
    torch.testing.assert_close(places[0, -1] - places_of(one)[0], velocity * things_of(one)[0, :, :1])
    after = moved(one, places[0])
    assert torch.equal(places_of(after), places[0])
    assert torch.equal(things_of(after), things_of(one).expand(STEPS_S, -1, -1))
    assert torch.equal(after.view, one.view.expand(STEPS_S, -1))


def test_only_objects_that_come_near_feel_each_other() -> None:
    net, one, things = tiny_mover(), two(), things_of(two())
    places, velocity = places_of(one), torch.zeros(1, SLOTS, 4)
    places[0, 0, :2], places[0, 1, :2] = torch.tensor([-2.5, 0.0]), torch.tensor([2.5, 0.0])
    alone = things.clone()
    alone[:, 1, 0] = 0
    far = net(places, velocity, things, 8)
    assert torch.equal(far[:, :, 0], net(places, velocity, alone, 8)[:, :, 0])
    places[0, 1, 0] = -1.0
    assert not torch.allclose(net(places, velocity, things, 8)[:, :, 0], far[:, :, 0])


def test_batches_say_what_single_ones_do() -> None:
    net, both = tiny_mover(), [two(), layout(7)]
    places, things = torch.cat([*map(places_of, both)]), torch.cat([*map(things_of, both)])
    velocity = torch.randn(2, SLOTS, 4, generator=torch.Generator().manual_seed(1)) * things[..., :1]
    together = net(places, velocity, things, 20)
    torch.testing.assert_close(together[1:], net(places[1:], velocity[1:], things[1:], 20), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("prompt", "motion", "direction", "first"),
    [
        ("a {0} rolls to the right and hits a {1}", "collide", (1, 1), 0),
        ("a {1} slides to the left, near a {0}", "roll", (-1, 1), 1),
        ("a {0} falls", "fall", (0, 0), 0),
        ("a {0} and a {1}", None, (0, 0), 0),
    ],
)
def test_what_a_prompt_says_of_each_object(
    prompt: str, motion: str | None, direction: tuple[int, int], first: int
) -> None:
    one = two()
    one.objects[0, :, 6:] = 0
    one.objects[0, 0, [6, 9]] = one.objects[0, 1, [7, 11]] = 1  # a red ball, and a blue cube at the right of it
    said = said_of(parse_scene(prompt.format("red ball", "blue cube")), one)
    assert said.shape == (1, SLOTS, WORDS)
    index = len(MOTIONS) if motion is None else MOTIONS.index(motion)  # type: ignore[arg-type]
    assert said[0, :, : len(MOTIONS) + 1].argmax(1).tolist() == [index] * 2
    assert said[0, :, -4:-2].tolist() == [list(map(float, direction))] * 2
    assert said[0, :, -2].tolist() == [float(slot == first) for slot in range(SLOTS)]
    assert said[0, :, -1].tolist() == [float(slot != first) for slot in range(SLOTS)]


def test_of_a_prompt_that_is_not_understood_nothing_is_said_and_of_strangers_none_acts() -> None:
    one = two()
    for prompt in ("a dragon", "", "a green cylinder stands still"):
        one.objects[0, :, 6:] = 0
        one.objects[0, :, [6, 9]] = 1  # two red balls
        assert not said_of(parse_scene(prompt), one)[0, :, -2:].any()
