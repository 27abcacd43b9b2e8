"""The Cosmos3 2.x dialect."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from cosmorama.request import CONTROL_KINDS, MODES, ActionDomain, Capabilities, FrameRule, Range
from cosmorama.world.families import makers
from cosmorama.world.microcosm.driving import DRIVE
from tests.api.dialects.reading import MICROCOSM, read, refusal, shape_of

TEXT: dict[str, Any] = {"model_mode": "text2video", "prompt": "a red ball rolls"}
STILL: dict[str, Any] = {"model_mode": "text2image", "prompt": "a red ball"}
IMAGE: dict[str, Any] = {"model_mode": "image2video", "prompt": "it rolls", "input_reference": "aGk="}
VIDEO: dict[str, Any] = {"model_mode": "video2video", "prompt": "it rolls on", "input_reference": "aGk="}
POLICY: dict[str, Any] = {
    "model_mode": "policy",
    "prompt": "pick up the cup",
    "input_reference": "aGk=",
    "action_params": {"domain_name": "droid_lerobot", "action_chunk_size": 16},
}
ROWS = [[0.1] * 9] * 8
CLIP: dict[str, Any] = {"video": "aGk="}
FORWARD = POLICY | {
    "model_mode": "forward_dynamics",
    "action_params": {"domain_name": "av", "action_chunk_size": 8, "action": ROWS},
}
PARAMS: dict[str, Any] = POLICY["action_params"]
ROWS_GIVEN: dict[str, Any] = FORWARD["action_params"]
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
    control_guidance=Range(0, 10),
    conditioning_indexes=True,
    action_domains=(ActionDomain(1, "av", 9), ActionDomain(8, "droid_lerobot", 10)),
    family="cosmos3",
)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (STILL, ("text2world", 960, 960, 1, 24, 4, 50, 3, "jpeg")),
        (TEXT, ("text2world", 1280, 720, 189, 24, 6, 35, 10, "mp4")),
        (IMAGE, ("image2world", 1280, 720, 189, 24, 6, 35, 10, "mp4")),
        (VIDEO, ("video2world", 1280, 720, 189, 24, 6, 35, 10, "mp4")),
        (VIDEO | {"transfer": {"edge": {}}}, ("transfer", 1280, 720, 121, 30, 3, 50, 10, "mp4")),
        (VIDEO | {"transfer": {"wsm": CLIP}}, ("transfer", 1280, 720, 101, 10, 1, 50, 10, "mp4")),
        (POLICY, ("policy", 832, 480, 17, 10, 1, 30, 10, "mp4")),
        (FORWARD, ("forward_dynamics", 832, 480, 9, 10, 1, 30, 10, "mp4")),
        (POLICY | {"model_mode": "inverse_dynamics"}, ("inverse_dynamics", 832, 480, 17, 10, 1, 30, 10, "mp4")),
    ],
    ids=lambda value: value["model_mode"] if isinstance(value, dict) else "",
)
def test_defaults_of_each_mode(body: dict[str, Any], expected: tuple[Any, ...]) -> None:
    made = read(body, model=COSMOS3)
    found = (made.mode, made.width, made.height, made.frames, made.fps, made.guidance_scale, made.steps)
    assert (*found, made.flow_shift, made.output.container) == expected
    assert (made.target, made.warnings) == (None, ())


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


def test_conditions_are_sorted_and_once_each_and_any_latent_frame() -> None:
    for indexes in ([1, 0, 0], [0, 1], [1, 0]):
        request = read(VIDEO | {"condition_frame_indexes_vision": indexes}, model=COSMOS3)
        assert (request.conditioning_frames, request.conditioning_indexes) == (5, None)
    request = read(VIDEO | {"condition_frame_indexes_vision": [23, 0], "num_frames": 93}, model=COSMOS3)
    assert request.conditioning_indexes == (0, 23)
    message = refusal(VIDEO | {"condition_frame_indexes_vision": [0, 24], "num_frames": 93}, model=COSMOS3)
    assert "condition_frame_indexes_vision: [0, 24] is not accepted; expected indexes up to 23" in message


def test_a_drive_begins_with_a_picture_or_with_what_the_prompt_shows() -> None:
    microcosm = Capabilities(model="m", modes=(*MODES, "forward_dynamics"), action_domains=(DRIVE,))
    params: dict[str, Any] = {"domain_name": "drive", "action_chunk_size": 4, "action": [[1, 0, 0]] * 4}
    body = {"model_mode": "forward_dynamics", "prompt": "a corridor", "seed": 1, "action_params": params}
    for given in ({}, {"input_reference": "aGk="}):
        made = read(body | given, model=microcosm)
        assert (made.mode, made.frames, made.fps, made.guidance_scale) == ("forward_dynamics", 5, 12, 7)
        assert (made.width, made.height, made.image) == (640, 352, given.get("input_reference"))
    message = refusal(body | {"action_params": params | {"action": [[2, 0, 0]] * 4}}, model=microcosm)
    assert "action_params.action: 'row 0: 2.0'" in message
    assert "forward, m/s: a number from -0.5 to 1.5" in message


def test_actions() -> None:
    policy = read(POLICY | {"action_params": PARAMS | {"domain_name": "av", "domain_id": 1}}, model=COSMOS3)
    assert policy.action is not None
    assert (policy.action.domain, policy.action.steps, policy.action.values, policy.frames) == (1, 16, None, 17)
    forward = read(FORWARD, model=COSMOS3)
    assert forward.action is not None
    assert (len(forward.action.values or ()), forward.image, forward.video) == (8, "aGk=", None)
    inverse = read(POLICY | {"model_mode": "inverse_dynamics"}, model=COSMOS3)
    assert (inverse.image, inverse.video) == (None, "aGk=")


@pytest.mark.parametrize(("key", "size"), [("256", (320, 192)), ("704", (1280, 704)), (720, (1280, 720))])
def test_the_size_of_actions(key: Any, size: tuple[int, int]) -> None:
    made = read(POLICY | {"action_params": PARAMS | {"image_size": key}}, model=COSMOS3)
    assert (made.width, made.height) == size


def test_what_no_model_here_acts_on_is_said() -> None:
    state = {"history_length": 1, "use_state": True, "observation": {"observation/gripper_position": 0.0}}
    params = PARAMS | state | {"action_fps": 20.0, "action_space": "midtrain", "raw_action_dim": 10}
    made = read(POLICY | {"action_params": params}, model=COSMOS3)
    assert made.warnings == tuple(
        f"{what} was not used: cosmos3 does not take it"
        for what in ("the actions' own rate", "the action space", "the robot's state")
    )
    assert read(POLICY | {"action_params": PARAMS | {"action_fps": 10.0}}, model=COSMOS3).warnings == ()


@pytest.mark.parametrize("name", ["edge", "blur", "depth", "seg", "wsm"])
def test_a_transfer_may_bring_its_own_controls_instead_of_a_video(name: str) -> None:
    body = {"model_mode": "video2video", "prompt": "snow", "transfer": {name: CLIP}}
    made = read(body, model=COSMOS3)
    assert made.video is None
    [control] = made.controls
    assert (control.kind, control.source, control.weight) == ({"blur": "vis"}.get(name, name), "aGk=", 1.0)
    guidance, chunk = {"seg": (2.0, 93), "wsm": (3.0, 101)}.get(name, (1.5, 93))
    assert (made.control_guidance, made.chunk_frames) == (guidance, chunk)
    derived = refusal(body | {"transfer": {name: {}}}, model=COSMOS3)
    if name in ("edge", "blur"):
        assert f"input_reference: null is not accepted; expected a clip to derive {name} from" in derived
    else:
        assert f"transfer.{name}.video: null is not accepted; expected a clip" in derived


@pytest.mark.parametrize("given", [True, {}, {"preset_blur_strength": "none"}, {"preset_blur_strength": "very_high"}])
def test_a_control_is_derived_from_the_reference(given: Any) -> None:
    made = read(VIDEO | {"transfer": {"blur": given, "edge": False}}, model=COSMOS3)
    [control] = made.controls
    preset = given.get("preset_blur_strength", "medium") if isinstance(given, dict) else "medium"
    assert (control.kind, control.source, control.preset) == ("vis", None, preset)


def test_how_a_transfer_is_made_in_chunks() -> None:
    knobs = {
        "control_guidance": 4.5,
        "num_video_frames_per_chunk": 61,
        "num_conditional_frames": 5,
        "num_first_chunk_conditional_frames": 1,
    }
    made = read(VIDEO | {"transfer": {"edge": True, "depth": CLIP} | knobs}, model=COSMOS3)
    found = (made.control_guidance, made.chunk_frames, made.conditioning_frames, made.first_conditioning_frames)
    assert found == (4.5, 61, 5, 1)
    assert [control.weight for control in made.controls] == [0.5, 0.5]


def test_on_a_small_model_what_was_not_given_is_fitted() -> None:
    request = read(TEXT)
    assert (request.frames, request.flow_shift) == (121, None)
    assert request.target is not None
    assert (request.target.width, request.target.height) == (1280, 720)
    assert "num_frames: 189 is not accepted; expected an integer from 1 to 121" in refusal(TEXT | {"num_frames": 189})
    assert "flow_shift: 5.0 is not accepted; expected no value for this model" in refusal(TEXT | {"flow_shift": 5})
    stand_in = replace(MICROCOSM, ignores=("flow_shift",), prompt_words=None)
    made = read(TEXT | {"flow_shift": 5, "prompt": json.dumps({"scene": "word " * 900})}, model=stand_in)
    assert "flow_shift was not used: microcosm has its own" in made.warnings


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ({"prompt": "a"}, ["model_mode: Field required; one of text2image, text2video, image2video, video2video"]),
        (TEXT | {"model_mode": "t2v"}, ["model_mode: 't2v'", "text2image"]),
        (TEXT | {"num_inference_steps": "35"}, ["num_inference_steps: '35'", "valid integer"]),
        (TEXT | {"num_inference_steps": 35.0}, ["num_inference_steps: 35.0", "valid integer"]),
        (TEXT | {"num_inference_steps": True}, ["num_inference_steps: true", "valid integer"]),
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
        (IMAGE | {"input_reference": ""}, ["input_reference", "a picture for image2video"]),
        (VIDEO | {"input_reference": None}, ["input_reference", "a clip"]),
        (IMAGE | {"condition_video_keep": "last"}, ["condition_video_keep", "unless model_mode is video2video"]),
        (VIDEO | {"condition_video_keep": "middle"}, ["condition_video_keep: 'middle'", "'first' or 'last'"]),
        (VIDEO | {"condition_frame_indexes_vision": []}, ["condition_frame_indexes_vision: []", "[0, 1]"]),
        (VIDEO | {"condition_frame_indexes_vision": [-1]}, ["condition_frame_indexes_vision: [-1]", "from 0 on"]),
        (VIDEO | {"condition_frame_indexes_vision": [0] * 257}, ["at most 256 entries"]),
        (IMAGE | {"transfer": {"edge": {}}}, ["transfer", "unless model_mode is video2video"]),
        (VIDEO | {"transfer": {}}, ["transfer: {}", "at least one of edge, blur, depth, seg, wsm"]),
        (VIDEO | {"transfer": {"vis": {}}}, ["unknown field 'transfer.vis'", "known here: blur"]),
        (VIDEO | {"transfer": {"control_path": "x"}}, ["unknown field 'transfer.control_path'"]),
        (
            VIDEO | {"transfer": {"edge": {"video": "aGk=", "preset_edge_threshold": "low"}}},
            ["transfer.edge.preset_edge_threshold: 'low'", "no value beside video"],
        ),
        (VIDEO | {"transfer": {"edge": {"preset_edge_threshold": "none"}}}, ["preset_edge_threshold: 'none'", "low"]),
        (
            VIDEO | {"transfer": {"edge": True, "control_guidance": 10.5}},
            ["control_guidance: 10.5", "0", "10"],
        ),
        (
            VIDEO | {"transfer": {"edge": True, "num_conditional_frames": 93}},
            ["transfer.num_conditional_frames: 93", "less than num_video_frames_per_chunk, 93"],
        ),
        (
            VIDEO | {"transfer": {"edge": True, "num_first_chunk_conditional_frames": 94}},
            ["transfer.num_first_chunk_conditional_frames: 94", "at most 93"],
        ),
        (
            {
                "model_mode": "video2video",
                "prompt": "a",
                "transfer": {"edge": CLIP, "num_first_chunk_conditional_frames": 1},
            },
            ["transfer.num_first_chunk_conditional_frames: 1", "unless input_reference is given"],
        ),
        (
            VIDEO | {"transfer": {"edge": True}, "condition_video_keep": "first"},
            ["condition_video_keep", "without transfer"],
        ),
        (TEXT | {"action_params": PARAMS}, ["action_params", "unless model_mode is forward_dynamics"]),
        (VIDEO | {"transfer": {"edge": True}, "action_params": PARAMS}, ["action_params", "no value unless"]),
        (POLICY | {"action_params": None}, ["action_params: null", "for policy"]),
        (POLICY | {"action_params": {}}, ["action_params.action_chunk_size: Field required", "4 to 396"]),
        (POLICY | {"action_params": {"action_chunk_size": 16}}, ["action_params.domain_name: null", "av (1)"]),
        (POLICY | {"action_params": PARAMS | {"domain_name": "dog"}}, ["action_params.domain_name: 'dog'", "umi"]),
        (POLICY | {"action_params": PARAMS | {"domain_id": 6}}, ["action_params.domain_id: 6", "8, the number of"]),
        (
            POLICY | {"action_params": PARAMS | {"domain_name": "umi"}},
            ["action_params.domain_name: 'umi'", "av (1), droid"],
        ),
        (
            POLICY | {"action_params": {"domain_id": 6, "action_chunk_size": 16}},
            ["action_params.domain_id: 6", "av (1), droid"],
        ),
        (POLICY | {"action_params": PARAMS | {"action_chunk_size": 6}}, ["action_chunk_size: 6", "multiple of 4"]),
        (POLICY | {"action_params": PARAMS | {"action": ROWS}}, ["action_params.action", "policy answers"]),
        (POLICY | {"action_params": PARAMS | {"raw_action_dim": 7}}, ["raw_action_dim: 7", "10 for droid_lerobot"]),
        (POLICY | {"action_params": PARAMS | {"image_size": "512"}}, ["image_size: '512'", "'480'"]),
        (POLICY | {"action_params": PARAMS | {"action_fps": 61}}, ["action_fps: 61", "from 1 to 60"]),
        (POLICY | {"action_params": PARAMS | {"history_length": 0}}, ["history_length: 0", "at least 1"]),
        (POLICY | {"action_params": PARAMS | {"view_point": "ego"}}, ["unknown field 'action_params.view_point'"]),
        (POLICY | {"action_params": PARAMS | {"x": 1}}, ["unknown field 'action_params.x'", "known here: action"]),
        (FORWARD | {"action_params": ROWS_GIVEN | {"use_state": False}}, ["action_params.use_state: false", "policy"]),
        (FORWARD | {"action_params": ROWS_GIVEN | {"observation": {}}}, ["action_params.observation: {}", "policy"]),
        (FORWARD | {"action_params": ROWS_GIVEN | {"action": None}}, ["action_params.action: null", "one row of"]),
        (
            FORWARD | {"action_params": ROWS_GIVEN | {"action": [[1.0]] * 8}},
            ["rows of 1 numbers", "9 numbers for av"],
        ),
        (FORWARD | {"action_params": ROWS_GIVEN | {"action": ROWS[:4]}}, ["4 rows", "8 rows, the action_chunk_size"]),
        (FORWARD | {"num_frames": 9}, ["num_frames: 9", "action_chunk_size + 1 = 9"]),
        (FORWARD | {"resolution": "480"}, ["resolution: '480'", "action_params.image_size"]),
        (TEXT | {"steps": 35}, ["unknown field 'steps'", "did you mean 'num_inference_steps'?"]),
        (TEXT | {"image": "aGk="}, ["unknown field 'image'", "belongs to the dialect", "read as cosmos3"]),
        (TEXT | {"video_params": {}}, ["unknown field 'video_params'", "belongs to the dialect predict1"]),
        (
            VIDEO | {"transfer": {"edge": {"weight": 1}}},
            ["unknown field 'transfer.edge.weight'", "did you mean 'transfer.edge.control_weight'?"],
        ),
    ],
)
def test_refusals(body: dict[str, Any], parts: list[str]) -> None:
    message = refusal(body, model=COSMOS3, dialect="cosmos3")
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            POLICY,
            "model_mode: 'policy' is not accepted; expected one of text2video, image2video, video2video for micro",
        ),
        (FORWARD, "model_mode: 'forward_dynamics' is not accepted; expected one of text2video"),
        (
            FORWARD | {"action_params": PARAMS | {"domain_name": "av", "action": [[0.0] * 9] * 16}},
            "action_params.domain_name: 'av' is not accepted; expected no actions; models of the family cosmos3",
        ),
        (VIDEO | {"transfer": {"edge": {}}}, "transfer: 'transfer' is not accepted; expected one of text2video"),
    ],
)
def test_a_model_without_the_mode_says_who_has_it(body: dict[str, Any], said: str) -> None:
    message = refusal(body)
    assert said in message
    mode = "transfer" if "transfer" in body else body["model_mode"]
    assert f"models of the family {' or '.join(dict(makers())[mode])} take it" in message


def test_shape() -> None:
    assert shape_of(TEXT) == "cosmos3"
    assert shape_of(TEXT | {"video_params": {}}) == "cosmos3"
    assert shape_of({"prompt": "a", "num_inference_steps": 35}) == "cosmos3"
    assert shape_of({"prompt": "a", "num_inference_steps": 35, "video_params": {}}) == "predict1"


def test_a_pinned_server_misses_the_discriminator_in_any_body() -> None:
    assert "model_mode: Field required" in refusal({"prompt": "a", "video_params": {}}, dialect="cosmos3")
