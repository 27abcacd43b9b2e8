"""How fast the camera drives in a clip of the corridor, read off its pixels.

Every pixel is taken for a point of the corridor's walls or floor, whose distances the simulator knows. Forward motion
at v m/s then moves it away from the middle of the picture at v times a known speed, and v is the least-squares
solution of the brightness constancy equation (Lucas and Kanade, 1981) over all pixels and frames.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from cosmorama.world.microcosm.odometry import FOV_DEG, HALF_WIDTH_M
from microcosm.scenes.simulate import Frames

_EYE_M = 1.27  # above the floor
_MARGIN_PX = 3
_SMOOTHED = 2  # times


def speed_m_s(clip: Frames, fps: float) -> float:
    """Forward speed of the camera in a clip uint8 [T, h, w, 3]; about 0 for a picture that stands still."""
    light = _smooth(clip.astype(np.float64).mean(-1))
    now = (light[1:] + light[:-1]) / 2
    change = np.diff(light, axis=0) * fps
    down, right = np.gradient(now, axis=(1, 2))
    away_down, away_right = _flow(*clip.shape[1:3])
    along = away_down * down + away_right * right
    inner = (slice(None), slice(_MARGIN_PX, -_MARGIN_PX), slice(_MARGIN_PX, -_MARGIN_PX))
    along, change = along[inner], change[inner]
    return float(-(along * change).sum() / max(float((along**2).sum()), 1e-9))


def _flow(height: int, width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pixels per second (down, right), each [h, w], at 1 m/s."""
    focal_px = min(height, width) / 2 / math.tan(math.radians(FOV_DEG / 2))
    y, x = (np.arange(side)[:, None] - (side - 1) / 2 for side in (height, width))
    x = x.T
    nearness = np.maximum(np.abs(x) / HALF_WIDTH_M, y / _EYE_M) / focal_px  # one over the distance
    return y * nearness, x * nearness


def _smooth(light: NDArray[np.float64]) -> NDArray[np.float64]:
    for _ in range(_SMOOTHED):
        for axis in (1, 2):
            light = (np.roll(light, 1, axis) + 2 * light + np.roll(light, -1, axis)) / 4
    return light
