"""The Predict2.5 dialect."""

from __future__ import annotations

from typing import Any

import pytest

from cosmorama.request import DEFAULT_NEGATIVE_PROMPT, Capabilities, FrameRule, Range
from tests.api.dialects.reading import read, refusal, shape_of

BODY: dict[str, Any] = {"prompt": "a red ball rolls", "resolution": "720_16_9"}


def test_defaults() -> None:
    request = read(BODY)
    assert request.negative_prompt == DEFAULT_NEGATIVE_PROMPT
    assert (request.width, request.height, request.frames, request.fps) == (1280, 704, 93, 16)
    assert (request.guidance_scale, request.steps) == (7, 35)
    assert request.target is None


@pytest.mark.parametrize(
    ("resolution", "made", "written"),
    [
        ("720", (1280, 704), None),
        ("720_1_1", (960, 960), None),
        ("720_9_16", (704, 1280), None),
        ("256_16_9", (1280, 704), (320, 192)),
        ("480_3_4", (704, 960), (544, 736)),
        ("512_4_3", (960, 704), (640, 512)),
    ],
)
def test_resolutions_are_fitted_to_what_the_model_makes(
    resolution: str, made: tuple[int, int], written: tuple[int, int] | None
) -> None:
    request = read(BODY | {"resolution": resolution})
    assert (request.width, request.height) == made
    target = request.target
    assert (None if target is None else (target.width, target.height)) == written


def test_image_and_video_are_taken() -> None:
    assert read(BODY | {"image": "aGk="}).mode == "image2world"
    assert read(BODY | {"video": "aGk="}).mode == "video2world"
    assert "not both" in refusal(BODY | {"image": "aGk=", "video": "aGk="})


def test_a_value_that_was_not_given_is_one_that_the_model_takes() -> None:
    short = Capabilities(model="short", frames=FrameRule(8, 49), steps=Range(1, 4), guidance_scale=Range(1, 1))
    request = read(BODY, model=short)
    assert (request.frames, request.steps, request.guidance_scale) == (49, 4, 1)
    message = refusal(BODY | {"num_output_frames": 93, "steps": 35}, model=short)
    assert "num_output_frames: 93 is not accepted; expected an integer from 1 to 49" in message
    assert "steps: 35 is not accepted; expected an integer from 1 to 4" in message


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"prompt": None}, ["prompt: Field required"]),
        ({"guidance_scale": 20.5}, ["guidance_scale: 20.5", "a number from 1 to 20"]),
        ({"guidance_scale": 15}, ["guidance_scale: 15", "a number from 1 to 10"]),
        ({"steps": 51}, ["steps: 51", "an integer from 1 to 50"]),
        ({"steps": "35"}, ["steps: '35'", "valid integer"]),
        ({"steps": 35.0}, ["steps: 35.0", "valid integer"]),
        ({"steps": True}, ["steps: true", "valid integer"]),
        ({"seed": -1}, ["seed: -1", "an integer from 0 to 4294967295"]),
        ({"resolution": "1080"}, ["resolution: '1080'", "720_16_9"]),
        ({"resolution": 721}, ["resolution: '721'", "one of 256"]),
        ({"num_output_frames": 0}, ["num_output_frames: 0", "at least 1"]),
        ({"num_output_frames": 500}, ["num_output_frames: 500", "1 to 121"]),
        ({"num_frames": 0}, ["num_frames: 0", "at least 1"]),
        ({"num_frames": 500}, ["num_frames: 500", "1 to 121"]),
        ({"num_frames": 93, "num_output_frames": 9}, ["'num_frames' and 'num_output_frames' are one field"]),
        ({"model_mode": "text2video"}, ["unknown field 'model_mode'", "belongs to the dialect cosmos3"]),
        ({"resolutoin": "720"}, ["unknown field 'resolutoin'", "did you mean 'resolution'?"]),
    ],
)
def test_refusals_name_the_field_the_value_and_what_is_accepted(change: dict[str, Any], parts: list[str]) -> None:
    message = refusal(BODY | change, dialect="predict25")
    for part in parts:
        assert part in message


def test_shape() -> None:
    assert shape_of(BODY) == "predict25"
    assert shape_of({"prompt": "a", "num_output_frames": 93}) == "predict25"
    assert shape_of(BODY | {"video_params": {}}) == "predict1"
