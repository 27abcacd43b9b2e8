"""Sharp from soft, drawn from rendered, and what a stranger asks for."""

from __future__ import annotations

import numpy as np
import pytest

from cosmorama.text.language import SceneObject
from microcosm.evaluation.crispness import _softened, guess_figure, outline_energy, sharpness_figure
from microcosm.evaluation.probe import Sight
from microcosm.evaluation.strangers import Stranger, seen_figures, strangers
from microcosm.scenes.simulate import OBJECT_RGB, Frames


def discs(count: int, floor: int = 150) -> Frames:
    frames = np.full((count, 88, 160, 3), floor, np.uint8)
    rows, columns = np.mgrid[:88, :160]
    for index, frame in enumerate(frames):
        color = ("red", "blue", "green")[index % 3]
        frame[(rows - 44) ** 2 + (columns - 40 - 3 * (index % 25)) ** 2 < 15**2] = 255 * np.array(OBJECT_RGB[color])
    return frames


def test_soft_outlines_have_less_energy_than_sharp_ones_whatever_the_contrast() -> None:
    for floor in (40, 150, 220):
        sharp = discs(3, floor)
        for crisp, soft in zip(sharp, _softened(sharp), strict=True):
            assert 0.2 < outline_energy(crisp) < 0.6
            assert outline_energy(soft) < 0.6 * outline_energy(crisp)


def test_sharpness_is_a_share_of_that_of_real_frames() -> None:
    sharp = discs(6)
    assert sharpness_figure(sharp, sharp).value == pytest.approx(100)
    soft = sharpness_figure(_softened(sharp), sharp)
    assert soft.value < 60
    assert soft.bounds["enlarged twice"] == pytest.approx(soft.bounds["drawn"])


def test_a_frame_without_an_object_has_no_outline() -> None:
    assert outline_energy(np.full((88, 160, 3), 128, np.uint8)) == 0


def test_what_looks_alike_is_not_told_apart_and_what_does_not_is() -> None:
    frames = discs(24)
    noise = np.random.default_rng(0).integers(-20, 20, frames.shape)
    assert guess_figure(frames, frames, steps=10).value == pytest.approx(50)
    assert guess_figure((frames + noise).clip(0, 255).astype(np.uint8), frames, steps=25).value > 95


def test_a_hundred_strangers_say_what_must_be_seen() -> None:
    wanted = strangers()
    assert len(wanted) == len({one.prompt for one in wanted}) == 100
    assert all(1 <= len(one.objects) <= 2 for one in wanted)
    assert sum(one.direction is not None for one in wanted) >= 30
    assert sum(one.floor is not None for one in wanted) >= 50


def test_strangers_are_served_when_the_probe_sees_what_they_asked_for() -> None:
    wanted = strangers()
    served = [
        Sight({thing.color: thing.shape for thing in one.objects}, ("red", "ball"), one.floor or "grey")
        for one in wanted
    ]
    assert {figure.value for figure in seen_figures(served, wanted)} == {100.0}
    nothing = [Sight({}, ("red", "ball"), "blue")]
    figures = seen_figures(nothing, [Stranger("a green cube", (SceneObject("green", "cube"),), "grey")])
    assert {figure.value for figure in figures} == {0.0}
