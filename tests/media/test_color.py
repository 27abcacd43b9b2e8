"""Colors as they are meant: each table entry is encoded with formulas written here, and must come back as it was."""

from __future__ import annotations

import io
import struct
import zlib
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
from av.codec.context import Flags
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Interpolation
from PIL import Image, ImageCms

from cosmorama.errors import MediaError
from cosmorama.media.read import read_image, read_video

LEVELS = 12
"""How far a color may be from what it stands for."""
COLORS = {
    "red": (255, 0, 0),
    "white": (255, 255, 255),
    "skin": (224, 172, 105),
    "gray": (128, 128, 128),
    "blue": (40, 70, 200),
    "green": (40, 180, 60),
    "dark": (60, 40, 30),
}
BT2020, P3 = 9, 12
LINEAR, SRGB, PQ, HLG, BT2020_10 = 8, 13, 16, 18, 14
TO_BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])  # BT.2087
TO_P3 = np.array([[0.8225, 0.1774, 0.0], [0.0332, 0.9669, 0.0], [0.0171, 0.0724, 0.9108]])


def light(rgb: tuple[int, int, int]) -> Any:
    code = np.array(rgb) / 255
    return np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)


def pq(linear: Any) -> Any:
    """White at 203 cd/m2."""
    y = (np.clip(linear, 0, None) * 203 / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375


def hlg(linear: Any) -> Any:
    """White at 203 cd/m2 of a screen of 1,000: that is the signal 0.75."""
    display = np.clip(linear, 1e-9, None) * 203 / 1000
    luminance = display @ [0.2627, 0.6780, 0.0593]
    scene = display * luminance ** ((1 - 1.2) / 1.2)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(np.maximum(12 * scene - b, 1e-9)) + c)


def srgb(linear: Any) -> Any:
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def power(linear: Any) -> Any:
    return np.clip(linear, 0, 1) ** (1 / 2.4)


def signal(rgb: tuple[int, int, int], primaries: int, transfer: int) -> Any:
    """The full-range code of a color of sRGB in another space, 0 to 1."""
    matrix = {BT2020: TO_BT2020, P3: TO_P3, 1: np.eye(3)}[primaries]
    encode = {PQ: pq, HLG: hlg, SRGB: srgb, BT2020_10: power, LINEAR: lambda linear: linear}[transfer]
    return encode(matrix @ light(rgb))


