"""What each `model_mode` of Cosmos3 takes, and what it uses where a body does not say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from cosmorama.api.dialects.generator1 import MAX_FRAMES, MIN_FRAMES
from cosmorama.api.dialects.resolutions import COSMOS3, tier_of
from cosmorama.errors import Problem
from cosmorama.request import Mode

ModelMode = Literal[
    "text2image",
    "text2video",
    "image2video",
    "video2video",
    "forward_dynamics",
    "policy",
    "inverse_dynamics",
]
ACTION_MODES: dict[str, Mode] = {
    "forward_dynamics": "forward_dynamics",
    "policy": "policy",
    "inverse_dynamics": "inverse_dynamics",
}
"""Those with `action_params`, to what a request calls them."""
_REFERENCE = {
    "text2image": None,
    "text2video": None,
    "image2video": "a picture",
    "forward_dynamics": "a picture",
    "policy": "a picture",
    "inverse_dynamics": "a clip",
}
"""What `input_reference` holds; of video2video, see `transfer`."""


@dataclass(frozen=True, slots=True)
class ModeDefaults:
    """Values that a mode uses where a body does not say."""

    guidance_scale: float
    steps: int
    flow_shift: float
    resolution: str
    frames: int
    fps: float = 24


_VIDEO = ModeDefaults(guidance_scale=6, steps=35, flow_shift=10, resolution="720", frames=189)
_STILL = ModeDefaults(guidance_scale=4, steps=50, flow_shift=3, resolution="720_1_1", frames=1)
_ACTION = ModeDefaults(guidance_scale=1, steps=30, flow_shift=10, resolution="256", frames=17)


def defaults_of(mode: ModelMode, *, transfer: bool) -> ModeDefaults:
    """The defaults of a mode, with or without controls."""
    if mode == "text2image":
        return _STILL
    if mode in ACTION_MODES:
        return _ACTION
    return replace(_VIDEO, guidance_scale=3, steps=50) if transfer else _VIDEO


def mode_problems(
    mode: ModelMode, *, has_reference: bool, has_prompt: bool, frames: int | None, resolution: str
) -> Iterator[Problem]:
    """What a mode does not take, or misses."""
    wanted = _REFERENCE.get(mode, "a clip")
    if wanted is None and has_reference:
        yield Problem("input_reference", f"given for {mode}", f"no value: {mode} starts from text alone")
    if mode in _REFERENCE and wanted is not None and not has_reference:
        yield Problem("input_reference", None, f"{wanted} for {mode} (base64, data URL or URL)")
    if mode in ("text2image", "text2video") and not has_prompt:
        yield Problem("prompt", None, f"a text for {mode}")
    if resolution not in COSMOS3:
        yield Problem("resolution", resolution, f"one of {', '.join(COSMOS3)}")
    elif mode == "text2image":
        if frames not in (None, 1):
            yield Problem("num_frames", frames, "1 for text2image")
    elif mode not in ACTION_MODES and frames is not None:
        most = MAX_FRAMES[tier_of(resolution)]
        if not MIN_FRAMES <= frames <= most:
            accepted = f"an integer from {MIN_FRAMES} to {most} at resolution {resolution}"
            yield Problem("num_frames", frames, accepted)
