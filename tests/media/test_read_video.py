"""Reading the last frames of clips of every make."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cosmorama.errors import MediaError
from cosmorama.media.read import MediaLimits, read_video
from cosmorama.media.write import VideoWriter
from cosmorama.request import Output
from tests.media.make import (
    COLOURS,
    Frame,
    corners,
    counting,
    encode_clip,
    encode_picture,
    level_index,
    quadrants,
    real_clip,
    swatches,
)


def read(
    data: bytes,
    *,
    size: tuple[int, int] = (64, 48),
    fps: float = 24,
    frames: int = 9,
    limits: MediaLimits | None = None,
) -> Frame:
    width, height = size
    result = read_video(
        data, "video", width=width, height=height, fps=fps, frames=frames, limits=limits or MediaLimits()
    )
    assert result.dtype == np.uint8
    assert 1 <= len(result) <= frames
    assert result.shape[1:] == (height, width, 3)
    return result


def levels(frames: Frame) -> list[int]:
    return [level_index(frame) for frame in frames]


def refused(data: bytes, limits: MediaLimits | None = None) -> MediaError:
    with pytest.raises(MediaError) as caught:
        read(data, limits=limits)
    assert caught.value.field == "video"
    return caught.value


@pytest.mark.parametrize(
    ("container", "codec", "pix_fmt"),
    [
        ("mp4", "libx264", "yuv420p"),
        ("mp4", "libx264", "yuv422p10le"),
        ("mp4", "libx265", "yuv420p10le"),
        ("mov", "prores_ks", "yuv422p10le"),
        ("matroska", "ffv1", "bgr0"),
        ("webm", "libvpx-vp9", "yuv420p"),
        ("webm", "vp8", "yuv420p"),
        ("avi", "mjpeg", "yuvj420p"),
        ("avi", "mpeg4", "yuv420p"),
        ("mpegts", "libx264", "yuv420p"),
        ("mpeg", "mpeg2video", "yuv420p"),
        ("flv", "flv", "yuv420p"),
        ("asf", "wmv2", "yuv420p"),
        ("yuv4mpegpipe", "wrapped_avframe", "yuv420p"),
    ],
)
def test_containers_codecs_and_pixel_formats(container: str, codec: str, pix_fmt: str) -> None:
    options = {"x265-params": "log-level=none", "preset": "ultrafast", "crf": "4"} if codec == "libx265" else None
    data = encode_clip(
        counting(12),
        container=container,
        codec=codec,
        pix_fmt=pix_fmt,
        options=options,
        full_range=pix_fmt in ("yuvj420p", "bgr0"),
        rate=Fraction(25),
    )
    assert levels(read(data, fps=25)) == list(range(3, 12))


def test_the_grid_ends_at_the_last_frame_whatever_the_rates() -> None:
    data = encode_clip(counting(60), rate=Fraction(30))
    assert levels(read(data, fps=30, frames=3)) == [57, 58, 59]
    assert levels(read(data, fps=15, frames=4)) == [53, 55, 57, 59]
    assert levels(read(data, fps=24, frames=5)) == [54, 55, 57, 58, 59]
    assert levels(read(data, fps=45, frames=5)) == [56, 57, 58, 58, 59]
    assert levels(read(data, fps=24, frames=1)) == [59]


def test_short_clips_give_fewer_frames() -> None:
    assert levels(read(encode_clip(counting(5)))) == [0, 1, 2, 3, 4]
    assert levels(read(encode_clip(counting(1)))) == [0]
    assert levels(read(encode_clip(counting(9), rate=Fraction(30)), fps=24)) == [0, 2, 3, 4, 6, 7, 8]


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_variable_frame_rate_follows_the_times(container: str) -> None:
    times = [Fraction(t, 1000) for t in (0, 490, 530, 540, 1500, 1540, 2000)]
    data = encode_clip(counting(7), container=container, times=times)
    # Wanted at 0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75 and 2 s.
    assert levels(read(data, fps=4)) == [0, 1, 1, 3, 3, 4, 4, 5, 6]


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts", "avi"])
@pytest.mark.parametrize("gop", ["12", "1000"])
def test_long_clips_are_entered_near_their_end_or_decoded_whole(container: str, gop: str) -> None:
    options = {"preset": "ultrafast", "crf": "10", "g": gop, "keyint_min": gop, "sc_threshold": "0"}
    frames = [np.full((16, 16, 3), 8 + 4 * (index % 60), np.uint8) for index in range(240)]
    data = encode_clip(frames, container=container, options=options)
    assert levels(read(data, size=(16, 16))) == list(range(51, 60))


def test_the_last_part_suffices_where_the_file_can_be_entered() -> None:
    """240 frames, of which fewer than 120 may be decoded in the two passes."""
    data = encode_clip(counting(60) * 4, options={"g": "12", "preset": "ultrafast"})
    read(data, limits=MediaLimits(max_frames=120))


def test_a_file_that_ends_before_its_header_says_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    noise = np.random.default_rng(0).integers(0, 256, (192, 32, 32, 3), np.uint8)
    with VideoWriter(path, width=32, height=32, fps=24, output=Output(quality=9)) as writer:
        writer.write(noise)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    assert len(read(data, size=(32, 32))) == 9
    message = refused(data[: len(data) // 2]).message  # its end, which is what would be continued, is missing
    assert f"cut off: {len(data) // 2} of at least {len(data)} bytes" in message


@pytest.mark.parametrize(
    ("degrees", "mirrored", "expected"),
    [
        (0, False, "RGBW"), (90, False, "GWRB"), (180, False, "WBGR"), (270, False, "BRWG"),
        (0, True, "GRWB"), (90, True, "WGBR"), (180, True, "BWRG"), (270, True, "RBGW"),
    ],
)  # fmt: skip
def test_rotation_metadata(degrees: int, mirrored: bool, expected: str) -> None:
    data = encode_clip([quadrants()] * 3, rotation=(degrees, mirrored))
    size = (64, 32) if degrees % 180 == 0 else (32, 64)
    assert corners(read(data, size=size)[0]) == expected


@pytest.mark.parametrize(("degrees", "expected"), [(0, "RGBW"), (90, "GWRB"), (180, "WBGR"), (270, "BRWG")])
def test_rotation_beside_data_that_pyav_does_not_know(degrees: int, expected: str) -> None:
    """Frames of TIFF have EXIF beside them, as those of some cameras have."""
    data = encode_clip([quadrants()] * 3, container="mov", codec="tiff", pix_fmt="rgb24", rotation=(degrees, False))
    size = (32, 64) if degrees in (90, 270) else (64, 32)
    assert corners(read(data, size=size)[-1]) == expected


def test_a_recording_that_keeps_the_time_of_day_is_as_long_as_it_is() -> None:
    times = [Fraction(index, 24) + 30 * 3600 for index in range(24)]
    data = encode_clip(counting(24), container="matroska", times=times)
    assert levels(read(data, frames=3)) == [21, 22, 23]


@pytest.mark.parametrize("rotation", [0, 90])
def test_pixel_aspect(rotation: int) -> None:
    """A square drawn in pixels twice as wide as high is shown twice as wide."""
    frame = np.zeros((64, 64, 3), np.uint8)
    frame[:, 16:48] = 255
    data = encode_clip([frame] * 3, aspect=Fraction(2), rotation=(rotation, False))
    shown = read(data, size=(128, 64) if rotation == 0 else (64, 128))[0]
    line = shown[32] if rotation == 0 else shown[:, 32]
    assert (line[36:92] > 200).all()
    assert (line[:28] < 50).all()
    assert (line[100:] < 50).all()


@pytest.mark.parametrize("matrix", [1, 6, 9])
@pytest.mark.parametrize("full_range", [False, True])
def test_tagged_colours(matrix: int, full_range: bool) -> None:
    data = encode_clip([swatches()] * 2, matrix=matrix, full_range=full_range)
    check_swatches(read(data, size=(256, 32))[0])


@pytest.mark.parametrize(("height", "matrix"), [(32, 6), (720, 1)])
def test_untagged_colours_are_taken_for_601_or_709_by_size(height: int, matrix: int) -> None:
    frame = np.resize(swatches(), (height, 256, 3))
    data = encode_clip([frame] * 2, matrix=matrix, container="matroska", codec="ffv1")
    untagged = data.replace(b"\x55\xb1\x81" + bytes([matrix]), b"\x55\xb1\x81\x02")
    assert untagged != data
    check_swatches(read(untagged, size=(256, height))[0][:32])


def check_swatches(frame: Frame) -> None:
    seen = frame[16, 16::32].astype(int)
    assert np.abs(seen - COLOURS).max() <= 4, seen


def framed() -> Frame:
    """Green, in a margin of red: 24 pixels left and right, 16 above and below."""
    frame = np.full((96, 128, 3), (255, 0, 0), np.uint8)
    frame[16:80, 24:104] = (0, 200, 0)
    return frame


def of_mp4() -> bytes:
    """With a clean aperture of 80x64 in the middle."""
    data = bytearray(encode_clip([framed()] * 3))
    at = data.find(b"avc1", data.find(b"stsd")) - 4
    size = int.from_bytes(data[at : at + 4], "big")
    data[at + size : at + size] = struct.pack(">I4s8i", 40, b"clap", 160, 2, 64, 1, 0, 1, 0, 1)
    at = 0
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"):
        while data[at + 4 : at + 8] != name:
            at += int.from_bytes(data[at : at + 4], "big")
        data[at : at + 4] = (int.from_bytes(data[at : at + 4], "big") + 40).to_bytes(4, "big")
        at += 16 if name == b"stsd" else 8
    return bytes(data)


def of_matroska() -> bytes:
    """With 16 rows above and 24 columns on the left left out: in place of the display's unit and the colors."""
    data = encode_clip([framed()] * 3, container="matroska")
    cut = data.replace(bytes.fromhex("54b281 04 55b084 55b98101"), bytes.fromhex("54bb81 10 54cc81 18 ec8100"), 1)
    assert cut != data
    return cut


