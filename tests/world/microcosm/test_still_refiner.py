"""Stills drawn again: layouts as networks say them, and where the camera sees what is in them."""

from __future__ import annotations

import numpy as np
import torch

from cosmorama.text.language import COLORS, SHAPES
from cosmorama.world.microcosm.layout import NUMBERS, PLAN_CHANNELS, Layout, plan
from microcosm.evaluation.probe import color_classes
from microcosm.scenes.simulate import OBJECT_RGB, SIZES, draw_shot, render
from microcosm.training.stills import layout_of, layouts_of
from tests import needs
from tests.tiny import tiny_still_refiner


def layouts(*seeds: int, mirrored: bool = False) -> Layout:
    found = [layout_of(draw_shot(seed), 0.0, mirrored=mirrored) for seed in seeds]
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
