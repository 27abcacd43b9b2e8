"""What a file is, from its first bytes alone: never from its name, and never by trying one reader after another.

Only what is listed here is opened, each clip with the one demuxer its first bytes call for. Formats that lead to other
files or hosts (playlists, scripts, session descriptions, subtitles, numbered pictures) are not listed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Kind:
    """`what` a file is, and the `name` of its reader: a Pillow format, or an FFmpeg demuxer."""

    what: Literal["picture", "clip", "unsupported"]
    name: str


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


def _by_brand(data: bytes) -> Kind:
    # The major brand may be generic (mif1) and a compatible one tell; an AVIF names itself in either place.
    size = min(int.from_bytes(data[:4], "big"), 256)
    brands = [data[8:12], *(data[i : i + 4] for i in range(16, size - 3, 4))]
    for brand in brands:
        if brand in _PICTURE_BRANDS:
            return _PICTURE_BRANDS[brand]
    if brands[0] in _HEIF_BRANDS:
        return Kind("unsupported", "HEIC")
    return Kind("clip", "mov")
