"""Reading pictures of every make."""

from __future__ import annotations

import io
import struct
import time
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from cosmorama.errors import MediaError
from cosmorama.media.read import MediaLimits, read_image
from tests.media.make import Frame, corners, encode_clip, encode_picture, quadrants, swatches


def read(data: bytes, width: int = 64, height: int = 32) -> Frame:
    frame = read_image(data, "image", width=width, height=height)
    assert frame.shape == (height, width, 3)
    assert frame.dtype == np.uint8
    return frame


def refused(data: bytes, limits: MediaLimits | None = None) -> MediaError:
    with pytest.raises(MediaError) as caught:
        read_image(data, "image", width=64, height=32, limits=limits or MediaLimits())
    return caught.value


def saved(picture: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "MPO"])
def test_formats(form: str) -> None:
    assert corners(read(encode_picture(quadrants(), form))) == "RGBW"


def test_lossless_pixels_are_kept() -> None:
    assert (read(encode_picture(swatches()), 256, 32) == swatches()).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_pixel_modes_of_png(mode: str) -> None:
    grey = np.tile(np.array([0, 255], np.uint8).repeat(32), (32, 1))
    picture = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    frame = read(saved(picture))
    assert frame[16, 16].tolist() == [0, 0, 0]
    assert frame[16, 48].tolist() == [255, 255, 255]


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    frame = read(saved(Image.fromarray(np.full((32, 64), 0x8080, np.uint16))))
    assert frame[0, 0].tolist() == [128, 128, 128]


def test_cmyk() -> None:
    assert corners(read(saved(Image.fromarray(quadrants()).convert("CMYK"), "JPEG", quality=95))) == "RGBW"


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_shown_on_white(form: str) -> None:
    pixels = np.zeros((32, 64, 4), np.uint8)
    pixels[:, 32:, 3] = 255
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    frame = read(saved(Image.fromarray(pixels), form, **options))
    assert frame[16, 8].tolist() == [255, 255, 255]
    assert frame[16, 56].tolist() == [0, 0, 0]


def test_palette_transparency_is_shown_on_white() -> None:
    picture = Image.fromarray(np.zeros((32, 64), np.uint8)).convert("P")
    assert (read(saved(picture, transparency=0)) == 255).all()
    assert (read(saved(picture, "GIF", transparency=0)) == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    # What a camera held that way would have stored, so that the picture shown is always the same.
    undo: dict[int, list[Image.Transpose]] = {
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    stored = Image.fromarray(quadrants())
    for step in undo[orientation]:
        stored = stored.transpose(step)
    assert stored.size == ((64, 32) if orientation < 5 else (32, 64))
    assert corners(read(saved(stored, "JPEG", exif=exif, quality=95))) == "RGBW"


def test_a_portrait_is_cropped_to_its_middle() -> None:
    tall = np.zeros((300, 100, 3), np.uint8)
    tall[100:200] = 255
    assert (read(encode_picture(tall), 50, 50)[3:-3] >= 250).all()


def test_embedded_colour_profiles_are_converted_to_srgb() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    same = read(encode_picture(swatches(), "PNG", icc_profile=profile), 256, 32)
    assert np.abs(same.astype(int) - swatches()).max() <= 1
    damaged = read(encode_picture(swatches(), "PNG", icc_profile=b"not a profile" * 20), 256, 32)
    assert (damaged == swatches()).all()


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_an_animated_picture_gives_its_first_frame(form: str) -> None:
    first, second = Image.fromarray(quadrants()), Image.fromarray(quadrants()[::-1])
    data = saved(first, form, save_all=True, append_images=[second], duration=100)
    assert corners(read(data)) == "RGBW"


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, payload: bytes) -> bytes:
        return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10_000))) + b"\x00" * 12


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(25_000, 20_000), (12_000, 10_000), (2**31 - 1, 2**31 - 1), (1, 2**30)])
def test_too_many_pixels_are_refused_from_the_header(size: tuple[int, int]) -> None:
    started = time.monotonic()
    assert refused(png_header(*size)).status in (413, 422)
    assert time.monotonic() - started < 1


def test_sizes_at_the_limits() -> None:
    limits = MediaLimits(max_pixels=64 * 32, min_side=32)
    read_image(encode_picture(quadrants()), "image", width=16, height=16, limits=limits)
    assert refused(encode_picture(quadrants(66, 32)), limits).status == 413
    assert "at least 32 pixels" in refused(encode_picture(quadrants(64, 30)), limits).message
    assert "1x1" in refused(encode_picture(np.zeros((1, 1, 3), np.uint8))).message


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.95])
def test_cut_off_pictures_are_errors(form: str, part: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encode_picture(noise, form)
    assert refused(data[: int(len(data) * part)]).status == 422


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]), st.data())
def test_damaged_pictures_give_a_frame_or_a_media_error(form: str, draw: st.DataObject) -> None:
    data = bytearray(encode_picture(quadrants(), form))
    for _ in range(draw.draw(st.integers(1, 6))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    with suppress(MediaError):
        read(bytes(data))


def test_what_starts_like_a_jpeg_and_is_none() -> None:
    with pytest.raises(MediaError, match=r"^image: is damaged or cut off and cannot be decoded$"):
        read_image(b"\xff\xd8\xff\xf7" + bytes(64), "image", width=32, height=32)


def test_empty_and_clip_inputs() -> None:
    assert "not a picture or clip" in refused(b"").message
    assert "pass it where a video is taken" in refused(encode_clip([quadrants()] * 3)).message
    assert "damaged" in refused(b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic").message
