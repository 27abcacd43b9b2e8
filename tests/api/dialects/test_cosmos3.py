"""The Cosmos3 2.x dialect."""

from __future__ import annotations

from typing import Any

import pytest

from cosmorama.request import CONTROL_KINDS, MODES, ActionDomain, Capabilities, FrameRule, Range
from tests.api.dialects.reading import read, refusal, shape_of

TEXT: dict[str, Any] = {"model_mode": "text2video", "prompt": "a red ball rolls"}
STILL: dict[str, Any] = {"model_mode": "text2image", "prompt": "a red ball"}
IMAGE: dict[str, Any] = {"model_mode": "image2video", "prompt": "it rolls", "input_reference": "aGk="}
VIDEO: dict[str, Any] = {"model_mode": "video2video", "prompt": "it rolls on", "input_reference": "aGk="}
POLICY: dict[str, Any] = {
    "model_mode": "policy",
    "prompt": "pick up the cup",
    "input_reference": "aGk=",
    "action_params": {"domain_name": "droid_lerobot"},
}
ROWS = [[0.1] * 9] * 8
FORWARD = POLICY | {"model_mode": "forward_dynamics", "action_params": {"domain_id": 1, "action": ROWS}}
COSMOS3 = Capabilities(
    model="cosmos3",
    modes=(*MODES, "transfer", "forward_dynamics", "inverse_dynamics", "policy"),
    frames=FrameRule(4, 397),
    fps=Range(1, 60),
    guidance_scale=Range(1, 7),
    steps=Range(1, 100),
    conditioning_frames=(5, 1),
    flow_shift=Range(1, 20),
    size_multiple=16,
    controls=CONTROL_KINDS,
    action_domains=(ActionDomain(1, "av", 9), ActionDomain(8, "droid_lerobot", 10)),
    family="cosmos3",
)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (STILL, ("text2world", 960, 960, 1, 4, 50, 3, "jpeg")),
        (TEXT, ("text2world", 1280, 720, 189, 6, 35, 10, "mp4")),
        (IMAGE, ("image2world", 1280, 720, 189, 6, 35, 10, "mp4")),
        (VIDEO, ("video2world", 1280, 720, 189, 6, 35, 10, "mp4")),
        (VIDEO | {"transfer": {"edge": {}}}, ("transfer", 1280, 720, 189, 3, 50, 10, "mp4")),
        (POLICY, ("policy", 320, 192, 17, 1, 30, 10, "mp4")),
        (FORWARD, ("forward_dynamics", 320, 192, 9, 1, 30, 10, "mp4")),
        (POLICY | {"model_mode": "inverse_dynamics"}, ("inverse_dynamics", 320, 192, 17, 1, 30, 10, "mp4")),
    ],
    ids=lambda value: value["model_mode"] if isinstance(value, dict) else "",
)
def test_defaults_of_each_mode(body: dict[str, Any], expected: tuple[Any, ...]) -> None:
    made = read(body, model=COSMOS3)
    found = (made.mode, made.width, made.height, made.frames, made.guidance_scale, made.steps, made.flow_shift)
    assert (*found, made.output.container) == expected
    assert (made.target, made.fps) == (None, 24)


def test_the_negative_prompt_depends_on_the_mode() -> None:
    assert read(STILL, model=COSMOS3).negative_prompt == ""
    assert read(TEXT, model=COSMOS3).negative_prompt.startswith("The video captures")
    assert read(TEXT | {"negative_prompt": ""}, model=COSMOS3).negative_prompt == ""


def test_the_conditions_of_a_video() -> None:
    assert read(VIDEO, model=COSMOS3).conditioning_frames == 5
    request = read(VIDEO | {"condition_frame_indexes_vision": [0], "condition_video_keep": "last"}, model=COSMOS3)
    assert (request.conditioning_frames, request.keep) == (1, "last")
    assert read(VIDEO | {"condition_frame_indexes_vision": [0, 1]}, model=COSMOS3).keep == "first"
    # What the vendor's own client sends is taken by a model that counts its frames differently.
    assert read(VIDEO | {"condition_frame_indexes_vision": [0, 1]}).conditioning_frames == 9


