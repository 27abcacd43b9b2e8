"""At which of a model's sizes and rates a request is made when it asks for one that the model lacks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from cosmorama.errors import Problem
from cosmorama.request import CODECS, Capabilities, Range, ResolvedRequest, Size

SIDES_PX = Range(16, 4096)
"""Sides of a frame that are resampled to."""
MAX_PIXELS = 3840 * 2160
FPS = Range(1, 120)


def makes(capabilities: Capabilities, size: Size) -> bool:
    """Whether the model makes frames of this size itself."""
    if size in capabilities.sizes:
        return True
    multiple = capabilities.size_multiple
    if multiple is None or not (_is_int(size.width) and _is_int(size.height)):
        return False
    sides, most = (size.width, size.height), capabilities.max_sides
    if most is not None and (size.width > most.width or size.height > most.height):
        return False
    return all(side > 0 and side % multiple == 0 for side in sides) and math.prod(sides) <= capabilities.max_pixels


def fitted(request: ResolvedRequest, capabilities: Capabilities) -> tuple[ResolvedRequest, list[Problem]]:
    """The request as the model makes it, what was asked for in its `target`, and what is wrong with that.

    The size is the model's nearest one, by aspect ratio and then by area. A rate outside the model's range is made at
    the range's nearer end, with as many frames as span the same time. Unchanged where the model makes what is asked.
    """
    problems = list(_problems(request))
    if problems or request.target is not None:
        return request, problems
    asked = request.result
    size = nearest_size(capabilities, Size(asked.width, asked.height))
    fps = min(max(asked.fps, capabilities.fps.low), capabilities.fps.high)
    frames = asked.frames
    if fps != asked.fps:
        # Half a frame of the model's grid may be missing at the end: the last frame is then the nearest in time.
        frames = 1 + math.ceil((asked.frames - 1) * fps / asked.fps - 0.5)
        if frames > capabilities.frames.maximum:
            most = 1 + math.floor((capabilities.frames.maximum - 0.5) * asked.fps / fps)
            return request, [Problem("frames", asked.frames, f"an integer from 1 to {most} at {asked.fps:g} fps")]
    made = replace(request, width=size.width, height=size.height, frames=frames, fps=fps)
    return (request if made == request else replace(made, target=asked)), []


def nearest_size(capabilities: Capabilities, size: Size) -> Size:
    """The size of the model's own that is nearest by aspect ratio, then by area; the very size if it makes that."""
    if makes(capabilities, size):
        return size
    multiple = capabilities.size_multiple
    if multiple is None:
        return min(capabilities.sizes, key=lambda own: _distance(own, size))
    most = capabilities.max_sides or size
    scale = min(most.width / size.width, most.height / size.height, 1.0)
    scale = min(scale, math.sqrt(capabilities.max_pixels / (size.width * size.height)))
    width, height = (max(multiple, round(side * scale / multiple) * multiple) for side in (size.width, size.height))
    while width * height > capabilities.max_pixels and max(width, height) > multiple:  # rounding went up
        width, height = (width - multiple, height) if width >= height else (width, height - multiple)
    return Size(width, height)


def _distance(own: Size, asked: Size) -> tuple[float, float]:
    aspect = math.log(own.width / own.height * asked.height / asked.width)
    area = math.log(own.width * own.height / (asked.width * asked.height))
    return round(abs(aspect), 6), abs(area)


def _problems(request: ResolvedRequest) -> Iterator[Problem]:
    asked = request.result
    sides = (asked.width, asked.height)
    even = bool(CODECS.get(request.output.container))
    if (
        not all(_is_int(side) and side in SIDES_PX for side in sides)
        or math.prod(sides) > MAX_PIXELS
        or (even and any(side % 2 for side in sides))
    ):
        kind = f"even numbers (for {request.output.container})" if even else "integers"
        accepted = f"width x height, {kind} from {SIDES_PX} with at most {MAX_PIXELS} pixels"
        yield Problem("size", f"{asked.width}x{asked.height}", accepted)
    if isinstance(asked.fps, bool) or not isinstance(asked.fps, (int, float)) or asked.fps not in FPS:
        yield Problem("fps", asked.fps, f"a number from {FPS}")
    if not (_is_int(asked.frames) and asked.frames >= 1):
        yield Problem("frames", asked.frames, "an integer of at least 1")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
