"""Fitting frames to a size, choosing them by time, and giving them another size and rate."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cosmorama.errors import MediaError
from cosmorama.fitting import nearest_size
from cosmorama.media.read import cover_box, fit, pick_last, resampled
from cosmorama.media.source import mime_type, suffix
from cosmorama.media.stills import thumbnail
from cosmorama.media.write import VideoWriter
from cosmorama.request import Capabilities, Output, Size, Target

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


@given(st.integers(1, 60), st.floats(1, 60), st.floats(12, 40), st.integers(1, 7))
def test_each_frame_is_the_nearest_in_time(frames: int, fps: float, made_fps: float, chunk: int) -> None:
    made = int((frames - 1) * made_fps / fps + 0.5) + 1
    source = np.arange(made, dtype=np.uint32).view(np.uint8).reshape(made, 1, 1, 4)[..., :3]
    chunks = [source[start : start + chunk] for start in range(0, made, chunk)]
    found = np.concatenate(list(resampled(chunks, made_fps, Target(1, 1, frames, fps))))
    assert len(found) == frames
    first, rest = chunks[:1], chunks[1:]  # as of a clip whose beginning is written before its end is made
    parts = [*resampled(first, made_fps, Target(1, 1, frames, fps))]
    parts += resampled(rest, made_fps, Target(1, 1, frames, fps), len(np.concatenate(first)) if first else 0)
    assert np.array_equal(np.concatenate(parts), found)
    shown = found[:, 0, 0, 0].astype(int) + 256 * found[:, 0, 0, 1].astype(int)
    for index, which in enumerate(shown):
        assert abs(which / made_fps - index / fps) <= 0.5 / made_fps + 1e-9


def test_another_shape_is_covered_and_cropped_around_the_centre() -> None:
    frame = np.zeros((1, 40, 100, 3), np.uint8)
    frame[:, :, 30:70] = 255
    [found] = resampled([frame], 24, Target(20, 20, 1, 24))
    assert found.shape == (1, 20, 20, 3)
    assert found[0, :, 2:-2].min() >= 250


@pytest.mark.parametrize(
    ("asked", "made"),
    [((1280, 720), (1280, 704)), ((720, 1280), (704, 1280)), ((512, 512), (960, 960)), ((1024, 768), (960, 704))],
)
def test_nearest_of_listed_sizes(asked: tuple[int, int], made: tuple[int, int]) -> None:
    assert nearest_size(Capabilities(model="five"), Size(*asked)) == Size(*made)


@given(st.integers(16, 4096), st.integers(16, 4096))
def test_nearest_multiple_is_within_the_limit(width: int, height: int) -> None:
    model = Capabilities(model="any", sizes=(), size_multiple=16, max_pixels=1280 * 720)
    found = nearest_size(model, Size(width, height))
    assert found.width % 16 == found.height % 16 == 0
    assert 0 < found.width * found.height <= model.max_pixels


def test_jpeg_holds_one_picture(tmp_path: Path) -> None:
    output = Output("jpeg", quality=9)
    assert (suffix(output), mime_type(output)) == (".jpg", "image/jpeg")
    ramp = np.broadcast_to(np.arange(0, 192, 2, dtype=np.uint8)[None, None, :, None], (1, 33, 96, 3))
    path = tmp_path / "still.jpg"
    with VideoWriter(path, width=96, height=33, fps=24, output=output) as writer:
        writer.write(np.ascontiguousarray(ramp))
    with Image.open(path) as picture:
        assert (picture.format, picture.size) == ("JPEG", (96, 33))
        assert np.abs(np.asarray(picture).astype(int) - ramp[0]).max() <= 4
    writer = VideoWriter(tmp_path / "two.jpg", width=96, height=33, fps=24, output=output)
    with pytest.raises(ValueError, match="one frame"):
        writer.write(np.concatenate([ramp, ramp]))
    writer.discard()
    assert not (tmp_path / "two.jpg").exists()


def test_what_is_no_clip_has_no_thumbnail(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no clip")
    with pytest.raises(MediaError, match="no clip or picture"):
        thumbnail(tmp_path / "text")
