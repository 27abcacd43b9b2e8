"""Stills drawn again: layouts as networks say them, and where the camera sees what is in them."""

from __future__ import annotations

import numpy as np
import torch

from cosmorama.world.microcosm.layout import NUMBERS, PLAN_CHANNELS, Layout, plan
from microcosm.scenes.simulate import OBJECT_RGB, SIZES, draw_shot, render
from microcosm.training.still_refiner import layout_of
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


def test_any_size_is_drawn_again_and_other_pictures_stay_as_they_are() -> None:
    refiner = tiny_still_refiner()
    for height, width in ((88, 160), (120, 88), (33, 47)):
        frames, text = torch.rand(2, 3, height, width) * 2 - 1, torch.randn(2, 16)
        drawn = refiner(frames, text)
        assert drawn.shape == frames.shape
        assert drawn.abs().max() <= 1
        assert not torch.equal(drawn, frames)
        bias = refiner.say[-1].bias
        assert isinstance(bias, torch.Tensor)
        for number, doubtful in ((-1, -50.0), (0, 1.0), (7, 50.0), (10, 50.0)):  # no objects; perhaps one; of two kinds
            usual = float(bias[number])
            bias.data[number] = doubtful
            assert torch.equal(refiner(frames, text), frames)
            bias.data[number] = usual
