"""Frames at another size and rate than they were made, and pictures that stand for clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cosmorama.errors import MediaError
from cosmorama.fitting import nearest_size
from cosmorama.media.resample import resampled
from cosmorama.media.stills import thumbnail
from cosmorama.media.write import VideoWriter, mime_type, suffix
from cosmorama.request import Capabilities, Output, Size, Target


@given(st.integers(1, 60), st.floats(1, 60), st.floats(12, 40), st.integers(1, 7))
def test_each_frame_is_the_nearest_in_time(frames: int, fps: float, made_fps: float, chunk: int) -> None:
    made = int((frames - 1) * made_fps / fps + 0.5) + 1
    source = np.arange(made, dtype=np.uint32).view(np.uint8).reshape(made, 1, 1, 4)[..., :3]
    chunks = [source[start : start + chunk] for start in range(0, made, chunk)]
    found = np.concatenate(list(resampled(chunks, made_fps, Target(1, 1, frames, fps))))
    assert len(found) == frames
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
