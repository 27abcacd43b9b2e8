"""The Cosmos3-Generator 1.0 dialect."""

from __future__ import annotations

from typing import Any

import pytest

from cosmorama.request import Capabilities, FrameRule, Range
from tests.api.dialects.reading import read, refusal, shape_of

BODY: dict[str, Any] = {"prompt": "a red ball rolls", "fps": 24}
LONG = Capabilities(
    model="long", frames=FrameRule(4, 397), size_multiple=16, fps=Range(1, 60), steps=Range(1, 100), sizes=()
)


def test_defaults_on_a_model_that_makes_them() -> None:
    request = read(BODY, model=LONG)
    assert (request.width, request.height, request.frames, request.fps) == (1280, 720, 189, 24)
    assert (request.guidance_scale, request.steps, request.target) == (6, 35, None)


def test_defaults_on_a_smaller_model() -> None:
    request = read(BODY)
    assert (request.width, request.height, request.frames) == (1280, 704, 121)
    assert request.target is not None
    assert (request.target.width, request.target.height, request.target.frames) == (1280, 720, 121)


@pytest.mark.parametrize(("fps", "made_fps", "made_frames"), [(6, 12, 50), (60, 40, 18), (30, 30, 25)])
def test_rates_are_fitted_so_that_the_time_stays(fps: float, made_fps: float, made_frames: int) -> None:
    request = read(BODY | {"fps": fps, "num_output_frames": 25})
    assert request.fps == made_fps
    assert request.result.fps == fps
    assert request.result.frames == 25
    assert abs(request.frames - made_frames) <= 1
    # The last frame that is wanted lies inside what is made, to half a frame.
    assert (request.frames - 1) / made_fps >= 24 / fps - 0.5 / made_fps - 1e-9


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"guidance_scale": 7.5}, ["guidance_scale: 7.5", "a number from 1 to 7"]),
        ({"steps": 101}, ["steps: 101", "an integer from 1 to 100"]),
        ({"steps": 80}, ["steps: 80", "an integer from 1 to 50"]),
        ({"fps": 61}, ["fps: 61", "a number from 1 to 60"]),
        ({"num_output_frames": 26}, ["num_output_frames: 26", "4k+1", "25 to 197"]),
        ({"num_output_frames": 21}, ["num_output_frames: 21", "from 25"]),
        ({"num_output_frames": 201}, ["num_output_frames: 201", "to 197"]),
        ({"num_output_frames": 301, "resolution": "480"}, ["num_output_frames: 301", "to 297"]),
        ({"num_output_frames": 397, "resolution": "256"}, ["num_output_frames: 397", "1 to 121"]),
        ({"fps": 1, "num_output_frames": 25}, ["num_output_frames: 25", "at 1 fps"]),
        ({"resolution": "512"}, ["resolution: '512'", "480_1_1"]),
        ({"prompt": "  "}, ["prompt", "only be left out when an image"]),
        ({"num_inference_steps": 80}, ["num_inference_steps: 80", "an integer from 1 to 50"]),
        ({"negative_prompt": "x" * 20_001}, ["negative_prompt", "at most 20000 characters"]),
    ],
)
def test_refusals(change: dict[str, Any], parts: list[str]) -> None:
    message = refusal(BODY | change, dialect="generator1")
    for part in parts:
        assert part in message


def test_shape() -> None:
    assert shape_of(BODY) == "generator1"
    assert shape_of(BODY | {"resolution": "720_16_9", "num_output_frames": 93}) == "generator1"
    assert shape_of(BODY | {"resolution": "720", "video": "x"}) == "predict25"