@pytest.mark.parametrize(("make", "box"), [(of_mp4, (24, 16, 104, 80)), (of_matroska, (24, 16, 128, 96))])
def test_margins_that_are_not_to_be_shown_are_cut(make: Callable[[], bytes], box: tuple[int, int, int, int]) -> None:
    warnings: list[str] = []
    size = {"width": box[2] - box[0], "height": box[3] - box[1]}
    shown = read_video(make(), "video", fps=24, frames=1, warnings=warnings, **size)[0]
    assert np.abs(shown[32, 40].astype(int) - (0, 200, 0)).max() <= 4
    assert shown[:16, :16, 0].max() < 128
    assert warnings == [f"video of 128x96 was cut to the part that it says is shown: {box}"]


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_animated_pictures_are_clips(form: str) -> None:
    pictures = [Image.fromarray(frame) for frame in counting(12)]
    buffer = io.BytesIO()
    options = {"lossless": True} if form == "WEBP" else {}
    pictures[0].save(buffer, form, save_all=True, append_images=pictures[1:], duration=50, **options)  # type: ignore[arg-type]
    assert levels(read(buffer.getvalue(), fps=20)) == list(range(3, 12))
    assert levels(read(buffer.getvalue(), fps=10, frames=4)) == [5, 7, 9, 11]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF"])