def clip_of(code: Any, primaries: int, transfer: int, codec: str = "libx264") -> bytes:
    pixels = np.broadcast_to(np.rint(np.asarray(code) * 65535).astype(np.uint16), (64, 96, 3)).copy()
    file = io.BytesIO()
    matrix = 9 if primaries == BT2020 else 1
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=24, width=96, height=64, options={"crf": "1"})
        context = stream.codec_context
        context.pix_fmt = "yuv420p10le"
        context.color_primaries, context.color_trc, context.colorspace = primaries, transfer, matrix
        context.color_range = ColorRange.MPEG
        for _ in range(3):
            frame = VideoFrame.from_ndarray(pixels, format="rgb48le").reformat(
                format="yuv420p10le", dst_colorspace=matrix, src_color_range=ColorRange.JPEG,
                dst_color_range=ColorRange.MPEG, interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND,
            )  # fmt: skip
            frame.color_primaries, frame.color_trc = primaries, transfer
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def color_of(frame: Any) -> Any:
    return frame[frame.shape[0] // 2, frame.shape[1] // 2].astype(int)


def read_clip(data: bytes, frames: int = 1, keep: Any = "last") -> tuple[Any, list[str]]:
    warnings: list[str] = []
    read = read_video(data, "video", width=96, height=64, fps=24, frames=frames, keep=keep, warnings=warnings)
    return read, warnings


def read_still(data: bytes) -> tuple[Any, list[str]]:
    warnings: list[str] = []
    return read_image(data, "image", width=96, height=64, warnings=warnings), warnings


@pytest.mark.parametrize("name", COLORS)
@pytest.mark.parametrize(
    ("primaries", "transfer", "words"),
    [
        (BT2020, PQ, "tone-mapped from HDR (PQ, BT.2020) to SDR"),
        (BT2020, HLG, "tone-mapped from HDR (HLG, BT.2020) to SDR"),
        (P3, PQ, "tone-mapped from HDR (PQ, Display P3) to SDR"),
        (BT2020, BT2020_10, "converted from BT.2020 colors to sRGB"),
        (P3, SRGB, "converted from Display P3 colors to sRGB"),
        (1, LINEAR, "converted from BT.709, linear light, to sRGB"),
    ],
)
def test_clips_of_other_spaces(name: str, primaries: int, transfer: int, words: str) -> None:
    frames, warnings = read_clip(clip_of(signal(COLORS[name], primaries, transfer), primaries, transfer))
    # Ten bits of limited range are coarse where light itself is stored.
    assert np.abs(color_of(frames[0]) - COLORS[name]).max() <= LEVELS, color_of(frames[0])
    assert warnings == [f"video was {words}"]


def test_hevc_carries_its_space_too() -> None:
    frames, warnings = read_clip(clip_of(signal(COLORS["skin"], BT2020, HLG), BT2020, HLG, "libx265"))
    assert np.abs(color_of(frames[0]) - COLORS["skin"]).max() <= LEVELS
    assert warnings


def test_highlights_keep_their_order_and_hue() -> None:
    shown = []
    for brightness in (1, 2, 4, 20):
        frames, _ = read_clip(clip_of(pq(TO_BT2020 @ np.array([1, 0.5, 0.25]) * brightness), BT2020, PQ))
        shown.append(color_of(frames[0]))
    reds = [int(color[0]) for color in shown]
    assert reds == sorted(reds)
    assert reds[-1] <= 255
    for color in shown:
        assert color[0] > color[1] > color[2]
        assert abs(color[1] - 255 * srgb(0.5 * light((color[0], 0, 0))[0])) <= LEVELS


def test_ordinary_clips_are_left_alone() -> None:
    for transfer in (1, 2, 6):
        code = np.array(COLORS["skin"]) / 255
        frames, warnings = read_clip(clip_of(code, 1, transfer))
        assert np.abs(color_of(frames[0]) - COLORS["skin"]).max() <= 3
        assert warnings == []


@pytest.mark.parametrize("form", ["WEBP", "PNG", "GIF"])
def test_what_no_frame_of_an_animation_covers_is_white(form: str) -> None:
    """The frames of this WebP are opaque bars, and its header tells of no transparency."""
    pictures = [Image.new("RGBA", (96, 64)) for _ in range(4)]
    for index, picture in enumerate(pictures):
        picture.paste((200, 30, 30, 255), (index * 8, 0, index * 8 + 8, 64))
    file = io.BytesIO()
    options: dict[str, Any] = {"disposal": 2} if form == "GIF" else {"lossless": True} if form == "WEBP" else {}
    pictures[0].save(file, form, save_all=True, append_images=pictures[1:], duration=100, **options)
    frames, warnings = read_clip(file.getvalue())
    assert color_of(frames[-1]).tolist() == [255, 255, 255]
    assert np.abs(frames[-1][32, 28].astype(int) - [200, 30, 30]).max() <= LEVELS
    assert warnings == ["video is transparent in places, which are shown on white"]
    still, _ = read_still(file.getvalue())
    assert (color_of(still).tolist(), still[32, 90].tolist()) == ([255, 255, 255], [255, 255, 255])


@pytest.mark.parametrize(("primaries", "transfer", "name"), [(10, 1, "CIE XYZ"), (1, 9, "logarithms of light")])
def test_spaces_that_are_not_supported_are_refused_by_name(primaries: int, transfer: int, name: str) -> None:
    with pytest.raises(MediaError, match=f"stores its colors as {name}, which is not supported"):
        read_clip(clip_of(np.array(COLORS["skin"]) / 255, primaries, transfer))


@pytest.mark.parametrize(("matrix", "name"), [(14, "ICtCp"), (8, "YCgCo")])
def test_matrices_that_are_not_supported_are_refused_by_name(matrix: int, name: str) -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=24, width=96, height=64)
        stream.codec_context.pix_fmt = "yuv420p"
        stream.codec_context.colorspace = matrix
        for _ in range(2):
            frame = VideoFrame.from_ndarray(np.full((64, 96, 3), 99, np.uint8), format="rgb24").reformat(
                format="yuv420p"
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(MediaError, match=name):
        read_clip(file.getvalue())


def interlaced(top_first: bool) -> bytes:
    """A white bar that moves by 16 pixels from field to field."""
    file = io.BytesIO()
    with av.open(file, "w", format="mpegts") as container:
        order = "tff=1" if top_first else "bff=1"
        options = {"crf": "1", "x264-params": order}
        stream = container.add_stream("libx264", rate=25, width=256, height=192, options=options)
        stream.codec_context.pix_fmt = "yuv420p"
        stream.codec_context.flags |= Flags.interlaced_dct
        for index in range(8):
            fields = []
            for field in range(2):
                picture = np.zeros((192, 256, 3), np.uint8)
                left = 16 * (2 * index + field) % 200
                picture[:, left : left + 40] = 255
                fields.append(picture)
            woven = fields[0].copy()
            woven[1 if top_first else 0 :: 2] = fields[1][1 if top_first else 0 :: 2]
            frame = VideoFrame.from_ndarray(woven, format="rgb24").reformat(format="yuv420p")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


@pytest.mark.parametrize("top_first", [True, False])
def test_interlaced_frames_become_whole_ones(top_first: bool) -> None:
    warnings: list[str] = []
    frames = read_video(interlaced(top_first), "video", width=256, height=192, fps=25, frames=8, warnings=warnings)
    assert warnings == ["video was deinterlaced"]
    assert len(frames) == 8
    between_rows = np.abs(np.diff(frames[1:-1].astype(int), axis=1)).mean()
    assert between_rows < 1.5  # woven, it is ten times as much
    for index in range(1, 6):  # and each is where its first field was
        bright = np.flatnonzero(frames[index, 96, :, 0] > 127)
        assert abs(bright[0] - 32 * index % 200) <= 16


TRANSPARENT = np.dstack([np.full((64, 96), value, np.uint8) for value in (200, 30, 30, 0)])


@pytest.mark.parametrize(
    ("codec", "container", "form"),
    [
        ("libvpx-vp9", "webm", "yuva420p"),
        ("libvpx", "webm", "yuva420p"),
        ("qtrle", "mov", "argb"),
        ("png", "mov", "rgba"),
        ("prores_ks", "mov", "yuva444p10le"),
        ("ffv1", "matroska", "yuva420p"),
    ],
)
@pytest.mark.parametrize(("alpha", "expected"), [(0, (255, 255, 255)), (255, (200, 30, 30)), (128, (227, 142, 142))])
def test_transparent_clips_are_shown_on_white(
    codec: str, container: str, form: str, alpha: int, expected: tuple[int, int, int]
) -> None:
    pixels = TRANSPARENT.copy()
    pixels[..., 3] = alpha
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=24, width=96, height=64)
        stream.codec_context.pix_fmt = form
        if codec == "prores_ks":
            stream.codec_context.options = {"profile": "4444"}
        if codec.startswith("libvpx"):
            stream.codec_context.options = {"auto-alt-ref": "0", "crf": "4", "b": "4M"}
        for _ in range(3):
            out.mux(stream.encode(VideoFrame.from_ndarray(pixels, format="rgba").reformat(format=form)))
        out.mux(stream.encode(None))
    frames, warnings = read_clip(file.getvalue())
    assert np.abs(color_of(frames[0]) - expected).max() <= LEVELS, color_of(frames[0])
    assert bool(warnings) == (alpha < 255)


