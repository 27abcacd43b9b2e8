"""What pictures say of themselves elsewhere than in their pixels, and how frames of animations lie over each other."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from cosmorama.errors import MediaError
from cosmorama.media.read import read_video
from tests.media.test_color import COLORS, LEVELS, color_of, light, read_still, saved

TO_ADOBE = np.array([[0.7152, 0.2848, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0412, 0.9588]])
"""From light of sRGB's primaries to light of Adobe RGB's (1998)."""


def exif_of(space: int, index: str) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 1
    exif.get_ifd(ExifTags.IFD.Exif).update({ExifTags.Base.ColorSpace: space, ExifTags.IFD.Interop: {1: index}})
    return exif


@pytest.mark.parametrize("name", COLORS)
@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_cameras_say_adobe_rgb_without_a_profile(name: str, form: str) -> None:
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 97, "subsampling": 0}}[form]
    stored = (TO_ADOBE @ light(COLORS[name])).clip(0, 1) ** (256 / 563)
    for space, index in ((0xFFFF, "R03"), (2, "R98")):
        picture, warnings = read_still(saved(stored, form, exif=exif_of(space, index), **options))
        assert np.abs(color_of(picture) - COLORS[name]).max() <= LEVELS
        assert set(warnings) <= {"image was converted from Adobe RGB to sRGB"}
    for space, index in ((1, "R98"), (0xFFFF, "R98"), (0xFFFF, "")):
        as_it_is, warnings = read_still(
            saved(np.array(COLORS[name]) / 255, form, exif=exif_of(space, index), **options)
        )
        assert (np.abs(color_of(as_it_is) - COLORS[name]).max() <= 3, warnings) == (True, [])


@pytest.mark.parametrize("blend", [0, 1])
@pytest.mark.parametrize("disposal", [0, 1, 2])
def test_frames_of_an_apng_lie_over_each_other_as_its_standard_says(blend: int, disposal: int) -> None:
    """Each frame is half transparent in the middle and empty around it; the reference is composed in floating point."""
    frames = [Image.new("RGBA", (64, 64), (255, 0, 0, 255))]
    for color, left in (((0, 255, 0, 128), 8), ((0, 0, 255, 128), 24)):
        frames.append(Image.new("RGBA", (64, 64)))
        frames[-1].paste(color, (left, 16, left + 32, 48))
    file = io.BytesIO()
    more = {"duration": 100, "blend": blend, "disposal": disposal}
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:], **more)
    canvas = np.zeros((64, 64, 4))  # premultiplied
    shown = []
    for index, frame in enumerate(frames):
        before, given = canvas.copy(), np.asarray(frame) / 255
        given[..., :3] *= given[..., 3:]
        canvas = given + canvas * (1 - given[..., 3:]) if blend else given
        shown.append(255 * (canvas[..., :3] + 1 - canvas[..., 3:]))
        if disposal == 1 or (disposal == 2 and index == 0):
            canvas = np.zeros_like(canvas)
        elif disposal == 2:
            canvas = before
    read = read_video(file.getvalue(), "video", width=64, height=64, fps=10, frames=3)
    assert len(read) == 3
    assert np.abs(read - np.stack(shown)).max() <= 2


@pytest.mark.parametrize("tags", [{50706: b"\1\4\0\0"}, {254: 1}])
def test_previews_of_cameras_raw_files_are_not_taken_for_the_picture(tags: dict[int, Any]) -> None:
    ifd = ImageFileDirectory_v2()
    for number, value in tags.items():
        ifd.tagtype[number] = 1 if isinstance(value, bytes) else 4
        ifd[number] = value
    file = io.BytesIO()
    Image.new("RGB", (64, 48)).save(file, "TIFF", tiffinfo=ifd)
    with pytest.raises(MediaError, match="is a camera's raw file"):
        read_still(file.getvalue())
