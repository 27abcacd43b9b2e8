"""From pixels of any described color space to sRGB, which is what models are trained on and screens show.

Color spaces are told by two code points of ITU-T H.273 (CICP), as video, AVIF, HEIF and PNG carry them:

- primaries: 1 BT.709 and sRGB, 9 BT.2020, 11 DCI-P3, 12 Display P3; the matrices follow from the chromaticities of the
  tables of H.273;
- transfer: 16 PQ and 18 HLG by ITU-R BT.2100, 13 sRGB by IEC 61966-2-1, 8 linear, 4, 5 and 17 powers.

High dynamic range is brought down so that its reference white (203 cd/m2, ITU-R BT.2408) becomes white: what is darker
keeps its brightness, what is brighter is compressed into the last tenth, its hue kept.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]

PQ, HLG = 16, 18
BT2020, DCI_P3, DISPLAY_P3 = 9, 11, 12
_UNSPECIFIED = 2
_SRGB_TRANSFER = 13
_LINEAR = 8
_POWERS = {4: 2.2, 5: 2.8, 17: 2.6}
_REFUSED_PRIMARIES, _REFUSED_TRANSFERS = {10: "CIE XYZ"}, {9: "logarithms of light", 10: "logarithms of light"}
_REFERENCE_WHITE = 203.0
_PQ_PEAK, _HLG_PEAK = 10000.0, 1000.0
_KNEE = 0.9
_ROWS = 128
"""Worked on at a time, so that a large picture does not take many times its size."""
_VIDEO_DECODING, _VIDEO_ENCODING = 2.4, 2.3
"""Powers for video of a wide gamut but of ordinary brightness. It is made to be shown with 2.4 (ITU-R BT.1886). Shown
as sRGB it would have to be encoded with about 2.2; but clips of BT.709 are taken as they are, which is 2.4 again. Half
way between, grays differ from either by at most 4 of 255 levels."""

Chromaticities = tuple[tuple[float, float], ...]
"""x and y of red, green, blue and white."""
_CHROMATICITIES: dict[int, Chromaticities] = {
    1: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), (0.3127, 0.3290)),
    BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), (0.3127, 0.3290)),
    DCI_P3: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.314, 0.351)),
    DISPLAY_P3: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.3127, 0.3290)),
}
ADOBE_RGB: Chromaticities = ((0.640, 0.330), (0.210, 0.710), (0.150, 0.060), (0.3127, 0.3290))
ADOBE_RGB_POWER = 563 / 256
_NAMES = {BT2020: "BT.2020", DCI_P3: "DCI-P3", DISPLAY_P3: "Display P3", PQ: "PQ", HLG: "HLG", _LINEAR: "linear light"}


def needs_conversion(primaries: int, transfer: int) -> bool:
    """Whether pixels so described are not shown right when they are taken for sRGB."""
    return _primaries(primaries) != 1 or transfer in (PQ, HLG, _LINEAR, *_POWERS)


def refused(primaries: int, transfer: int) -> str | None:
    """What pixels so described are, where they cannot be shown."""
    return _REFUSED_PRIMARIES.get(primaries) or _REFUSED_TRANSFERS.get(transfer)


def conversion_words(primaries: int, transfer: int) -> str:
    """What `to_srgb` does, in words that go after "was"."""
    space = _NAMES.get(_primaries(primaries), "BT.709")
    if transfer in (PQ, HLG):
        return f"tone-mapped from HDR ({_NAMES[transfer]}, {space}) to SDR"
    if transfer in (_LINEAR, *_POWERS):
        return f"converted from {space}, {_NAMES.get(transfer, 'another gamma')}, to sRGB"
    return f"converted from {space} colors to sRGB"


def to_srgb(pixels: NDArray[np.uint16], primaries: int, transfer: int) -> NDArray[np.uint8]:
    """Pixels uint16 RGB `[H, W, 3]`, full range, to uint8 sRGB of the same shape."""
    made = np.empty(pixels.shape, np.uint8)
    for top in range(0, len(pixels), _ROWS):
        made[top : top + _ROWS] = _to_srgb(pixels[top : top + _ROWS], _primaries(primaries), transfer)
    return made


def from_power(
    pixels: NDArray[np.uint8], exponent: float | None, chromaticities: Chromaticities | None = None
) -> NDArray[np.uint8]:
    """Pixels uint8 RGB `[H, W, 3]` to sRGB, as PNG's gAMA and cHRM describe them.

    Args:
        pixels: What is stored.
        exponent: Their light is their value to this power; None: as sRGB has it.
        chromaticities: What they mix; None: as sRGB.
    """
    codes = np.linspace(0, 1, 256)
    light: Float = _decoding(_SRGB_TRANSFER, False)[::257] if exponent is None else (codes**exponent).astype(np.float32)
    made = np.empty_like(pixels)
    for top in range(0, len(pixels), _ROWS):
        some = light[pixels[top : top + _ROWS]]
        if chromaticities is not None:
            some = (some @ _to_bt709(chromaticities).T).clip(0, 1)
        made[top : top + _ROWS] = np.rint(255 * _srgb_encoded(some))
    return made


def are_others(chromaticities: Chromaticities) -> bool:
    """Whether these mix other colors than sRGB's do, and such as can be: what cannot be is taken for sRGB."""
    (rx, ry), (gx, gy), (bx, by), _ = chromaticities
    spans = abs((gx - rx) * (by - ry) - (bx - rx) * (gy - ry)) > 0.01
    possible = spans and all(0 <= x <= 1 and 0 < y <= 1 for x, y in chromaticities)
    return possible and bool(np.abs(np.subtract(chromaticities, _CHROMATICITIES[1])).max() > 0.005)


