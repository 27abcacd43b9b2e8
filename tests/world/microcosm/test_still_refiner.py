"""Stills drawn again: layouts as networks say them, and where the camera sees what is in them."""

from __future__ import annotations

import numpy as np
import torch

from cosmorama.text.language import COLORS, SHAPES
from cosmorama.text.reader import NamedObject
from cosmorama.world.microcosm.layout import (
    MEETING,
    NUMBERS,
    OBJECT_CHANNELS,
    PLAN_CHANNELS,
    SLOTS,
    Layout,
    agreed,
    is_sure,
    meetings,
    names,
    nearest_first,
    plan,
    rays_of,
)
from cosmorama.world.microcosm.loader import load_component
from cosmorama.world.microcosm.still_refiner import StillRefiner
from cosmorama.world.microcosm.text_encoder import TextEncoder
from microcosm.evaluation.crispness import outline_energy
from microcosm.evaluation.probe import color_classes, to_input
from microcosm.scenes.shots import caption_of
from microcosm.scenes.simulate import OBJECT_RGB, SIZES, draw_shot, render
from microcosm.training.loop import WEIGHTS
from microcosm.training.stills import layouts_of
from tests import needs
from tests.tiny import tiny_still_refiner


def layouts(*seeds: int, mirrored: bool = False) -> Layout:
    found = [layouts_of(draw_shot(seed), [0.0], mirrored=mirrored)[0] for seed in seeds]
    return Layout(*(torch.from_numpy(np.stack(part)) for part in zip(*found, strict=True)))


def test_a_layout_is_heard_as_it_is_told() -> None:
    one = layouts(1, 2, 3, 4)
    said = one.told()
    assert said.shape == (4, NUMBERS)
    heard = Layout.heard(said)
    assert torch.allclose(heard.objects[..., :6], one.objects[..., :6], atol=1e-5)
    there = one.objects[..., 0] > 0
    assert torch.equal(heard.objects[there][:, 6:], one.objects[there][:, 6:])
    assert torch.allclose(heard.view, one.view, atol=1e-4)


def said_of(there: tuple[float, float], shapes: list[list[float]], colors: dict[str, list[float]]) -> torch.Tensor:
    """What a network may say of one still: whether there are two objects, and the chances of what they are."""
    said = torch.zeros(1, NUMBERS)
    objects = said[:, :-5].unflatten(1, (SLOTS, -1))[0]
    for slot in range(SLOTS):
        objects[slot, 0], objects[slot, 1] = there[slot], slot
        objects[slot, 6:9] = torch.tensor(shapes[slot]).log()
        objects[slot, 9:] = -9
        for color, chances in colors.items():
            objects[slot, 9 + COLORS.index(color)] = np.log(chances[slot])
    return said


BALL, CUBE = [0.9, 0.06, 0.04], [0.06, 0.9, 0.04]


def test_which_objects_there_are_a_prompt_decides_where_such_ones_are_seen() -> None:
    red, blue = NamedObject("ball", "red"), NamedObject("cube", "blue")
    two = said_of((9, 9), [CUBE, BALL], {"red": [0.4, 0.6], "blue": [0.6, 0.4]})
    assert not is_sure(two).all()
    for wanted in ([red, blue], [blue, red]):
        assert is_sure(agreed(two, wanted)).all()
        heard = Layout.heard(agreed(two, wanted)).objects[0]
        kinds = [(SHAPES[int(one[6:9].argmax())], COLORS[int(one[9:].argmax())]) for one in heard]
        assert kinds == [("cube", "blue"), ("ball", "red")]
    twice = said_of((3, 9), [BALL, BALL], {"red": [0.9, 0.95]})
    assert not is_sure(twice).all()
    heard = Layout.heard(agreed(twice, [red])).objects[0]
    assert heard[:, 0].tolist() == [1, 0]
    assert heard[0, 1] == Layout.heard(twice).objects[0, 1, 1]  # the surer one stays
    assert torch.equal(agreed(twice, [red, blue]), twice)  # nothing blue is seen
    assert torch.equal(agreed(two, ()), two)
    one = said_of((9, -9), [BALL, BALL], {"red": [0.9, 0.9]})
    assert torch.equal(agreed(one, [red, blue]), one)
    assert is_sure(agreed(one, [NamedObject("ball")])).all()


def test_whether_a_layout_is_of_what_a_prompt_names() -> None:
    seen = Layout.heard(said_of((9, 9), [CUBE, BALL], {"red": [0.9, 0.1], "blue": [0.1, 0.9]}))
    red, blue = NamedObject("cube", "red"), NamedObject("ball", "blue")
    assert names(seen, [red, blue])
    assert names(seen, [blue, NamedObject("cube")])
    for wanted in ([red], [red, red], [red, NamedObject("ball", "red")], [NamedObject("ball", "red"), blue], []):
        assert not names(seen, wanted)
    alone = Layout.heard(said_of((-9, 9), [CUBE, BALL], {"blue": [0.1, 0.9]}))
    assert names(alone, [blue])
    assert not names(alone, [red, blue])