def with_chunk(png: bytes, kind: bytes, payload: bytes) -> bytes:
    chunk = struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))
    return png[:33] + chunk + png[33:]


def saved(code: Any, form: str, mode: str = "RGB", **options: Any) -> bytes:
    pixels = np.broadcast_to(np.rint(np.asarray(code) * 255).astype(np.uint8), (64, 96, 3)).copy()
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("form", "name"),
    # Saturated colors of HDR are out of reach of an AVIF of eight bits.
    [*(("PNG", name) for name in COLORS), *(("AVIF", name) for name in ("white", "skin", "gray", "blue", "dark"))],
)
@pytest.mark.parametrize(("primaries", "transfer"), [(P3, SRGB), (BT2020, PQ), (BT2020, HLG)])
def test_stills_that_name_their_space_by_code_points(name: str, primaries: int, transfer: int, form: str) -> None:
    code = signal(COLORS[name], primaries, transfer)
    if form == "PNG":
        data = with_chunk(saved(code, "PNG"), b"cICP", bytes([primaries, transfer, 0, 1]))
    else:
        data = saved(code, "AVIF", quality=100, subsampling="4:4:4")
        at = data.index(b"colrnclx") + 8
        data = data[:at] + struct.pack(">HH", primaries, transfer) + data[at + 4 :]
    picture, warnings = read_still(data)
    assert np.abs(color_of(picture) - COLORS[name]).max() <= LEVELS, color_of(picture)
    assert len(warnings) == (0 if name in ("white", "gray", "dark") and transfer == SRGB else 1) or name == "dark"


