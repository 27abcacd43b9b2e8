"""What a frame shows, measured from its pixels: the color of the object and of the floor."""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray

from cosmorama.text.scene_language import COLORS, FLOORS, Color, Floor
from microcosm.simulate import FLOOR_RGB, OBJECT_RGB

VIVID = 0.62  # objects are more saturated than any floor or sky
_LEAST_PIXELS = 0.004
HUES = np.array([colorsys.rgb_to_hsv(*OBJECT_RGB[color])[0] for color in COLORS])


def object_color(frame: NDArray[np.uint8]) -> Color | None:
    """The color of the largest vivid area of a frame uint8 [h, w, 3]; None if less than 0.4 % of it is vivid."""
    pixels = frame.reshape(-1, 3).astype(np.float64) / 255
    largest, smallest = pixels.max(1), pixels.min(1)
    vivid = pixels[(largest > 0.2) & ((largest - smallest) / np.maximum(largest, 1e-6) > VIVID)]
    if len(vivid) < _LEAST_PIXELS * len(pixels):
        return None
    hues = np.array([colorsys.rgb_to_hsv(*pixel)[0] for pixel in vivid])
    distance = np.abs(hues[:, None] - HUES)
    nearest = np.minimum(distance, 1 - distance).argmin(1)
    return COLORS[int(np.bincount(nearest, minlength=len(COLORS)).argmax())]


def floor_kind(frame: NDArray[np.uint8]) -> Floor:
    """The floor whose chromaticity is nearest to the median of the lowest tenth of a frame uint8 [h, w, 3]."""
    strip = frame[-max(1, len(frame) // 10) :].reshape(-1, 3).astype(np.float64)
    color = _chromaticity(np.median(strip, axis=0))
    return min(FLOORS, key=lambda floor: float(np.square(color - _chromaticity(np.array(FLOOR_RGB[floor]))).sum()))


def _chromaticity(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = rgb / max(float(rgb.sum()), 1e-6)
    return shares
