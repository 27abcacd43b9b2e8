"""What NVIDIA's pages for Cosmos3 use in each mode where nobody says anything, whichever way a request comes in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cosmorama.request import (
    DEFAULT_NEGATIVE_PROMPT,
    Capabilities,
    ControlKind,
    GenerationRequest,
    ResolvedRequest,
    Usual,
)

STILL = Usual(
    width=960, height=960, guidance_scale=4, steps=50, flow_shift=3, frames=1, fps=24, negative_prompt=""
)  # fmt: skip
VIDEO = Usual(guidance_scale=6, steps=35, flow_shift=10, frames=189, fps=24, negative_prompt=DEFAULT_NEGATIVE_PROMPT)
ACTIONS = Usual(
    width=832, height=480, guidance_scale=1, steps=30, flow_shift=10, fps=10, negative_prompt=DEFAULT_NEGATIVE_PROMPT
)  # fmt: skip
POLICY = Usual(width=736, height=544, guidance_scale=3, steps=4, flow_shift=5, fps=15)
"""Of a model that answers with actions alone."""
WSM_CHUNK, CHUNK = 101, 93
"""Frames of a chunk of transfer by maps of the world alone, and of any other."""


def of_transfer(kinds: Sequence[ControlKind]) -> Usual:
    """By the controls that are followed."""
    only_maps = [*kinds] == ["wsm"]
    return Usual(
        guidance_scale=1 if only_maps else 3,
        steps=50,
        flow_shift=10,
        frames=101 if only_maps else 121,
        fps=10 if only_maps else 30,
        negative_prompt=DEFAULT_NEGATIVE_PROMPT,
        control_guidance=3.0 if only_maps else 2.0 if [*kinds] == ["seg"] else 1.5,
        chunk_frames=WSM_CHUNK if only_maps else CHUNK,
    )


def usual_of(request: GenerationRequest, capabilities: Capabilities) -> Usual:
    """What is usual for a request whose wire format says nothing of its own; else that."""
    if isinstance(request, ResolvedRequest):
        return request.usual or Usual()
    if capabilities.action_only:
        return POLICY
    if request.usual is not None:
        return request.usual
    if capabilities.family != "cosmos3":
        return Usual()
    # Where a clip is made, the shift of the noise levels is the checkpoint's own.
    if request.mode == "transfer":  # at the rate of its clips
        return replace(of_transfer([control.kind for control in request.controls]), fps=None, flow_shift=None)
    if request.action is not None:
        return replace(ACTIONS, flow_shift=None)
    is_still = request.mode == "text2world" and (request.frames == 1 or request.output.container == "jpeg")
    return STILL if is_still else Usual()
