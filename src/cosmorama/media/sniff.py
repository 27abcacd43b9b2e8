"""What a file is, from its first bytes alone: never from its name, and never by trying one reader after another.

Only what is listed here is opened, each clip with the one demuxer its first bytes call for. Formats that lead to other
files or hosts (playlists, scripts, session descriptions, subtitles, numbered pictures) are not listed.
"""

from __future__ import annotations

import binascii
import re
import struct
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from cosmorama.errors import MediaError


@dataclass(frozen=True, slots=True)
class Kind:
    """`what` a file is, and the `name` of its reader: a Pillow format, or an FFmpeg demuxer."""

    what: Literal["picture", "clip"]
    name: str


_UNREAD: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\x0a", "a JPEG XL picture"),
    (4, b"JXL \r\n", "a JPEG XL picture"),
    (4, b"jP  \r\n", "a JPEG 2000 picture"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (0, b"8BPS", "a Photoshop document"),
    (0, b"v/1\x01", "an OpenEXR picture"),
    (0, b"#?R", "a Radiance HDR picture"),
    (0, b"qoif", "a QOI picture"),
    (0, b"\x00\x00\x01\x00", "an icon (ICO)"),
    (0, b"DDS ", "a DDS texture"),
    (0, b"II+\x00", "a BigTIFF picture"),
    (0, b"MM\x00+", "a BigTIFF picture"),
    (4, b"ftypcrx ", "a camera's raw file"),
    (8, b"CR\x02\x00", "a camera's raw file"),
    (0, b"FUJIFILMCCD-RAW", "a camera's raw file"),
    (8, b"WAVE", "a sound (WAV)"),
    (0, b"ID3", "a sound (MP3)"),
    (0, b"\xff\xfb", "a sound (MP3)"),
    (0, b"fLaC", "a sound (FLAC)"),
    (0, b".RMF", "a RealMedia clip"),
    (0, b"%PDF", "a PDF document"),
    (0, b"%!PS", "a PostScript document"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"\x1f\x8b", "compressed by gzip"),
    (0, b"#EXTM3U", "a playlist, not a clip"),
    (0, b"version https://git-lfs", "a pointer of Git LFS, not the file itself"),
)
_UNREAD_TEXTS = ((b"<!doctype html", "an HTML page"), (b"<html", "an HTML page"), (b"<svg", "an SVG drawing"))
"""What is often sent and not read, by its bytes at that place or its first tag, so that it can be called by name."""
CLIP_SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".ts", ".mpg", ".mpeg")
_PREFIXES: tuple[tuple[bytes, Kind], ...] = (
    (b"\x89PNG\r\n\x1a\n", Kind("picture", "PNG")),
    (b"\xff\xd8\xff", Kind("picture", "JPEG")),
    (b"GIF87a", Kind("picture", "GIF")),
    (b"GIF89a", Kind("picture", "GIF")),
    (b"II*\x00", Kind("picture", "TIFF")),
    (b"MM\x00*", Kind("picture", "TIFF")),
    (b"\x1aE\xdf\xa3", Kind("clip", "matroska")),
    (b"FLV\x01", Kind("clip", "flv")),
    (b"OggS", Kind("clip", "ogg")),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c", Kind("clip", "asf")),
    (b"YUV4MPEG2 ", Kind("clip", "yuv4mpegpipe")),
    (b"\x00\x00\x01\xba", Kind("clip", "mpeg")),
)
_PICTURE_BRANDS = {b"avif": Kind("picture", "AVIF"), b"avis": Kind("picture", "AVIF")}
_HEIF = Kind("picture", "HEIF")
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
_QUICKTIME_ATOMS = frozenset({b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"})
_TS_PACKETS = ((0, 188), (4, 192))
"""Where the first packet starts and how far apart they are: plain MPEG-TS, and with a time code (M2TS)."""


def sniff(data: bytes) -> Kind | None:
    """The kind of file that `data` is the start of, or None if it is no picture or clip that can be read."""
    for prefix, kind in _PREFIXES:
        if data.startswith(prefix):
            return kind
    if data[:4] == b"RIFF":
        return {b"WEBP": Kind("picture", "WEBP"), b"AVI ": Kind("clip", "avi")}.get(data[8:12])
    if data[4:8] == b"ftyp":
        return _by_brand(data)
    if data[4:8] in _QUICKTIME_ATOMS:
        return Kind("clip", "mov")
    if data[:2] == b"BM" and data[6:10] == b"\x00\x00\x00\x00":
        return Kind("picture", "BMP")
    for start, step in _TS_PACKETS:
        if len(data) >= start + 3 * step and all(data[start + i * step] == 0x47 for i in range(3)):
            return Kind("clip", "mpegts")
    return None


def may_be_clip(media: object) -> bool:
    """Whether media that nothing else names is a clip: by its contents, else by the name in its URL."""
    if isinstance(media, bytes):
        kind = sniff(media)
        return kind is not None and kind.what == "clip"
    text = str(media).strip()
    if text[:8].lower().startswith(("http://", "https://")):
        return is_clip_name(text)
    head = "".join(text[:2048].split())
    if head[:5].lower() == "data:":
        if head[5:11].lower() == "video/":
            return True
        head = head.partition(",")[2]
    try:
        return may_be_clip(binascii.a2b_base64(head[: len(head) // 4 * 4]))
    except ValueError:  # not base64; whoever fetches it says so
        return False


def is_clip_name(name: str, *more: str) -> bool:
    """Whether a URL or the name of a file ends like a clip's, or in one of the `more` suffixes."""
    try:
        return urlsplit(name[:4096]).path.lower().endswith((*CLIP_SUFFIXES, *more))
    except ValueError:
        return False


def known_kind(data: bytes, field: str, *, picture: bool = False) -> Kind:
    """The kind of file that `data` is the start of.

    Raises:
        MediaError: it is no picture or clip that can be read, or is a clip although it has to be a picture.
    """
    if (unread := _unread(data)) is not None:
        raise MediaError(field, f"is {unread}; send JPEG, PNG or WebP, or MP4 or WebM")
    kind = sniff(data)
    if picture and kind is not None and kind.what == "clip":
        raise MediaError(field, "is a video, not a picture; pass it where a video is taken")
    if kind is None:
        raise MediaError(field, "is not a picture or clip that can be read; send JPEG, PNG or WebP, or MP4 or WebM")
    return kind


def _unread(data: bytes) -> str | None:
    text = data[:1000].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    named = [what for at, start, what in _UNREAD if data.startswith(start, at)]
    named += [
        what for start, what in _UNREAD_TEXTS if text.startswith(start) or (text[:5] == b"<?xml" and start in text)
    ]
    return named[0] if named else None


def _by_brand(data: bytes) -> Kind:
    # The major brand may be generic (mif1) and a compatible one tell; an AVIF names itself in either place.
    size = min(int.from_bytes(data[:4], "big"), 256)
    brands = [data[8:12], *(data[i : i + 4] for i in range(16, size - 3, 4))]
    for brand in brands:
        if brand in _PICTURE_BRANDS:
            return _PICTURE_BRANDS[brand]
    if brands[0] in _HEIF_BRANDS:
        return _HEIF
    return Kind("clip", "mov")


def reach(data: bytes, demuxer: str) -> int:
    """How many bytes a clip has by its own structure, as far as that can be told: more than there are if it is cut off.

    Only the outermost parts are walked (boxes, elements, chunks, tags, pages, packets), each of which says its length.
    """
    walk = _WALKS.get(demuxer)
    return 0 if walk is None else walk(data)


def _boxes(data: bytes) -> int:
    at = 0
    while at + 8 <= len(data):
        size, start = int.from_bytes(data[at : at + 4], "big"), at
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8 or not data[at + 4 : at + 8].isalnum():  # 0: to the end of the file; else something that is no box
            return 0
        at = start + size
    return at


_EBML, _SEGMENT, _CLUSTER = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"
_TRACKS = b"\x16\x54\xae\x6b"
_PIXEL_CROP = re.compile(rb"\x54([\xaa\xbb\xcc\xdd])(?:\x81(.)|\x82(..))", re.DOTALL)


def aperture(data: bytes, demuxer: str, width: int, height: int) -> tuple[int, int, int, int] | None:
    """The part of a clip's frames that is to be shown, as (left, top, right, bottom) in pixels; None: all of them.

    A clean aperture (`clap`) of MP4 and MOV, or Matroska's PixelCrop: FFmpeg's decoders know of neither.
    """
    left = top = 0.0
    right, bottom = float(width), float(height)
    at = data.find(b"\0\0\0\x28clap") if demuxer == "mov" else -1
    if 0 <= at <= len(data) - 40:
        wide, high, across, down = (
            above / (below or 1) for above, below in struct.iter_unpack(">2i", data[at + 8 : at + 40])
        )
        left, top = (width - wide) / 2 + across, (height - high) / 2 + down
        right, bottom = left + wide, top + high
    elif demuxer == "matroska" and (at := data.find(_TRACKS)) >= 0:
        found = _PIXEL_CROP.findall(data[at : data.find(_CLUSTER, at)])
        cut = {side: int.from_bytes(short or long, "big") for side, short, long in found}
        left, top = cut.get(b"\xcc", 0), cut.get(b"\xbb", 0)
        right, bottom = width - cut.get(b"\xdd", 0), height - cut.get(b"\xaa", 0)
    box = round(left), round(top), round(right), round(bottom)
    sound = 0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height
    return box if sound and box != (0, 0, width, height) else None


_UNKNOWN_SIZE = -1


def _elements(data: bytes) -> int:
    at = 0
    while at < len(data):
        id_length = 9 - data[at].bit_length()
        if id_length > 4 or at + id_length >= len(data):
            return 0
        element = data[at : at + id_length]
        first = data[at + id_length]
        length = 9 - first.bit_length()
        if length > 8:
            return 0
        body = at + id_length + length
        size = int.from_bytes(data[at + id_length : body], "big") & ((1 << 7 * length) - 1)
        if size == (1 << 7 * length) - 1:
            size = _UNKNOWN_SIZE
        if size == _UNKNOWN_SIZE and element not in (_SEGMENT, _CLUSTER):
            return 0
        # A live recording does not know how long these become; their contents then follow like elements of their own.
        at = body if size == _UNKNOWN_SIZE else body + size
        if element == _SEGMENT and size != _UNKNOWN_SIZE and data[at : at + 4] != _EBML:
            return at  # whatever follows is not of this file
    return at


def _tags(data: bytes) -> int:
    at = 9
    while at + 4 < len(data):
        tag = at + 4
        if data[tag] & 0x1F not in (8, 9, 18):
            return 0
        at = tag + 11 + int.from_bytes(data[tag + 1 : tag + 4], "big")
    return at


def _chunks(data: bytes) -> int:
    at = 0
    while data[at : at + 4] == b"RIFF":  # more than one in files over a gigabyte
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if size in (0, 0xFFFFFFFF):
            return 0
        at += 8 + size + size % 2
    return at - 1 if at == len(data) + 1 else at


def _pages(data: bytes) -> int:
    last = data.rfind(b"OggS")
    segments = data[last + 27 : last + 27 + data[last + 26]] if last + 26 < len(data) else b""
    return last + 27 + (data[last + 26] + sum(segments) if last + 26 < len(data) else 1)


def _packets(data: bytes) -> int:
    for start, step in _TS_PACKETS:
        if len(data) >= start + 3 * step and all(data[start + i * step] == 0x47 for i in range(3)):
            last = (len(data) - 1) // step * step
            # What follows the last packet may also be something else, which players ignore.
            cut = len(data) % step and data[last + start : last + start + 1] == b"\x47"
            return last + step if cut else 0
    return 0


_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def _properties(data: bytes) -> int:
    at = data.find(_FILE_PROPERTIES, 0, 1 << 16)
    is_live = at < 0 or data[at + 88 : at + 89] not in (b"\0", b"\2")  # what a broadcast says of its length is nothing
    return 0 if is_live else int.from_bytes(data[at + 40 : at + 48], "little")


def _equal_frames(data: bytes) -> int:
    first = data.find(b"FRAME")
    step = data.find(b"FRAME", first + 5) - first
    if first < 0 or step <= 0 or data[first + 2 * step : first + 2 * step + 5] not in (b"FRAME", b""):
        return 0
    last = first + (len(data) - first) // step * step
    return last + step if data[last : last + 5] == b"FRAME" else 0


_WALKS = {
    "mov": _boxes,
    "matroska": _elements,
    "flv": _tags,
    "avi": _chunks,
    "ogg": _pages,
    "mpegts": _packets,
    "asf": _properties,
    "yuv4mpegpipe": _equal_frames,
}