def _primaries(code: int) -> int:
    """Codes that are not known here, those of standard definition among them, are shown as BT.709."""
    return code if code in _CHROMATICITIES else 1


def _to_srgb(pixels: NDArray[np.uint16], primaries: int, transfer: int) -> NDArray[np.uint8]:
    wide = primaries == BT2020 and transfer not in (PQ, HLG, _SRGB_TRANSFER, _LINEAR, *_POWERS)
    light = _decoding(transfer, wide)[pixels]
    if transfer == HLG:
        # The opto-optical transfer function of BT.2100 for a screen of 1,000 cd/m2, whose system gamma is 1.2.
        luminance = light @ np.array([0.2627, 0.6780, 0.0593], np.float32)
        light *= (_HLG_PEAK / _REFERENCE_WHITE) * np.maximum(luminance, 1e-9)[..., None] ** np.float32(0.2)
    if primaries != 1:
        light = light @ _to_bt709(_CHROMATICITIES[primaries]).T
    np.maximum(light, 0, out=light)
    if transfer in (PQ, HLG):
        brightest = np.maximum(light.max(axis=-1, keepdims=True), 1e-9)
        over = np.maximum((brightest - _KNEE) / (1 - _KNEE), 0)
        light *= np.where(over > 0, _KNEE + (1 - _KNEE) * over / (1 + over), brightest) / brightest
    np.minimum(light, 1, out=light)
    made: NDArray[np.uint8] = _encoding(wide)[np.rint(light * 65535).astype(np.uint16)]
    return made


@cache
def _decoding(transfer: int, wide: bool) -> Float:
    """The light of each of the 65,536 codes: 1 is the display's white, 203 cd/m2 for PQ; of HLG, the scene's light."""
    code = np.linspace(0, 1, 65536)
    if transfer == PQ:  # SMPTE ST 2084, in BT.2100 table 4
        m1, m2, c1, c2, c3 = 1305 / 8192, 2523 / 32, 107 / 128, 2413 / 128, 2392 / 128
        power = code ** (1 / m2)
        light = _PQ_PEAK / _REFERENCE_WHITE * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)
    elif transfer == HLG:  # BT.2100 table 5, the inverse of its OETF
        a = 0.17883277
        b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
        light = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
    elif transfer == _LINEAR:
        light = code
    elif transfer in _POWERS:
        light = code ** _POWERS[transfer]
    elif wide:
        light = code**_VIDEO_DECODING
    else:
        light = np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)
    return light.astype(np.float32)


@cache
def _encoding(wide: bool) -> NDArray[np.uint8]:
    """The code, 0 to 255, of each of 65,536 amounts of light."""
    light = np.linspace(0, 1, 65536, dtype=np.float32)
    code = light ** np.float32(1 / _VIDEO_ENCODING) if wide else _srgb_encoded(light)
    return np.rint(255 * code).astype(np.uint8)


def _srgb_encoded(light: Float) -> Float:
    encoded: Float = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** np.float32(1 / 2.4) - 0.055)
    return encoded.astype(np.float32)


@cache
def _to_bt709(chromaticities: Chromaticities) -> Float:
    """The matrix from linear RGB of some primaries to that of BT.709, white to white."""
    matrix = np.linalg.inv(_to_xyz(_CHROMATICITIES[1])) @ _to_xyz(chromaticities)
    made: Float = (matrix / matrix.sum(axis=1, keepdims=True)).astype(np.float32)
    return made


def _to_xyz(chromaticities: Chromaticities) -> NDArray[np.float64]:
    (*colors, white) = chromaticities
    x, y = np.array(colors).T
    columns = np.stack([x / y, np.ones(3), (1 - x - y) / y])
    # Each color as bright as it takes for all together to be white.
    of_white = np.array([white[0] / white[1], 1, (1 - white[0] - white[1]) / white[1]])
    return columns * np.linalg.solve(columns, of_white)