def gray_profile(exponent: float) -> bytes:
    """An ICC profile of gray, version 2, by its curve alone (ICC.1:2001-04)."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(exponent * 256)) + bytes(2)
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 0xF6D6, 0x10000, 0xD32D)
    text = b"desc" + bytes(4) + struct.pack(">I", 2) + b"g\0" + bytes(78)
    tags = [(b"desc", text), (b"wtpt", white), (b"kTRC", curve)]
    at, table, body = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, content in tags:
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", at + len(body), len(content))
        body += content
    head = struct.pack(">I4sI4s4s4s", at + len(body), bytes(4), 0x02100000, b"mntr", b"GRAY", b"XYZ ")
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + struct.pack(">3i", 0xF6D6, 0x10000, 0xD32D)
    return head.ljust(128, b"\0") + table + body


def test_profiles_of_gray_and_of_palettes_count() -> None:
    linear = gray_profile(1.0)
    expected = 255 * float(srgb(np.array(24 / 255)))
    for form in ("PNG", "JPEG"):
        picture, warnings = read_still(saved(np.full(3, 24 / 255), form, "L", icc_profile=linear))
        assert np.abs(color_of(picture) - expected).max() <= LEVELS, (form, color_of(picture))
        assert warnings == ["image was converted from its color profile to sRGB"]
    swapped = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture, warnings = read_still(saved(np.array([200, 40, 40]) / 255, "PNG", "P", icc_profile=swapped))
    assert np.abs(color_of(picture) - (200, 40, 40)).max() <= LEVELS
    assert warnings == []


def test_gamma_of_a_png_counts_where_nothing_else_is_said() -> None:
    linear = with_chunk(saved(np.full(3, 55 / 255), "PNG"), b"gAMA", struct.pack(">I", 100000))
    picture, warnings = read_still(linear)
    assert np.abs(color_of(picture) - 255 * float(srgb(np.array(55 / 255)))).max() <= 2
    assert warnings == ["image was converted from a gamma of 1 to sRGB"]
    usual = with_chunk(saved(np.full(3, 55 / 255), "PNG"), b"gAMA", struct.pack(">I", 45455))
    assert color_of(read_still(usual)[0]).tolist() == [55, 55, 55]


P3_CHRM = (31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)


@pytest.mark.parametrize("name", COLORS)
def test_primaries_of_a_png_count_where_nothing_else_is_said(name: str) -> None:
    mixed = b"cHRM", struct.pack(">8I", *P3_CHRM)
    stored = saved(signal(COLORS[name], P3, SRGB), "PNG")
    for gamma in (None, 45455):
        data = with_chunk(stored, *mixed)
        if gamma is not None:
            data = with_chunk(data, b"gAMA", struct.pack(">I", gamma))
        picture, warnings = read_still(data)
        assert np.abs(color_of(picture) - COLORS[name]).max() <= LEVELS
        assert set(warnings) <= {"image was converted from other primaries to sRGB"}
    linear = with_chunk(
        with_chunk(saved(signal(COLORS[name], P3, LINEAR), "PNG"), *mixed), b"gAMA", bytes.fromhex("000186a0")
    )
    assert np.abs(color_of(read_still(linear)[0]) - COLORS[name]).max() <= LEVELS
    as_it_is = saved(np.array(COLORS[name]) / 255, "PNG")
    for impossible in ((0,) * 8, (31270, 32900) + (64000, 33000) * 3, (2**31 - 1,) * 8):
        picture, warnings = read_still(with_chunk(as_it_is, b"cHRM", struct.pack(">8I", *impossible)))
        assert (color_of(picture).tolist(), warnings) == (list(COLORS[name]), [])


def test_sixteen_bit_gray_with_a_transparent_level() -> None:
    pixels = np.full((64, 96), 30000, np.uint16)
    pixels[:, :48] = 1000
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", transparency=1000)
    picture, warnings = read_still(file.getvalue())
    assert picture[32, 10].tolist() == [255, 255, 255]
    assert picture[32, 80].tolist() == [117, 117, 117]
    assert warnings == ["image is transparent in places, which are shown on white"]


def float_tiff(pixels: Any) -> bytes:
    """One strip, uncompressed, float32: one sample per pixel or three."""
    height, width, samples = pixels.shape
    data = pixels.astype("<f4").tobytes()
    bits, form = struct.pack("<3H", 32, 32, 32), struct.pack("<3H", 3, 3, 3)
    entries: list[tuple[int, int, int, int]] = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, samples, 8 if samples == 3 else 32), (259, 3, 1, 1),
        (262, 3, 1, 2 if samples == 3 else 1), (273, 4, 1, 20), (277, 3, 1, samples), (278, 4, 1, height),
        (279, 4, 1, len(data)), (339, 3, samples, 14 if samples == 3 else 3),
    ]  # fmt: skip
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 20 + len(data)) + bits + form + data + directory + bytes(4)


def tiff(pixels: Any, photometric: int, kind: int = 1, planes: int = 1, bits: int | None = None) -> bytes:
    """A plain TIFF of pixels `[H, W, samples]`: photometric 0 white is zero, 1 black is, 2 RGB, 8 CIE Lab."""
    height, width, samples = pixels.shape
    data = (pixels.transpose(2, 0, 1) if planes == 2 else pixels).tobytes()
    counts = [len(data) // samples] * samples if planes == 2 else [len(data)]
    starts = [1024 + sum(counts[:index]) for index in range(len(counts))]
    tags = {
        256: [width], 257: [height], 258: [bits or 8 * pixels.dtype.itemsize] * samples, 259: [1], 262: [photometric],
        273: starts, 277: [samples], 278: [height], 279: counts, 284: [planes], 339: [kind] * samples,
    }  # fmt: skip
    entries, more = b"", b""
    for tag, values in tags.items():
        form = "I" if tag in (273, 279) else "H"
        packed = struct.pack(f"<{len(values)}{form}", *values)
        if len(packed) > 4:
            more, packed = more + packed, struct.pack("<I", 8 + 2 + 12 * len(tags) + 4 + len(more))
        entries += struct.pack("<HHI", tag, {"I": 4, "H": 3}[form], len(values)) + packed.ljust(4, b"\0")
    return (struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + more).ljust(1024, b"\0") + data


SKIN = np.full((64, 96, 3), COLORS["skin"], np.uint8)


@pytest.mark.parametrize(
    ("pixels", "photometric", "kind", "planes", "what"),
    [
        (SKIN, 2, 1, 1, None),
        (SKIN, 2, 1, 2, None),
        (SKIN.astype("<u2") * 257, 2, 1, 1, None),
        ((SKIN / 255).astype("<f4"), 2, 3, 1, None),
        (255 - SKIN[..., :1], 0, 1, 1, None),
        (SKIN, 8, 1, 1, "CIE Lab"),
        (SKIN.astype("<u2") * 257, 2, 1, 2, "planes of more than 8 bits"),
        (SKIN[..., :1].astype("<u2") * 257, 0, 1, 1, "16 bits of which 0 is white"),
        (SKIN.astype("<u4") << 24, 2, 1, 1, "whole numbers of 32 bits"),
        ((SKIN / 255).astype("<f2"), 2, 3, 1, "floating point of 16 bits"),
        (SKIN / 255, 2, 3, 1, "64 bits per channel"),
        (SKIN[..., :1].astype("<i2") * 100, 1, 2, 1, "signed numbers"),
    ],
)
def test_tiffs_are_as_they_are_or_refused_by_name(
    pixels: Any, photometric: int, kind: int, planes: int, what: str | None
) -> None:
    data = tiff(pixels, photometric, kind, planes)
    if what is None:
        wanted = COLORS["skin"] if pixels.shape[2] == 3 else (COLORS["skin"][0],) * 3
        assert np.abs(color_of(read_still(data)[0]) - wanted).max() <= LEVELS
    else:
        with pytest.raises(MediaError, match=f"stores its colors as {what}, which is not supported"):
            read_still(data)


@pytest.mark.parametrize("bits", [10, 12, 14, 24])
@pytest.mark.parametrize("samples", [1, 3])
def test_tiffs_of_bits_between_are_refused_by_name(samples: int, bits: int) -> None:
    with pytest.raises(MediaError, match=f"stores its colors as {bits} bits per channel, which is not supported"):
        read_still(tiff(SKIN[..., :samples].astype("<u2"), 2 if samples == 3 else 1, bits=bits))


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("scale", [1, 255])
def test_floating_point_stills(samples: int, scale: float) -> None:
    pixels = np.full((64, 96, samples), 0.5 * scale)
    pixels[0] = scale
    picture, warnings = read_still(float_tiff(pixels))
    assert np.abs(color_of(picture) - 128).max() <= 1
    assert warnings == [f"image has floating-point pixels; they were taken as sRGB from 0 to {scale}"]


def test_heic_is_read() -> None:
    picture, warnings = read_still(HEIC)
    assert np.abs(color_of(picture) - (200, 40, 40)).max() <= LEVELS
    assert warnings == []


def heic(red_green_blue: tuple[int, int, int]) -> bytes:
    """A HEIC of one HEVC picture, put together by hand: there is no encoder of the format here (ISO/IEC 23008-12)."""

    def box(kind: bytes, *parts: bytes) -> bytes:
        body = b"".join(parts)
        return struct.pack(">I", 8 + len(body)) + kind + body

    def full(kind: bytes, *parts: bytes, flags: int = 0, version: int = 0) -> bytes:
        return box(kind, struct.pack(">I", version << 24 | flags), *parts)

    context = av.CodecContext.create("libx265", "w")
    context.width, context.height, context.pix_fmt, context.time_base = 96, 64, "yuv420p", Fraction(1, 25)
    context.options = {"crf": "2", "x265-params": "log-level=none:info=0"}
    context.flags |= Flags.global_header
    pixels = np.broadcast_to(np.array(red_green_blue, np.uint8), (64, 96, 3)).copy()
    packets = [*context.encode(VideoFrame.from_ndarray(pixels, format="rgb24")), *context.encode(None)]

    def units(stream: bytes) -> list[bytes]:
        return [unit.rstrip(b"\0") for unit in stream.replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1") if unit]

    parameters = {unit[0] >> 1 & 63: unit for unit in units(bytes(context.extradata or b""))}
    picture = b"".join(
        struct.pack(">I", len(unit)) + unit for unit in units(bytes(packets[0])) if unit[0] >> 1 & 63 < 32
    )
    profile = parameters[33][3:15]  # of the sequence parameter set, where no byte of it is escaped
    arrays = b"".join(
        struct.pack(">BHH", 0x80 | kind, 1, len(parameters[kind])) + parameters[kind] for kind in (32, 33, 34)
    )
    configuration = b"\1" + profile + b"\xf0\0\xfc\xfd\xf8\xf8\0\0\x0f\3" + arrays
    properties = box(
        b"iprp",
        box(b"ipco", box(b"hvcC", configuration), full(b"ispe", struct.pack(">II", 96, 64))),
        full(b"ipma", struct.pack(">IHBBB", 1, 1, 2, 0x81, 0x02)),
    )
    head = box(b"ftyp", b"heic", bytes(4), b"mif1heic")

    def meta(offset: int) -> bytes:
        return full(
            b"meta",
            full(b"hdlr", bytes(4), b"pict", bytes(13)),
            full(b"pitm", struct.pack(">H", 1)),
            full(b"iloc", struct.pack(">BBHHHHII", 0x44, 0, 1, 1, 0, 1, offset, len(picture))),
            full(b"iinf", struct.pack(">H", 1), full(b"infe", struct.pack(">HH", 1, 0), b"hvc1\0", version=2)),
            properties,
        )

    offset = len(head) + len(meta(0)) + 8
    return head + meta(offset) + box(b"mdat", picture)


HEIC = heic((200, 40, 40))
