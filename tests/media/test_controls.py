"""Control clips computed from a clip."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cosmorama.errors import InvalidRequestError
from cosmorama.media.controls import EDGE_THRESHOLDS, blurred, computed, edges
from cosmorama.request import Control

pytest.importorskip("cv2", reason="edges need OpenCV (pip install '.[cosmos]')")


def square() -> NDArray[np.uint8]:
    """A bright square with fine noise on a dark ground, two frames of 64 x 96."""
    frames = np.random.default_rng(0).integers(40, 60, (2, 64, 96, 3))
    frames[:, 16:48, 32:64] += 160
    return frames.astype(np.uint8)


def test_edges_are_white_outlines_and_nothing_else() -> None:
    outlines = edges(square())
    assert outlines.shape == (2, 64, 96, 3)
    assert set(np.unique(outlines)) == {0, 255}
    assert np.array_equal(outlines[..., 0], outlines[..., 2])
    lit = outlines[0, :, :, 0] > 0
    assert 100 <= lit.sum() <= 160  # about the outline of 4 x 32 pixels
    assert not lit[20:44, 36:60].any()
    assert not lit[:, :28].any()


def test_a_higher_preset_leaves_fewer_edges() -> None:
    noise = np.random.default_rng(0).integers(0, 90, (1, 64, 96, 3)).astype(np.uint8)
    presets = [preset for preset in EDGE_THRESHOLDS if preset != "none"]
    counts = [int((edges(noise, preset) > 0).sum()) for preset in presets]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]


def test_blur_keeps_shapes_and_loses_detail() -> None:
    clip = square()
    soft = blurred(clip)
    assert soft.shape == clip.shape
    assert soft.dtype == np.uint8
    assert soft[0, 24:40, 40:56].mean() > soft[0, :, :16].mean() + 100
    assert soft[0, :, :16].std() < clip[0, :, :16].std() / 2


def test_without_opencv_a_control_clip_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    modules: Any = sys.modules
    monkeypatch.setitem(modules, "cv2", None)
    with pytest.raises(InvalidRequestError, match=r"this server has no cv2 to compute one"):
        computed(Control("edge"), square())
