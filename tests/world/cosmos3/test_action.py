"""Cosmos3 with robots: forward dynamics, inverse dynamics and policy against diffusers with the same seed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import Cosmos3OmniPipeline, CosmosActionCondition
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cosmorama.engine.prepare import PreparedRequest
from cosmorama.engine.rollout import Rollout
from cosmorama.errors import InvalidRequestError
from cosmorama.request import Action, ActionDomain, GenerationRequest, Mode, ResolvedRequest
from cosmorama.resolve import resolve
from cosmorama.world.cosmos3.capabilities import DOMAINS
from cosmorama.world.registry import load_world
from tests.world.cosmos3_checkpoints import KARRAS, save_cosmos3

WIDTH, HEIGHT = 256, 256  # a canvas of diffusers' tiers, so that it neither scales nor pads
ACTIONS, SEED, TOLERANCE = 4, 3, 1e-5
UMI = next(domain for domain in DOMAINS if domain.name == "umi")
GIVEN = tuple(tuple(float(row + column / 10) for column in range(UMI.width)) for row in range(3))
REQUEST = ResolvedRequest(
    prompt="The arm lifts a cup",
    negative_prompt="",
    prompt_upsampling=False,
    width=WIDTH,
    height=HEIGHT,
    frames=ACTIONS + 1,
    fps=10,
    steps=3,
    guidance_scale=1.0,
    seed=SEED,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_cosmos3(tmp_path_factory.mktemp("robots"), actions=True, scheduler=KARRAS)


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> Cosmos3OmniPipeline:
    """diffusers' own."""
    pipeline = Cosmos3OmniPipeline.from_pretrained(checkpoint, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def clip(frames: int) -> NDArray[np.uint8]:
    t, y, x, c = np.ogrid[:frames, :HEIGHT, :WIDTH, :3]
    return (127.5 + 127.5 * np.sin(x / 19 + y / 17 + t / 2 + c)).astype(np.uint8)


def request_of(mode: Mode, **changes: Any) -> ResolvedRequest:
    action = Action(UMI.id, GIVEN if mode == "forward_dynamics" else None, ACTIONS)
    media = {"video": b"a clip"} if mode == "inverse_dynamics" else {"image": b"a picture"}
    return replace(REQUEST, task=mode, **media | {"action": action} | changes)


def sampled(world: Any, request: ResolvedRequest) -> Rollout:
    given = clip(ACTIONS + 1 if request.mode == "inverse_dynamics" else 1)
    rollout = Rollout(world, PreparedRequest(resolve(request, world.capabilities), request.prompt or "", given))
    while not rollout.done:
        rollout.advance()
    return rollout


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize(
    ("mode", "guidance_scale", "view"),
    [
        ("forward_dynamics", 1.0, "ego_view"),
        ("forward_dynamics", 3.0, "third_person_view"),
        ("inverse_dynamics", 1.0, "wrist_view"),
        ("inverse_dynamics", 3.0, "ego_view"),
        ("policy", 1.0, "concat_view"),
        ("policy", 3.0, "ego_view"),
    ],
)
def test_clip_and_actions_are_those_of_diffusers(
    checkpoint: Path, pipeline: Cosmos3OmniPipeline, mode: Any, guidance_scale: float, view: Any
) -> None:
    world = load_world(str(checkpoint), device="cpu")
    request = request_of(mode, guidance_scale=guidance_scale)
    assert request.action is not None
    ours = sampled(world, replace(request, action=replace(request.action, view=view)))
    frames = [Image.fromarray(frame) for frame in clip(ACTIONS + 1)]
    theirs = pipeline(
        prompt=REQUEST.prompt,
        negative_prompt=REQUEST.negative_prompt,
        fps=REQUEST.fps,
        num_inference_steps=REQUEST.steps,
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(SEED),
        output_type="latent",
        action=CosmosActionCondition(
            mode=mode,
            chunk_size=ACTIONS,
            domain_name=UMI.name,
            resolution_tier=256,
            view_point=view,
            raw_actions=torch.tensor(GIVEN) if mode == "forward_dynamics" else None,
            **({"video": frames} if mode == "inverse_dynamics" else {"image": frames[0]}),
        ),
    )
    count = theirs.video.numel()
    assert relative_error(ours.latents[0, :count].view_as(theirs.video), theirs.video) <= TOLERANCE
    if mode == "forward_dynamics":
        assert ours.actions is None
    else:
        assert relative_error(torch.tensor(ours.actions), theirs.action[0]) <= TOLERANCE
        assert (len(ours.actions or ()), len((ours.actions or ((),))[0])) == (ACTIONS, UMI.width)
    assert sum(len(chunk) for chunk in ours.decode()) == ACTIONS + 1


def test_a_policy_for_droid_goes_on_from_the_robots_state(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models--nvidia--Cosmos3-Nano-Policy-DROID" / "snapshots" / "0123"
    folder.parent.mkdir(parents=True)
    folder.symlink_to(checkpoint, target_is_directory=True)
    world = load_world(str(folder), device="cpu")
    assert (world.capabilities.modes, world.capabilities.action_only) == (("policy",), True)
    joints = [0.1, -0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    made = []
    for gripper in (0.0, 0.25):
        state = json.dumps(
            {"observation": {"observation/joint_position": joints, "observation/gripper_position": gripper}}
        )
        asked = GenerationRequest(
            prompt="lift", task="policy", image=b"a picture", action=Action(8, None, ACTIONS, state=state), seed=SEED
        )
        # The picture is small so that the test is quick; the model's own size is 736 x 544.
        request = replace(resolve(asked, world.capabilities), width=64, height=64)
        rollout = Rollout(world, PreparedRequest(request, "lift", clip(1)[:, :64, :64]))
        while not rollout.done:
            rollout.advance()
            given = rollout.latents[0, -(ACTIONS + 1) * 16 :].view(-1, 16)[0]
            assert given[:8].tolist() == pytest.approx([*joints, 1 - gripper])
            assert given[8:].count_nonzero() == 0
        assert rollout.index == 4
        assert np.shape(rollout.actions) == (ACTIONS, 8)
        assert [len(frames) for frames in rollout.decode()] == [1]
        made.append(np.array(rollout.actions))
    assert not np.allclose(*made)


def test_known_robots_fit_the_checkpoint(checkpoint: Path) -> None:
    capabilities = load_world(str(checkpoint), device="cpu").capabilities
    assert capabilities.modes[4:] == ("forward_dynamics", "inverse_dynamics", "policy")
    assert ActionDomain(6, "umi", 10) in capabilities.action_domains
    assert all(domain.width <= 16 and domain.id < 10 for domain in capabilities.action_domains)


@pytest.mark.parametrize(
    ("mode", "changes", "message"),
    [
        ("policy", {"action": Action(UMI.id, None, 6)}, "action.steps: 6 is not accepted; expected a multiple of 4"),
        ("policy", {"frames": 9}, "frames: 9 is not accepted; expected action.steps"),
        ("policy", {"action": Action(UMI.id, GIVEN, 4)}, "none: policy answers with them"),
        ("forward_dynamics", {"action": Action(UMI.id, ((1.0, 2.0),), 4)}, "rows of 10 numbers for umi"),
        ("forward_dynamics", {"action": None}, "a domain and steps for forward_dynamics"),
        ("policy", {"action": Action(5, None, 4)}, "action.domain: 5 is not accepted"),
    ],
)
def test_what_does_not_fit_together_is_refused(checkpoint: Path, mode: Any, changes: Any, message: str) -> None:
    world = load_world(str(checkpoint), device="cpu")
    with pytest.raises(InvalidRequestError, match=message):
        sampled(world, request_of(mode, **changes))