def test_still_pictures_are_not_clips(form: str) -> None:
    assert "pass it where a picture is taken" in refused(encode_picture(quadrants(), form)).message


def test_files_without_pictures_that_move() -> None:
    sound = io.BytesIO()
    with av.open(sound, "w", format="mp4") as file:
        stream = file.add_stream("aac", rate=16000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        samples.sample_rate = 16000
        for _ in range(4):
            file.mux(stream.encode(samples))
        file.mux(stream.encode(None))
    assert "no video track" in refused(sound.getvalue()).message
    assert "not a picture or clip" in refused(b"").message


def test_damaged_clips() -> None:
    data = encode_clip(counting(30))
    assert "moov" in str(data)
    assert "cut off" in refused(data[: data.index(b"moov") - 4]).message
    for box in (b"trak", b"stsd"):
        assert "cut off" in refused(data[: data.index(box) + 30]).message
    start = data.index(b"mdat") + 4
    blank = data[:start] + bytes(data.index(b"moov") - 4 - start) + data[data.index(b"moov") - 4 :]
    assert "no frame that can be decoded" in refused(blank).message


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["mp4", "matroska", "mpegts", "avi"]), st.data())
def test_damaged_bytes_give_frames_or_a_media_error(container: str, draw: st.DataObject) -> None:
    data = bytearray(encode_clip(counting(4), container=container))
    for _ in range(draw.draw(st.integers(1, 8))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    with suppress(MediaError):
        read(bytes(data))


def test_limits() -> None:
    data = encode_clip(counting(48))
    for limits in (
        MediaLimits(max_duration_s=1),
        MediaLimits(max_frames=20),
        MediaLimits(max_pixels=64 * 48 - 1),
        MediaLimits(max_decode_s=0),
    ):
        assert refused(data, limits).status == 413
    assert "at least 16 pixels" in refused(encode_clip([np.zeros((8, 64, 3), np.uint8)] * 2)).message
    gif = encode_clip(counting(48), container="gif", codec="gif", pix_fmt="gray")
    for limits in (MediaLimits(max_duration_s=1), MediaLimits(max_frames=20), MediaLimits(max_decode_s=0)):
        assert refused(gif, limits).status == 413


@pytest.mark.parametrize("name", ["bikes.mp4", "carphone_pristine.mp4"])
def test_real_clips(name: str) -> None:
    data = real_clip(name)
    frames = read(data, size=(320, 192))
    with av.open(io.BytesIO(data)) as file:
        last = list(file.decode(video=0))[-1].to_ndarray(format="rgb24")
    assert len(frames) == 9
    assert frames[-1].mean() == pytest.approx(last.mean(), abs=12)
    assert np.abs(frames[-1].astype(int) - frames[-2]).mean() < 30
    assert frames[-1].std() > 20


WHOLE = {
    "matroska": {"container": "matroska"},
    "live matroska": {"container": "matroska", "muxer": {"live": "1"}},
    "webm": {"container": "webm", "codec": "vp8"},
    "mpegts": {"container": "mpegts"},
    "flv": {"container": "flv", "codec": "flv"},
    "avi": {"container": "avi", "codec": "mpeg4"},
    "ogg": {"container": "ogg", "codec": "vp8"},
    "asf": {"container": "asf", "codec": "wmv2"},
    "yuv4mpegpipe": {"container": "yuv4mpegpipe", "codec": "rawvideo"},
    "fragmented mp4": {"muxer": {"movflags": "frag_keyframe+empty_moov"}},
}


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("share", [0.9, 0.6])
def test_what_is_shorter_than_it_says_is_cut_off(kind: str, share: float) -> None:
    noise = np.random.default_rng(5)
    frames = [noise.integers(0, 255, (48, 64, 3)).astype(np.uint8) for _ in range(20)]
    data = encode_clip(frames, **WHOLE[kind])  # type: ignore[arg-type]
    assert len(read(data)) == 9
    length = int(len(data) * share)
    length += length % 188 == 0  # a stream of packets that ends with one cannot be told from a whole one
    assert "cut off" in refused(data[:length]).message


@pytest.mark.parametrize("kind", [kind for kind in WHOLE if kind not in ("live matroska", "mpegts")])
def test_what_follows_a_whole_clip_is_ignored(kind: str) -> None:
    data = encode_clip(counting(12), **WHOLE[kind])  # type: ignore[arg-type]
    for junk in (b"\0" * 100, b"\xff" * 1000, bytes(range(256)), b"\n"):
        assert levels(read(data + junk)) == list(range(3, 12))


@pytest.mark.parametrize("kind", ["matroska", "mpegts"])
def test_clips_one_after_another_in_a_file_are_read(kind: str) -> None:
    data = encode_clip(counting(12), **WHOLE[kind])  # type: ignore[arg-type]
    assert levels(read(data + data))[-1] == 11


def test_a_stream_spliced_from_two_clocks_is_read_over_the_splice() -> None:
    first = encode_clip(counting(24), container="mpegts")
    later = [Fraction(3600) + Fraction(index, 24) for index in range(24)]
    second = encode_clip(counting(24)[::-1], container="mpegts", times=later)
    frames = read(first + second, frames=30)
    assert levels(frames)[-24:] == list(range(23, -1, -1))
    assert levels(frames)[:6] == [18, 19, 20, 21, 22, 23]


def test_a_clip_whose_end_cannot_be_decoded_is_refused() -> None:
    whole = encode_clip(counting(48) + counting(48), codec="mpeg4", container="matroska", options={"g": "24"})
    noise, file = np.random.default_rng(3), io.BytesIO()
    with av.open(io.BytesIO(whole)) as source, av.open(file, "w", format="matroska") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for index, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
            made = packet if index < 48 else av.Packet(noise.bytes(packet.size))
            made.pts, made.dts, made.time_base, made.stream = packet.pts, packet.dts, packet.time_base, stream
            target.mux(made)
    assert "last 2.0 s cannot be decoded" in refused(file.getvalue()).message


def test_a_portrait_clip_on_a_landscape_frame_is_told_of() -> None:
    frames = [np.full((160, 90, 3), 50, np.uint8)] * 3
    for size, told in (((160, 90), 1), ((90, 160), 0), ((96, 160), 0)):
        warnings: list[str] = []
        data = encode_clip(frames)
        read_video(data, "video", width=size[0], height=size[1], fps=24, frames=3, warnings=warnings)
        assert len(warnings) == told
        if told:
            assert "video of 90x160 was cropped to its middle: 32% of it is seen at 160x90" in warnings[0]


def test_the_first_frames_cost_what_they_cost() -> None:
    data = encode_clip([frame for _ in range(20) for frame in counting(48)], rate=Fraction(24))
    few = MediaLimits(max_frames=60)
    for fps, frames, expected in ((24, 9, list(range(9))), (12, 5, [0, 2, 4, 6, 8]), (24, 1, [0])):
        read_first = read_video(data, "video", width=64, height=48, fps=fps, frames=frames, keep="first", limits=few)
        assert levels(read_first) == expected
    assert refused(data[: len(data) // 2], few).status == 422
