"""Files are known by their first bytes, and only the listed ones are opened."""

from __future__ import annotations

import re
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmorama.errors import MediaError
from cosmorama.media.read import read_image, read_video
from cosmorama.media.sniff import sniff

HOSTILE = {
    "hls playlist": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1/secret.ts\n#EXT-X-ENDLIST\n",
    "concat script": b"ffconcat version 1.0\nfile /etc/passwd\n",
    "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "dash manifest": b'<?xml version="1.0"?><MPD><BaseURL>file:///etc/</BaseURL></MPD>',
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "subtitles": b"1\n00:00:01,000 --> 00:00:02,000\nhello\n",
    "webvtt": b"WEBVTT\n\n00:01.000 --> 00:02.000\nhello\n",
    "text": b"this is a text file that someone called clip.mp4" * 20,
    "html error page": b"<!doctype html><html><body>404</body></html>",
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n",
    "pdf": b"%PDF-1.7\n",
    "raw h264": b"\x00\x00\x00\x01\x67\x42\x00\x0a" * 40,
    "zip": b"PK\x03\x04" + bytes(100),
    "imf/lavfi": b"movie=/etc/passwd",
    "zeros": bytes(5000),
    "mp3": b"ID3\x04\x00" + bytes(200),
    "wav": b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(100),
    "ftyp only": b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isommp41",
    "huge ftyp": b"\xff\xff\xff\xffftypisom",
    "moov of garbage": b"\x00\x00\x10\x00moov" + b"\xa5" * 5000,
    "matroska of garbage": b"\x1aE\xdf\xa3" + b"\xa5" * 5000,
    "transport stream of nothing": (b"\x47\x1f\xff\x10" + bytes(184)) * 50,
    "program stream of nothing": b"\x00\x00\x01\xba" + bytes(5000),
    "avi of nothing": b"RIFF\xff\xff\xff\x7fAVI LIST" + bytes(200),
    "ogg of nothing": b"OggS" + bytes(500),
    "flv of nothing": b"FLV\x01\x05\x00\x00\x00\x09" + bytes(100),
    "asf of nothing": bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c") + bytes(200),
    "y4m of nothing": b"YUV4MPEG2 W64 H64 F25:1\n",
    "y4m too large": b"YUV4MPEG2 W60000 H60000 F25:1\nFRAME\n",
    "one byte": b"\x00",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_by_both_readers(name: str) -> None:
    with pytest.raises(MediaError) as caught:
        read_video(HOSTILE[name], "video", width=32, height=32, fps=24, frames=9)
    assert caught.value.field == "video"
    with pytest.raises(MediaError):
        read_image(HOSTILE[name], "image", width=32, height=32)


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"\x00\x00\x00\x1cftypavif\x00\x00\x00\x00mif1avif", "AVIF"),
        (b"\x00\x00\x00\x1cftypmif1\x00\x00\x00\x00mif1avif", "AVIF"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "HEIF"),
        (b"\x00\x00\x00\x14ftypqt  \x00\x00\x00\x00qt  ", "mov"),
        (b"\x00\x00\x00\x08wide\x00\x00\x00\x00mdat", "mov"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "WEBP"),
        ((b"\x00\x00\x00\x00\x47" + bytes(187)) * 4, "mpegts"),
    ],
)
def test_kinds_that_need_a_closer_look(start: bytes, name: str) -> None:
    kind = sniff(start)
    assert kind is not None
    assert kind.name == name


@given(st.binary(max_size=300) | st.binary(max_size=40).map(lambda rest: b"\x00\x00\x00\x20ftyp" + rest))
def test_sniffing_never_fails(data: bytes) -> None:
    sniff(data)


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"\xff\x0a", "a JPEG XL picture"),
        (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "a JPEG XL picture"),
        (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "a JPEG 2000 picture"),
        (b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
        (b"8BPS\x00\x01", "a Photoshop document"),
        (b"v/1\x01", "an OpenEXR picture"),
        (b"\x00\x00\x00\x18ftypcrx ", "a camera's raw file"),
        (b"II*\x00\x10\x00\x00\x00CR\x02\x00", "a camera's raw file"),
        (HOSTILE["svg"], "an SVG drawing"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<svg>", "an SVG drawing"),
        (b"\n <!DOCTYPE html><html>", "an HTML page"),
        (HOSTILE["wav"], "a sound (WAV)"),
        (HOSTILE["hls playlist"], "a playlist, not a clip"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS, not the file itself"),
    ],
)
def test_what_is_often_sent_and_not_read_is_refused_by_name(start: bytes, name: str) -> None:
    for read in (read_image, partial(read_video, fps=24, frames=1)):
        with pytest.raises(MediaError, match=f"is {re.escape(name)}"):
            read(start + bytes(600), "image", width=32, height=32)
