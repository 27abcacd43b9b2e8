"""The arithmetic of cropping and of choosing frames."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cosmorama.media.fit import cover_box, fit
from cosmorama.media.timeline import pick_last

SIDES = st.integers(16, 5000)
ASPECTS = st.fractions(Fraction(1, 8), Fraction(8), max_denominator=200)


@given(st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES), ASPECTS)
def test_the_box_is_inside_centred_touching_and_of_the_targets_shape(
    source: tuple[int, int], target: tuple[int, int], aspect: Fraction
) -> None:
    left, top, right, bottom = cover_box(source, target, aspect)
    assert 0 <= left < right <= source[0]
    assert 0 <= top < bottom <= source[1]
    assert left + right == pytest.approx(source[0])
    assert top + bottom == pytest.approx(source[1])
    assert right - left == pytest.approx(source[0]) or bottom - top == pytest.approx(source[1])
    assert (right - left) * aspect / (bottom - top) == pytest.approx(target[0] / target[1])


@given(SIDES, SIDES)
def test_a_frame_of_the_right_size_is_taken_whole(width: int, height: int) -> None:
    assert cover_box((width, height), (width, height)) == (0, 0, width, height)


def test_fitting_keeps_pixels_that_need_no_scaling_and_crops_the_middle() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 100, 3), np.uint8)
    assert (fit(Image.fromarray(pixels), 100, 40) == pixels).all()
    assert (fit(Image.fromarray(pixels), 40, 40) == pixels[:, 30:70]).all()


def test_scaling_down_averages_instead_of_skipping() -> None:
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    small = fit(Image.fromarray(stripes), 32, 32)
    assert np.abs(small.astype(int) - 127).max() <= 4


@given(
    st.lists(st.floats(0.005, 0.5), min_size=0, max_size=60),
    st.floats(12, 40),
    st.integers(1, 40),
    st.floats(-10, 1000),
)
def test_picked_frames_are_the_nearest_to_a_grid_ending_at_the_last(
    steps: list[float], fps: float, frames: int, start: float
) -> None:
    times = [start + sum(steps[:i]) for i in range(len(steps) + 1)]
    picked = pick_last(times, fps, frames)
    assert 1 <= len(picked) <= frames
    assert picked == sorted(picked)
    assert picked[-1] == len(times) - 1
    for place, index in enumerate(reversed(picked)):
        wanted = times[-1] - place / fps
        assert abs(times[index] - wanted) <= min(abs(time - wanted) for time in times) + 1e-9
    if len(picked) < frames:
        assert times[-1] - len(picked) / fps < times[0]


@given(st.sampled_from([12.0, 23.976, 24.0, 25.0, 29.97, 30.0, 40.0]), st.integers(1, 121))
def test_a_clip_of_the_same_rate_gives_every_frame_even_with_rounded_times(fps: float, frames: int) -> None:
    times = [round(k / fps, 3) for k in range(frames)]
    assert pick_last(times, fps, frames) == list(range(frames))
    assert pick_last(times, fps, 9) == list(range(max(frames - 9, 0), frames))
