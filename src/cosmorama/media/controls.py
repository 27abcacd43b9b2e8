"""Control clips computed from a clip: edges and blur, as the Transfer models were trained on.

Thresholds and strengths are those of NVIDIA's Cosmos-Transfer: OpenCV's Canny detector, and a bilateral filter between
two reductions. Depth and segmentation need models of their own and are not computed here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cosmorama.errors import InvalidRequestError, Problem
from cosmorama.request import Control, ControlKind, Preset

Frames = NDArray[np.uint8]

EDGE_THRESHOLDS: dict[Preset, tuple[int, int]] = {
    "none": (100, 200),
    "very_low": (20, 50),
    "low": (50, 100),
    "medium": (100, 200),
    "high": (200, 300),
    "very_high": (300, 400),
}
"""Gradients at which an edge goes on and at which it begins: a high threshold leaves few edges."""
BLUR_REDUCTIONS: dict[Preset, tuple[int, int]] = {
    "none": (1, 1),
    "very_low": (1, 4),
    "low": (4, 4),
    "medium": (2, 10),
    "high": (1, 16),
    "very_high": (4, 16),
}
"""How many times smaller a picture is made before the bilateral filter, and after it."""
_BILATERAL_DIAMETER = 30 / 720
"""In short sides of the picture."""
_BILATERAL_SIGMAS = (150, 100)
"""Of color levels and of pixels."""


def computed(control: Control, clip: Frames) -> Frames:
    """The control clip that a request leaves to be computed.

    Args:
        control: What is asked for.
        clip: The request's video, uint8 `[T, H, W, 3]`.

    Returns:
        uint8 `[T, H, W, 3]`.

    Raises:
        InvalidRequestError: there is nothing to compute it with. `resolve` has refused kinds that are not among
            `COMPUTED_CONTROLS`, and requests without a video.
    """
    try:
        return _COMPUTED[control.kind](clip, control.preset)
    except ModuleNotFoundError as error:
        accepted = f"a control clip: this server has no {error.name} to compute one (pip install '.[serve]')"
        raise InvalidRequestError(Problem(f"controls.{control.kind}.source", None, accepted)) from error


def edges(clip: Frames, preset: Preset = "medium") -> Frames:
    """White outlines on black, uint8 `[T, H, W, 3]` like the clip."""
    import cv2

    low, high = EDGE_THRESHOLDS[preset]
    outlines = np.stack([cv2.Canny(frame, low, high) for frame in np.ascontiguousarray(clip)])
    return np.repeat(outlines[..., None], 3, axis=-1).astype(np.uint8)


def blurred(clip: Frames, preset: Preset = "medium") -> Frames:
    """Colors and large shapes without detail, uint8 `[T, H, W, 3]` like the clip."""
    import cv2

    if preset == "none":
        return clip
    before, after = BLUR_REDUCTIONS[preset]
    height, width = clip.shape[1:3]
    diameter = max(1, round(_BILATERAL_DIAMETER * min(height, width)))
    frames = []
    for frame in np.ascontiguousarray(clip):
        small = cv2.resize(frame, (max(1, width // before), max(1, height // before)), interpolation=cv2.INTER_AREA)
        smooth = cv2.bilateralFilter(small, diameter, *_BILATERAL_SIGMAS)
        whole = cv2.resize(smooth, (width, height), interpolation=cv2.INTER_LINEAR)
        tiny = cv2.resize(whole, (max(1, width // after), max(1, height // after)), interpolation=cv2.INTER_CUBIC)
        frames.append(cv2.resize(tiny, (width, height), interpolation=cv2.INTER_CUBIC))
    return np.stack(frames).astype(np.uint8)


_COMPUTED: dict[ControlKind, Callable[[Frames, Preset], Frames]] = {"edge": edges, "vis": blurred}