def test_the_mirror_image_of_a_layout_is_seen_mirrored() -> None:
    for seed in range(1, 12):
        shown, mirrored = (plan(layouts(seed, mirrored=way), 44, 80)[0] for way in (False, True))
        assert shown.shape == (PLAN_CHANNELS, 44, 80)
        for channel in (0, 1):
            assert torch.allclose(shown[channel], mirrored[channel].flip(1), atol=1e-4)
        near, back = shown[4] + shown[23], (mirrored[4] + mirrored[23]).flip(1)
        assert near.any()
        assert (near - back).abs().mean() < 1e-3
        shade, back = shown[19] + shown[38], (mirrored[19] + mirrored[38]).flip(1)
        assert (shade - back).abs().mean() < 1e-3


def test_what_a_ray_passes_is_what_is_rendered_there() -> None:
    """A ball's pixels are those whose rays pass within its radius."""
    needs.osmesa()
    tried = 0
    for seed in range(1, 60):
        shot = draw_shot(seed)
        if shot.scene.objects[0].shape != "ball" or len(shot.bodies) > 1 or shot.size_px != SIZES[0]:
            continue
        tried += 1
        (frame,) = render(shot, [0.0])
        width, height = shot.size_px
        shown = plan(layouts(seed), height, width)[0]
        inside = ((shown[4] > 0) & (shown[5:8].norm(dim=0) < 1)).numpy()
        color = np.array(OBJECT_RGB[shot.scene.objects[0].color])
        hue = frame / np.maximum(np.linalg.norm(frame.astype(float), axis=-1, keepdims=True), 1)
        alike = (hue @ color) / np.linalg.norm(color) > 0.97
        assert (alike & inside).sum() > 0.8 * inside.sum()
        if tried == 4:
            break
    assert tried == 4


def test_rays_meet_the_nearer_object_first_and_are_told_where() -> None:
    some = [seed for seed in range(1, 60) if len(draw_shot(seed).bodies) == 2][:8]
    ordered = nearest_first(layouts(*some))
    eye = rays_of(ordered.view, 1, 1)[0][:, 0]
    near, far = (ordered.objects[..., 1:4] - eye).norm(dim=-1).unbind(1)
    assert (near <= far).all()
    assert (ordered.objects[..., 0] == 1).all()
    inside, met = meetings(ordered, 44, 80)
    assert inside.shape == (len(some), 2 * SLOTS, 44, 80)
    assert met.shape == (int(inside.sum()), MEETING)
    seen = plan(ordered, 44, 80)[:, 4:].unflatten(1, (SLOTS, OBJECT_CHANNELS))
    close = (seen[:, :, 0] > 0) & (seen[:, :, 1:4].norm(dim=2) < 1.6)
    assert torch.equal(inside[:, ::2], close)
    first = met[: int(inside[:, 0].sum())]
    assert torch.allclose(first[:, :3], seen[:, 0, 1:4].movedim(1, -1)[inside[:, 0]], atol=1e-4)
    assert torch.allclose(first[:, 3:6].norm(dim=1), torch.ones(len(first)))
    alone = layouts(*(seed for seed in range(1, 30) if len(draw_shot(seed).bodies) == 1))
    assert not meetings(nearest_first(alone), 44, 80)[0][:, 2:].any()


def test_the_shipped_network_knows_outlines() -> None:
    """Of what it draws, pixels in the objects' colors are those of the rendered ones."""
    needs.osmesa()
    refiner = load_component(StillRefiner, WEIGHTS / "still_refiner")
    text_encoder = load_component(TextEncoder, WEIGHTS / "text_encoder")
    shots = [shot for shot in map(draw_shot, range(9_200_000, 9_200_040)) if shot.size_px == SIZES[0]][:12]
    frames = np.stack([render(shot, [0.0])[0] for shot in shots])
    text = text_encoder([caption_of(shot.scene) for shot in shots])[0][:, 0]
    with torch.inference_mode():
        drawn = refiner.draw(to_input(frames), layouts(*(shot.seed for shot in shots)), text).clamp(-1, 1)
    pictures = (drawn * 127.5 + 128).byte().permute(0, 2, 3, 1).numpy()
    ours, theirs = color_classes(pictures) >= 0, color_classes(frames) >= 0
    assert (ours & theirs).sum() > 0.95 * (ours | theirs).sum()
    energy = [np.mean([outline_energy(frame) for frame in some]) for some in (pictures, frames)]
    assert energy[0] > 0.72 * energy[1]


