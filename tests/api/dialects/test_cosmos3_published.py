"""The requests that NVIDIA's pages for the Cosmos3 NIM show, one by one, as they reach a model; media are our own."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Request

from cosmorama.api.dialects.cosmos3 import COSMOS3 as COSMOS3_DIALECT
from cosmorama.engine.outcome import Outcome
from cosmorama.request import MODES, ActionDomain, Capabilities, Defaults, FrameRule, Range, Size
from cosmorama.world.cosmos3.capabilities import policy_of
from cosmorama.world.microcosm.loader import load_microcosm
from cosmorama.world.registry import MICROCOSM as EMBEDDED
from tests.api.dialects.reading import read, refusal

CLIP = "data:video/mp4;base64,AAAA"
PICTURE = "data:image/jpeg;base64,AAAA"
SCENE = json.dumps({"subjects": [{"description": "a robot arm " * 200}], "temporal_caption": "It wipes. " * 300})
AGAINST = json.dumps({"subjects": [{"description": "blurred, poorly defined " * 100}]})
VIDEO: dict[str, Any] = {
    "resolution": "720_16_9",
    "num_frames": 189,
    "fps": 24.0,
    "num_inference_steps": 35,
    "guidance_scale": 6.0,
    "flow_shift": 10.0,
    "seed": 0,
}
STILL: dict[str, Any] = {
    "resolution": "720_1_1",
    "num_frames": 1,
    "fps": 24.0,
    "num_inference_steps": 50,
    "guidance_scale": 4.0,
    "flow_shift": 3.0,
    "seed": 0,
}
GENERATION: dict[str, dict[str, Any]] = {
    "t2v": {"model_mode": "text2video", "prompt": SCENE, "negative_prompt": AGAINST, **VIDEO},
    "t2i": {"model_mode": "text2image", "prompt": SCENE, "negative_prompt": "", **STILL},
    "i2v": {
        "model_mode": "image2video",
        "prompt": SCENE,
        "negative_prompt": AGAINST,
        "input_reference": PICTURE,
        **VIDEO,
        "resolution": "720",
    },
    "v2v": {
        "model_mode": "video2video",
        "prompt": "A red sports car drives through a landscape.",
        "input_reference": CLIP,
        "condition_frame_indexes_vision": [0, 1],
        "condition_video_keep": "first",
        **VIDEO,
        "num_frames": 93,
    },
}
CHUNKS: dict[str, Any] = {
    "control_guidance": 1.5,
    "num_conditional_frames": 1,
    "num_first_chunk_conditional_frames": 0,
    "num_video_frames_per_chunk": 121,
}
TRANSFER: dict[str, Any] = {
    "model_mode": "video2video",
    "prompt": SCENE,
    "negative_prompt": AGAINST,
    "resolution": "720_16_9",
    "num_frames": 121,
    "fps": 30.0,
    "num_inference_steps": 50,
    "guidance_scale": 3.0,
    "flow_shift": 10.0,
    "seed": 2026,
}
TRANSFERS: dict[str, dict[str, Any]] = {
    **{
        f"precomputed_{name}": TRANSFER | {"transfer": {name: {"video": CLIP}, **CHUNKS}}
        for name in ("edge", "blur", "depth", "seg")
    },
    "precomputed_wsm": TRANSFER
    | {
        "num_frames": 101,
        "fps": 10.0,
        "guidance_scale": 1.0,
        "transfer": {
            "wsm": {"video": CLIP},
            **CHUNKS,
            "control_guidance": 3.0,
            "num_video_frames_per_chunk": 101,
        },
    },
    "derived_edge": TRANSFER
    | {"input_reference": CLIP, "transfer": {"edge": {"preset_edge_threshold": "medium"}, **CHUNKS}},
    "derived_blur": TRANSFER | {"input_reference": CLIP, "transfer": {"blur": True, **CHUNKS}},
}
ROW = [0.0, 0.0, 0.04, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
AV: dict[str, Any] = {
    "domain_name": "av",
    "action_chunk_size": 60,
    "raw_action_dim": 9,
    "action_space": "joint_pos",
    "image_size": "480",
    "action_fps": 10.0,
}
UMI = AV | {"domain_name": "umi", "action_chunk_size": 16, "raw_action_dim": 10, "action_fps": 20.0}
ACT: dict[str, Any] = {
    "prompt": "You are an autonomous vehicle planning system.",
    "fps": 10.0,
    "num_inference_steps": 30,
    "guidance_scale": 1.0,
    "seed": 0,
}
ACTIONS: dict[str, dict[str, Any]] = {
    "av_forward": ACT
    | {
        "model_mode": "forward_dynamics",
        "input_reference": PICTURE,
        "action_params": AV | {"action": [ROW] * 60},
        "flow_shift": 10.0,
    },
    "umi_forward": ACT
    | {
        "model_mode": "forward_dynamics",
        "input_reference": PICTURE,
        "action_params": UMI | {"action": [[*ROW, 0.5]] * 16},
        "fps": 20.0,
    },
    "av_inverse": ACT | {"model_mode": "inverse_dynamics", "input_reference": CLIP, "action_params": AV},
    "av_policy": ACT | {"model_mode": "policy", "input_reference": PICTURE, "action_params": AV},
    "nano_droid": {
        "model_mode": "policy",
        "prompt": "Remove the paper from the sink.",
        "input_reference": PICTURE,
        "action_params": {
            "domain_name": "droid_lerobot",
            "action_chunk_size": 32,
            "observation": {"observation/joint_position": [0.0] * 7, "observation/gripper_position": 0.0},
        },
        "seed": 0,
    },
}
COSMOS3 = Capabilities(
    model="Cosmos3-Nano",
    family="cosmos3",
    modes=(*MODES, "transfer", "forward_dynamics", "inverse_dynamics", "policy"),
    sizes=(Size(1280, 720), Size(960, 960), Size(832, 480)),
    size_multiple=16,
    frames=FrameRule(4, 397),
    fps=Range(1, 60),
    guidance_scale=Range(1, 7),
    steps=Range(1, 100),
    prompt_words=None,
    conditioning_frames=(5, 1),
    conditioning_indexes=True,
    flow_shift=Range(0.1, 30),
    controls=("edge", "depth", "seg", "vis", "wsm"),
    control_guidance=Range(0, 10),
    action_domains=(ActionDomain(1, "av", 9), ActionDomain(6, "umi", 10), ActionDomain(8, "droid_lerobot", 10)),
    defaults=Defaults(width=1280, height=720, frames=189, steps=35, guidance_scale=6, negative_prompt=""),
)
STUDENT = Capabilities(
    model="Cosmos3-Super-Image2Video-4Step",
    family="cosmos3",
    frames=FrameRule(4, 397),
    sizes=COSMOS3.sizes,
    fps=Range(1, 60),
    steps=Range(4, 4),
    guidance_scale=Range(1, 1),
    prompt_words=None,
    negative_prompts=False,
    defaults=Defaults(width=1280, height=720, frames=189, steps=4, guidance_scale=1, negative_prompt=""),
)


@pytest.mark.parametrize("name", GENERATION)
def test_generation(name: str) -> None:
    body = GENERATION[name]
    made = read(body, model=COSMOS3)
    assert (made.frames, made.fps, made.steps) == (body["num_frames"], 24, body["num_inference_steps"])
    assert (made.guidance_scale, made.flow_shift, made.seed) == (body["guidance_scale"], body["flow_shift"], 0)
    assert (made.prompt, made.warnings) == (body["prompt"], ())


@pytest.mark.parametrize("name", TRANSFERS)
def test_transfer(name: str) -> None:
    body = TRANSFERS[name]
    made = read(body, model=COSMOS3)
    kind = name.partition("_")[2]
    assert (made.mode, [control.kind for control in made.controls]) == ("transfer", [{"blur": "vis"}.get(kind, kind)])
    assert (made.frames, made.fps, made.steps) == (body["num_frames"], body["fps"], 50)
    assert made.control_guidance == body["transfer"]["control_guidance"]
    assert made.chunk_frames == body["transfer"]["num_video_frames_per_chunk"]
    bare = {name: body[name] for name in ("model_mode", "prompt", "input_reference", "transfer") if name in body}
    bare["transfer"] = {key: value for key, value in body["transfer"].items() if key not in CHUNKS}
    usual = read(bare, model=COSMOS3)
    assert (usual.frames, usual.fps, usual.guidance_scale) == (made.frames, made.fps, made.guidance_scale)


POLICY = policy_of(replace(COSMOS3, model="Cosmos3-Nano-Policy-DROID"))


def test_the_policy_for_droid_owns_its_sampling() -> None:
    body = ACTIONS["nano_droid"]
    made = read(body, model=POLICY)
    assert (made.frames, made.fps, made.width, made.height) == (33, 15, 736, 544)
    assert (made.steps, made.guidance_scale, made.flow_shift, made.warnings) == (4, 3.0, 5.0, ())
    own = {"num_inference_steps": 8, "guidance_scale": 2.0, "flow_shift": 4.0}
    made = read(body | own, model=POLICY)
    assert (made.steps, made.guidance_scale, made.flow_shift) == (8, 2.0, 4.0)
    for name, value, said in (
        ("fps", 10.0, "fps: 10.0 is not accepted; expected no value: the model has its own, 15"),
        ("negative_prompt", "dark", "negative_prompt: 'dark' is not accepted; expected no value"),
        ("model_mode", "forward_dynamics", "model_mode: 'forward_dynamics' is not accepted"),
    ):
        change = {name: value}
        if value == "forward_dynamics":
            rows = {"action": [[0.0] * 10] * 32}
            params = {key: value for key, value in body["action_params"].items() if key != "observation"}
            change["action_params"] = params | rows
        assert said in refusal(body | change, model=POLICY)
    for change, said in (
        (
            {"image_size": "480"},
            "action_params.image_size: '480' is not accepted; expected no value: the model has its own, 736x544",
        ),
        ({"observation": None}, "action_params.observation: [] is not accepted; expected observation/joint_position"),
        ({"observation": {"observation/joint_position": [0.0] * 6}}, "with 7 finite numbers"),
        ({"domain_name": "av"}, "action_params.domain_name: 'av' is not accepted; expected droid_lerobot (8)"),
    ):
        assert said in refusal(body | {"action_params": body["action_params"] | change}, model=POLICY)


def test_actions_alone_are_answered_without_a_clip(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"one frame")
    request = read(ACTIONS["nano_droid"], model=POLICY)
    outcome = Outcome(clip, 0, "", 736, 544, 1, 15, {}, action=((0.5,) * 8,) * 32)
    answer = json.loads(bytes(COSMOS3_DIALECT.answer(Request({"type": "http", "headers": []}), request, outcome).body))
    assert (answer.keys(), clip.exists()) == ({"action", "seed"}, False)
    assert answer["action"]["shape"] == [32, 8]
    named = {name: answer["action"][name] for name in ("dtype", "raw_action_dim", "action_mode", "domain_id")}
    assert named == {"dtype": "float32", "raw_action_dim": 8, "action_mode": "policy", "domain_id": 8}


@pytest.mark.parametrize("name", ACTIONS)
def test_action(name: str) -> None:
    body = ACTIONS[name]
    made = read(body, model=COSMOS3)
    assert made.mode == body["model_mode"]
    assert made.frames == body["action_params"]["action_chunk_size"] + 1
    assert (made.width, made.height, made.steps, made.guidance_scale) == (832, 480, 30, 1.0)
    assert made.fps == body.get("fps", 10)
    assert made.warnings == (
        ("the robot's state was not used: Cosmos3-Nano does not take it",) if name == "nano_droid" else ()
    )


def test_a_four_step_model_owns_its_sampling() -> None:
    body = {"model_mode": "image2video", "prompt": SCENE, "input_reference": PICTURE, "seed": 0, "num_frames": 189}
    made = read(body, model=STUDENT)
    assert (made.steps, made.guidance_scale, made.flow_shift) == (4, 1, None)
    for name, value in (("num_inference_steps", 35), ("guidance_scale", 6.0), ("flow_shift", 10.0)):
        assert f"{name}: {value} is not accepted; expected no value" in refusal(body | {name: value}, model=STUDENT)


@pytest.mark.parametrize("name", GENERATION)
def test_the_embedded_model_stands_in_for_generation(name: str) -> None:
    """What it does not use of the published bodies it says, and refuses nothing of them."""
    made = read(GENERATION[name], model=load_microcosm(EMBEDDED.folder).capabilities)
    assert "flow_shift was not used: microcosm has its own" in made.warnings
    assert (made.result.width, made.result.height) == ((960, 960) if name == "t2i" else (1280, 720))


def test_answers(painter: httpx.Client, jpeg: bytes) -> None:
    reference = base64.b64encode(jpeg).decode()
    small = {"num_inference_steps": 4, "guidance_scale": 1.0, "seed": 0}
    policy = {"model_mode": "policy", "prompt": "go", "input_reference": reference, **small}
    policy["action_params"] = {"domain_name": "av", "action_chunk_size": 4}
    answer = painter.post("/v1/infer", json=policy).raise_for_status().json()
    action = answer["action"]
    assert action["shape"] == [len(action["data"]), len(action["data"][0])] == [4, 9]
    assert (action["raw_action_dim"], action["action_mode"], action["domain_id"]) == (9, "policy", 1)
    assert action["dtype"] == "float32"
    still = {"model_mode": "text2image", "prompt": "a ball", "resolution": "256_1_1", **small}
    answer = painter.post("/v1/infer", json=still).raise_for_status().json()
    assert "b64_video" not in answer
    assert base64.b64decode(answer["b64_image"], validate=True)[:2] == b"\xff\xd8"