def test_actions() -> None:
    policy = read(
        POLICY | {"action_params": {"domain_name": "av", "domain_id": 1, "action_chunk_size": 8}}, model=COSMOS3
    )
    assert policy.action is not None
    assert (policy.action.domain, policy.action.steps, policy.action.values, policy.frames) == (1, 8, None, 9)
    forward = read(FORWARD, model=COSMOS3)
    assert forward.action is not None
    assert (len(forward.action.values or ()), forward.image, forward.video) == (8, "aGk=", None)
    inverse = read(POLICY | {"model_mode": "inverse_dynamics"}, model=COSMOS3)
    assert (inverse.image, inverse.video) == (None, "aGk=")


def test_a_transfer_may_bring_its_own_controls_instead_of_a_video() -> None:
    body = {"model_mode": "video2video", "prompt": "snow", "transfer": {"depth": {"control": "aGk="}}}
    assert read(body, model=COSMOS3).video is None
    assert "input_reference" in refusal(body | {"transfer": {"depth": {}}}, model=COSMOS3)


def test_on_a_small_model_what_was_not_given_is_fitted() -> None:
    request = read(TEXT)
    assert (request.frames, request.flow_shift) == (121, None)
    assert request.target is not None
    assert (request.target.width, request.target.height) == (1280, 720)
    assert "num_frames: 189 is not accepted; expected an integer from 1 to 121" in refusal(TEXT | {"num_frames": 189})
    assert "flow_shift: 5.0 is not accepted; expected no value for this model" in refusal(TEXT | {"flow_shift": 5})


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ({"prompt": "a"}, ["model_mode: Field required; one of text2image, text2video, image2video, video2video"]),
        (TEXT | {"model_mode": "t2v"}, ["model_mode: 't2v'", "text2image"]),
        (TEXT | {"num_inference_steps": "35"}, ["num_inference_steps: '35'", "valid integer"]),
        (TEXT | {"num_inference_steps": 35.0}, ["num_inference_steps: 35.0", "valid integer"]),
        (TEXT | {"num_inference_steps": True}, ["num_inference_steps: True", "valid integer"]),
        (TEXT | {"num_inference_steps": 101}, ["num_inference_steps: 101", "an integer from 1 to 100"]),
        (TEXT | {"guidance_scale": 7.1}, ["guidance_scale: 7.1", "a number from 1 to 7"]),
        (TEXT | {"guidance_scale": "6"}, ["guidance_scale: '6'", "valid number"]),
        (TEXT | {"guidance_scale": float("inf")}, ["guidance_scale: inf", "finite number"]),
        (TEXT | {"seed": -1}, ["seed: -1", "at least 0"]),
        (TEXT | {"seed": 2**32}, ["seed: 4294967296", "0 to 4294967295"]),
        (TEXT | {"fps": 0.5}, ["fps: 0.5", "a number from 1 to 60"]),
        (TEXT | {"num_frames": 24}, ["num_frames: 24", "25 to 197"]),
        (TEXT | {"num_frames": 198}, ["num_frames: 198", "25 to 197 at resolution 720"]),
        (TEXT | {"num_frames": 398, "resolution": "256"}, ["num_frames: 398", "25 to 397"]),
        (TEXT | {"resolution": "720p"}, ["resolution: '720p'", "720_16_9"]),
        (TEXT | {"prompt": "x" * 20_001}, ["prompt", "at most 20000 characters"]),
        (TEXT | {"prompt": " "}, ["prompt", "a text for text2video"]),
        (TEXT | {"input_reference": "aGk="}, ["input_reference", "text2video starts from text alone"]),
        (STILL | {"num_frames": 2}, ["num_frames: 2", "1 for text2image"]),
        (IMAGE | {"input_reference": "  "}, ["input_reference", "a picture for image2video"]),
        (VIDEO | {"input_reference": None}, ["input_reference", "a clip"]),
        (IMAGE | {"condition_video_keep": "last"}, ["condition_video_keep", "unless model_mode is video2video"]),
        (VIDEO | {"condition_video_keep": "middle"}, ["condition_video_keep: 'middle'", "'first' or 'last'"]),
        (VIDEO | {"condition_frame_indexes_vision": [1, 2]}, ["condition_frame_indexes_vision: [1, 2]", "[0, 1]"]),
        (VIDEO | {"condition_frame_indexes_vision": [0, 1, 2, 3]}, ["condition_frame_indexes_vision: 13", "5, 1"]),
        (IMAGE | {"transfer": {"edge": {}}}, ["transfer", "unless model_mode is video2video"]),
        (VIDEO | {"transfer": {}}, ["transfer", "at least one of edge, depth, seg, vis"]),
        (VIDEO | {"transfer": {"edge": {"mask": "x"}}}, ["transfer.edge.mask", "null"]),
        (TEXT | {"action_params": {}}, ["action_params", "unless model_mode is forward_dynamics"]),
        (POLICY | {"action_params": None}, ["action_params", "for policy"]),
        (POLICY | {"action_params": {}}, ["action_params.domain_name", "av (1)"]),
        (POLICY | {"action_params": {"domain_name": "dog"}}, ["action_params.domain_name: 'dog'", "umi (6)"]),
        (POLICY | {"action_params": {"domain_name": "av", "domain_id": 6}}, ["action_params.domain_name: 'av'"]),
        (POLICY | {"action_params": {"domain_id": 6}}, ["action_params.domain_id: 6", "1 (av), 8 (droid_lerobot)"]),
        (POLICY | {"action_params": {"domain_id": 1, "action_chunk_size": 6}}, ["action_chunk_size", "multiple of 4"]),
        (POLICY | {"action_params": {"domain_id": 1, "action": ROWS}}, ["action_params.action", "policy answers"]),
        (POLICY | {"action_params": {"domain_id": 1, "raw_action_dim": 7}}, ["raw_action_dim: 7", "9"]),
        (FORWARD | {"action_params": {"domain_id": 1}}, ["action_params.action", "one row of numbers per step"]),
        (
            FORWARD | {"action_params": {"domain_id": 1, "action": [[1.0]] * 4}},
            ["rows of 1 numbers", "9 numbers for av"],
        ),
        (FORWARD | {"action_params": {"domain_id": 1, "action": ROWS[:3]}}, ["3 actions", "multiple of 4"]),
        (FORWARD | {"num_frames": 8}, ["num_frames: 8", "9: one more than actions"]),
        (TEXT | {"steps": 35}, ["unknown field 'steps'", "num_inference_steps", "belongs to the dialect"]),
        (TEXT | {"video_params": {}}, ["unknown field 'video_params'", "belongs to the dialect predict1"]),
        (VIDEO | {"transfer": {"edge": {"wieght": 1}}}, ["unknown field 'transfer.edge.wieght'", "control_weight"]),
        (
            POLICY | {"action_params": {"domain_id": 1, "x": 1}},
            ["unknown field 'action_params.x'", "known here: action"],
        ),
    ],
)
def test_refusals(body: dict[str, Any], parts: list[str]) -> None:
    message = refusal(body, model=COSMOS3, dialect="cosmos3")
    for part in parts:
        assert part in message


@pytest.mark.parametrize("body", [POLICY, FORWARD, VIDEO | {"transfer": {"edge": {}}}])
def test_a_model_without_the_mode_says_who_has_it(body: dict[str, Any]) -> None:
    message = refusal(body)
    assert "model_mode: " in message
    assert "for microcosm" in message
    assert "family" in message
    assert "cosmos3" in message


def test_shape() -> None:
    assert shape_of(TEXT) == "cosmos3"
    assert shape_of(TEXT | {"video_params": {}}) == "cosmos3"
    assert shape_of({"prompt": "a", "num_inference_steps": 35}) == "cosmos3"
    assert shape_of({"prompt": "a", "num_inference_steps": 35, "video_params": {}}) == "predict1"


def test_a_pinned_server_misses_the_discriminator_in_any_body() -> None:
    assert "model_mode: Field required" in refusal({"prompt": "a", "video_params": {}}, dialect="cosmos3")
