"""Clips side by side: each in its place, in step, with what is written beside them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from cosmorama.errors import MediaError
from cosmorama.grid.sheet import HIGHEST_PX, WIDEST_PX, Sheet, write_sheet
from cosmorama.media.write import VideoWriter
from cosmorama.request import Output


def clip(path: Path, levels: Sequence[int], fps: float = 10, size: tuple[int, int] = (96, 64)) -> Path:
    """A clip of gray frames."""
    width, height = size
    with VideoWriter(path, width=width, height=height, fps=fps, output=Output(quality=9)) as writer:
        for level in levels:
            writer.write(np.full((1, height, width, 3), level, np.uint8))
    return path


def frames(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def level(picture: np.ndarray, x: int, y: int) -> int:
    return int(picture[y - 3 : y + 3, x - 3 : x + 3].mean())


def test_all_play_in_step_and_a_short_one_stands_still(tmp_path: Path) -> None:
    rising = clip(tmp_path / "a.mp4", range(40, 240, 20))
    short = clip(tmp_path / "b.mp4", [200, 60])
    slow = clip(tmp_path / "c.mp4", range(40, 240, 40), fps=5)
    output = tmp_path / "sheet.mp4"
    write_sheet(Sheet([[rising, short], [slow, None]]), output, format="mp4")
    shown = frames(output)
    assert len(shown) == 10
    left, right, top, bottom = 8 + 48, 8 + 104 + 48, 8 + 32, 8 + 72 + 32
    for at, picture in enumerate(shown):
        assert level(picture, left, top) == pytest.approx(40 + 20 * at, abs=4)
        assert level(picture, right, top) == pytest.approx(200 if at == 0 else 60, abs=4)
        assert level(picture, left, bottom) == pytest.approx(40 + 40 * (at // 2), abs=4)
        assert level(picture, right, bottom) < 50


def test_a_png_is_one_frame_with_titles(tmp_path: Path) -> None:
    one = clip(tmp_path / "a.mp4", [40, 120, 200])
    bare, titled = tmp_path / "bare.png", tmp_path / "titled.png"
    write_sheet(Sheet([[one]]), bare, format="png", frame=2)
    write_sheet(Sheet([[one]], ["guidance_scale 7"], ["a prompt of many words that needs lines"]), titled, format="png")
    with Image.open(bare) as picture, Image.open(titled) as labelled:
        assert level(np.asarray(picture.convert("RGB")), 56, 40) == pytest.approx(200, abs=4)
        # The middle frame, to the right of and below the titles.
        assert labelled.width > picture.width + 100
        assert labelled.height > picture.height + 20
        pixels = np.asarray(labelled.convert("RGB"))
        assert level(pixels, labelled.width - 56, labelled.height - 40) == pytest.approx(120, abs=4)
        assert pixels[:30].max() > 150  # something is written above
        assert pixels[40:, :140].max() > 150  # and before


@pytest.mark.parametrize("title", ["x" * 150_000, "\u0301" * 20_000, "a " * 50_000, "世" * 20_000, "\0\n\t\u202e"])
def test_titles_of_any_length_are_cut_in_no_time(title: str, tmp_path: Path) -> None:
    one = clip(tmp_path / "a.mp4", [40])
    begun = time.process_time()
    write_sheet(Sheet([[one] * 4] * 4, [title] * 4, [title] * 4), tmp_path / "sheet.png", format="png")
    assert time.process_time() - begun < 5


def test_a_sheet_whose_folder_was_removed_is_made_no_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, folder = clip(tmp_path / "a.mp4", [40] * 9), tmp_path / "of_the_sheet"
    folder.mkdir()
    written = list[int]()

    def write(self: VideoWriter, frames: np.ndarray) -> None:
        written.append(len(frames))
        shutil.rmtree(folder, ignore_errors=True)

    monkeypatch.setattr(VideoWriter, "write", write)
    with pytest.raises(MediaError, match="nobody"):
        write_sheet(Sheet([[one]]), folder / "sheet.mp4", format="mp4")
    assert written == [1]


def test_many_large_clips_fit_on_a_screen(tmp_path: Path) -> None:
    large = clip(tmp_path / "a.mp4", [90], size=(1280, 704))
    output = tmp_path / "sheet.png"
    write_sheet(Sheet([[large] * 9] * 6, ["x"] * 9, ["y"] * 6), output, format="png")
    with Image.open(output) as picture:
        assert picture.width <= WIDEST_PX
        assert picture.height <= HIGHEST_PX


def test_what_is_no_clip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no clip at all")
    with pytest.raises(MediaError):
        write_sheet(Sheet([[tmp_path / "a.mp4"]]), tmp_path / "sheet.png", format="png")
    with pytest.raises(MediaError):
        write_sheet(Sheet([[None]]), tmp_path / "sheet.png", format="png")
