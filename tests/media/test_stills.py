"""Pictures that stand for a clip."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cosmorama.errors import MediaError
from cosmorama.media.source import suffix
from cosmorama.media.stills import spritesheet, thumbnail
from cosmorama.media.write import VideoWriter
from cosmorama.request import CODECS, Container, Output


@pytest.mark.parametrize("container", CODECS)
def test_every_file_that_is_written_has_them(tmp_path: Path, container: Container) -> None:
    path = tmp_path / f"clip{suffix(Output(container))}"
    frames = np.empty((1 if container == "jpeg" else 3, 64, 96, 3), np.uint8)
    frames[0], frames[1:] = (200, 30, 30), (30, 30, 200)
    with VideoWriter(path, width=96, height=64, fps=24, output=Output(container)) as writer:
        writer.write(frames)
    first = Image.open(io.BytesIO(thumbnail(path)))
    assert first.size == (96, 64)
    assert np.abs(np.asarray(first.convert("RGB"))[32, 48].astype(int) - (200, 30, 30)).max() <= 12
    sheet = np.asarray(Image.open(io.BytesIO(spritesheet(path)))).astype(int)
    assert sheet.shape == (4 * 64, 4 * 96, 3)
    assert np.abs(sheet[-32, -48] - frames[-1, 0, 0]).max() <= 12


def test_what_holds_no_picture_is_told(tmp_path: Path) -> None:
    for name in ("clip.mp4", "clip.safetensors"):
        path = tmp_path / name
        path.write_bytes(b"no clip at all, in as many bytes")
        with pytest.raises(MediaError, match="it is no clip or picture"):
            thumbnail(path)
