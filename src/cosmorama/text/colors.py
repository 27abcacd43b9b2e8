"""Color names for pixels: the nearest of a basic vocabulary in OKLab, where distance is close to what eyes see."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# Several samples per name, because a name covers a long stretch from its dark to its pale shades.
_SAMPLES = {
    "black": "000000 0c0c0c 1a1a1a 262626 08081e",
    "grey": "303030 3c3c3c 4b4b4b 5a5a5a 696969 787878 878787 969696 a5a5a5 b4b4b4 c3c3c3 d0d0d0",
    "white": "e2e2e2 ececec f5f5f5 ffffff f5f5fa",
    "red": "ff0000 d91414 a01010 6e0808 e04848 d23a3a",
    "orange": "ff8000 f28014 e06a10 ffa040 c85a08 b05608 ffa500",
    "yellow": "ffff00 f2d11a ffe680 c8b400 9a8708 fff59d ffd700",
    "green": "00ff00 1aa626 008000 0a500a 90ee90 548c40 6b8e23 556b2f 2e5a2e 3a5634 2a3f26 9acd32",
    "teal": "008080 006666 20a0a0 3c8c8c",
    "cyan": "00ffff 40e0d0 00cccc a0f0f0",
    "blue": "0000ff 1a40d9 000080 87ceeb 4169e1 5c78a3 a8c8f0 6090c0 2f3d54 3b4a63 cfe3fa",
    "purple": "800080 8026b3 4b0082 b080d0 9370db c8a8e8",
    "pink": "ffc0cb ff69b4 ff1493 e080a0 ff00ff f5a0b8",
    "brown": "8b4513 a0522d 654321 a0703c c29460 d2b48c 3d2614 8b6b3a 55442f",
}
COLOR_NAMES = tuple(_SAMPLES)
NEUTRAL = frozenset({"black", "grey", "white"})

_TO_LMS = np.array(
    [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
     [0.0883024619, 0.2817188376, 0.6299787005]], np.float32,
)  # fmt: skip
_TO_LAB = np.array(
    [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
     [0.0259040371, 0.7827717662, -0.8086757660]], np.float32,
)  # fmt: skip
_STEPS = np.arange(256) / 255
_LINEAR = np.where(_STEPS <= 0.04045, _STEPS / 12.92, ((_STEPS + 0.055) / 1.055) ** 2.4).astype(np.float32)


def oklab(rgb: NDArray[np.uint8]) -> Floats:
    """sRGB bytes [..., 3] as OKLab [..., 3] (https://bottosson.github.io/posts/oklab): lightness 0 to 1, then a, b."""
    lab: Floats = np.cbrt(_LINEAR[rgb] @ _TO_LMS.T) @ _TO_LAB.T
    return lab


_POINTS = np.array([[*bytes.fromhex(code)] for codes in _SAMPLES.values() for code in codes.split()], np.uint8)
_POINTS_LAB = oklab(_POINTS)
_POINT_NAMES = np.array([i for i, codes in enumerate(_SAMPLES.values()) for _ in codes.split()])


def nearest_names(lab: Floats) -> NDArray[np.intp]:
    """Indices into `COLOR_NAMES`, for OKLab values [..., 3]."""
    # |x - p|^2 without |x|^2, which is the same for every point p.
    distance = (_POINTS_LAB**2).sum(1) - 2 * lab @ _POINTS_LAB.T
    names: NDArray[np.intp] = _POINT_NAMES[distance.argmin(-1)]
    return names


def color_name(lab: Floats) -> str:
    """The plain name of one OKLab color."""
    return COLOR_NAMES[int(nearest_names(lab))]


def shaded_name(lab: Floats) -> str:
    """The name with "dark" or "pale" where it is clearly so: "dark green", "pale blue"."""
    name, lightness, chroma = color_name(lab), float(lab[0]), float(np.hypot(lab[1], lab[2]))
    if name in ("black", "white"):
        return name
    if lightness < (0.48 if name == "grey" else 0.42):
        return f"dark {name}"
    pale = lightness > 0.76 if name == "grey" else lightness > 0.78 and chroma < 0.12
    return f"pale {name}" if pale else name