def test_the_shipped_network_lets_the_nearer_object_hide_the_other() -> None:
    """Of objects that stand before each other, or nearly, pixels have the color of the one that is seen there."""
    needs.osmesa()
    refiner = load_component(StillRefiner, WEIGHTS / "still_refiner")
    text_encoder = load_component(TextEncoder, WEIGHTS / "text_encoder")
    alike = []
    for shot in map(draw_shot, range(9_500_001, 9_502_000)):
        if len(shot.bodies) < 2 or shot.size_px != SIZES[0]:
            continue
        first, late = (
            Layout(*(torch.from_numpy(part[None]) for part in one))
            for one in layouts_of(shot, [0.0, 1.5], mirrored=False)
        )
        one, other = late.objects[0]
        if (one - other)[[1, 3]].norm() > 0.75 * (one + other)[4] or abs(one[1]) > 2:
            continue
        frames = to_input(np.stack(render(shot, [0.0, 1.5])))
        with torch.inference_mode():
            drawn = refiner.draw(frames[:1], late, text_encoder([caption_of(shot.scene)])[0][:, 0]).clamp(-1, 1)
        ours, theirs = (
            color_classes((some * 127.5 + 128).byte().permute(0, 2, 3, 1).numpy()) for some in (drawn, frames[1:])
        )
        alike.append(float((ours == theirs)[theirs >= 0].mean()))
        assert not torch.equal(first.objects, late.objects)
        if len(alike) == 8:
            break
    assert len(alike) == 8
    assert np.mean(alike) > 0.82


def test_later_layouts_follow_what_is_rendered() -> None:
    """A cube's pixels, after it was hit and turned, are those whose rays pass within it."""
    needs.osmesa()
    tried = 0
    for seed in range(1, 200):
        shot = draw_shot(seed)
        shapes = [thing.shape == "cube" for thing in shot.scene.objects]
        if shot.scene.motion != "collide" or shapes != [False, True] or shot.size_px != SIZES[0]:
            continue
        for mirrored in (False, True):
            found = layouts_of(shot, [0.0, 1.2], mirrored=mirrored)
            start, late = (Layout(*(torch.from_numpy(part[None]) for part in one)) for one in found)
            slot = int(late.objects[0, :, 6 + SHAPES.index("cube")].argmax())
            gone = late.objects[0, slot, 1:6] - start.objects[0, slot, 1:6]
            frame = render(shot, [1.2])[0]
            width, height = shot.size_px
            if abs(float(gone[0])) < 0.3 or abs(float(late.objects[0, slot, 1])) > 2.5 or abs(float(gone[4])) < 0.2:
                break
            tried += 1
            sized = Layout(late.objects.clone(), late.view)
            sized.objects[:, slot, 4] *= 0.88  # half of a cube's side
            channels = 4 + slot * 19
            shown = plan(sized, height, width)[0, channels : channels + 4]
            inside = ((shown[0] > 0) & (shown[1:].abs().amax(0) < 0.8)).numpy()
            classes = color_classes(frame[:, ::-1] if mirrored else frame)
            assert (classes[inside] == COLORS.index(shot.scene.objects[1].color)).mean() > 0.9
    assert tried >= 2


def test_any_size_is_drawn_again_and_other_pictures_are_not_recognised() -> None:
    refiner = tiny_still_refiner()
    for height, width in ((88, 160), (120, 88), (33, 47)):
        still, text = torch.rand(1, 3, height, width) * 2 - 1, torch.randn(1, 16)
        scene = refiner.recognised(still, text)
        assert scene is not None
        assert scene.still.shape == still.shape
        assert scene.still.abs().max() <= 1
        assert not torch.equal(scene.still, still)
        later = refiner.moments(scene, Layout(*(part.expand(3, *part.shape[1:]) for part in parts(scene.layout))), text)
        assert later.shape == (3, 3, height, width)
        bias = refiner.say[-1].bias
        assert isinstance(bias, torch.Tensor)
        for number, doubtful in ((-1, -50.0), (0, 1.0), (7, 50.0), (10, 50.0)):  # no objects; perhaps one; of two kinds
            usual = float(bias[number])
            bias.data[number] = doubtful
            assert refiner.recognised(still, text) is None
            bias.data[number] = usual


def test_a_given_picture_stays_as_it_is_and_is_recognised_if_it_would_be_drawn_alike() -> None:
    refiner, text = tiny_still_refiner(), torch.randn(1, 16)
    noise = torch.rand(1, 3, 88, 160) * 2 - 1
    assert refiner.recognised(noise, text, given=True) is None  # it draws something else
    drawn = refiner.recognised(noise, text)
    assert drawn is not None
    wanted = Layout(drawn.layout.objects + 0.05 * drawn.layout.objects[..., :1], drawn.layout.view)
    with torch.inference_mode():  # as while a request is made
        still = refiner.draw(noise, wanted, text)
        fitting = refiner.draw
        refiner.draw = lambda frames, layout, text: fitting(noise, layout, text)  # type: ignore[method-assign]
        scene = refiner.recognised(still, text, given=True)
        read = Layout.heard(refiner.read(still, text)[:, :-1])
    assert scene is not None
    assert torch.equal(scene.still, still)
    near, far = ((refiner.draw(noise, one, text) - still).abs().mean() for one in (scene.layout, read))
    assert near < far  # it is looked for where it would be drawn as it is


def parts(layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
    return layout.objects, layout.view
