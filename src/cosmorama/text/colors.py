"""What colors are called: the nearest of some samples for each name."""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

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


def _lab(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    return cast("NDArray[np.float32]", cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2LAB))


_POINTS = _lab(np.array([[[*bytes.fromhex(code)] for codes in _SAMPLES.values() for code in codes.split()]], np.uint8))
_POINT_NAMES = np.array([i for i, codes in enumerate(_SAMPLES.values()) for _ in codes.split()])


def nearest_names(rgb: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Indices into `COLOR_NAMES`, [h, w], for sRGB bytes [h, w, 3]."""
    points = _POINTS[0]
    # |x - p|^2 without |x|^2, which is the same for every point p.
    distance = (points**2).sum(1) - 2 * _lab(rgb) @ points.T
    return cast("NDArray[np.intp]", _POINT_NAMES[distance.argmin(-1)])
