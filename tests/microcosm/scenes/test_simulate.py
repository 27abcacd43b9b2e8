"""The simulator: shots follow from their seeds."""

from dataclasses import replace

import numpy as np

from microcosm.scenes.simulate import OBJECT_RGB, draw_shot, render
from tests import needs


def _render(seed: int, times_s: list[float]) -> np.ndarray:
    needs.osmesa()
    return render(replace(draw_shot(seed), size_px=(160, 88)), times_s)


def test_a_shot_follows_from_its_seed() -> None:
    assert draw_shot(7) == draw_shot(7)
    assert draw_shot(7) != draw_shot(8)


def test_frames_follow_from_the_seed() -> None:
    first = _render(11, [0.0, 0.3])
    assert first.shape == (2, 88, 160, 3)
    assert first.dtype == np.uint8
    # The rasteriser itself may differ by a rounding in a pixel or two.
    np.testing.assert_allclose(first.astype(int), _render(11, [0.0, 0.3]).astype(int), atol=2)


def test_what_falls_goes_down_and_keeps_its_color() -> None:
    seed = next(
        seed
        for seed in range(1000)
        if (scene := draw_shot(seed).scene).motion == "fall"
        and scene.sky == "studio"
        and [thing.color for thing in scene.objects] == ["red"]
    )
    frames = _render(seed, [0.0, 0.35, 1.5]).astype(float)
    red, green, blue = OBJECT_RGB["red"]
    assert red > 3 * max(green, blue)
    rows = [np.nonzero((frame[..., 0] > 2 * frame[..., 1]) & (frame[..., 0] > 60))[0].mean() for frame in frames]
    assert rows[0] < rows[1] < rows[2]
