"""What Cosmos3's checkpoints take: the models, the policy of robots, the students of a few steps; robots they know.

Apart from what samples them, as `cosmos.capabilities` is. Numbers and widths of robots are those of diffusers'
`Cosmos3OmniPipeline` (Cosmos 3 paper, figure 3): an action is put together from poses (3 of translation, 6 of
rotation), grippers (1) and hands (15).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cosmorama.request import (
    CONTROL_KINDS,
    ActionDomain,
    Capabilities,
    ControlKind,
    Defaults,
    FrameRule,
    Mode,
    Range,
    Size,
)
from cosmorama.resolve import ROBOT_STATE
from cosmorama.usual import POLICY

KINDS: tuple[ControlKind, ...] = ("edge", "vis", "depth", "seg", "wsm")
"""Of controls, in the order in which the model reads them."""
DOMAINS: tuple[ActionDomain, ...] = (
    ActionDomain(1, "av", 9),
    ActionDomain(2, "camera_pose", 9),
    ActionDomain(3, "hand_pose", 57),
    ActionDomain(4, "pusht", 2),
    ActionDomain(6, "umi", 10),
    ActionDomain(7, "bridge_orig_lerobot", 10),
    ActionDomain(8, "droid_lerobot", 10),
    ActionDomain(9, "galbot", 30),
    ActionDomain(12, "robomind-franka-dual", 20),
    ActionDomain(13, "robomind-ur", 10),
    ActionDomain(15, "agibotworld", 29),
    ActionDomain(20, "fractal", 10),
)
ACTION_MODES: tuple[Mode, ...] = ("forward_dynamics", "inverse_dynamics", "policy")


def policy_of(whole: Capabilities) -> Capabilities:
    """What the policy for DROID's robots takes: a picture of 640 x 540 and the robot's state, for joints to reach.

    Sizes, rate and sampling are those of the Cosmos3 NIM's `nano-droid` and of Cosmos-Framework's policy server.
    """
    size = Size(POLICY.width or 0, POLICY.height or 0)
    fps = POLICY.fps or 15
    own = replace(whole.defaults, width=size.width, height=size.height, frames=33, fps=fps, steps=4, guidance_scale=3.0)
    return replace(
        whole,
        modes=("policy",),
        sizes=(size,),
        size_multiple=None,
        fps=Range(fps, fps),
        negative_prompts=False,
        conditioning_frames=(1,),
        conditioning_indexes=False,
        controls=(),
        control_guidance=None,
        action_domains=(ActionDomain(8, "droid_lerobot", ROBOT_STATE),),
        action_only=True,
        defaults=own,
    )


def capabilities_of(name: str, config: Any, distilled: tuple[float, ...] | None = None) -> Capabilities:
    """What a Cosmos3 transformer of this configuration takes; ranges and shapes of the Cosmos3 NIM.

    A distilled one owns its levels, its guidance and with it the negative prompt, and makes no actions.
    """
    whole = _capabilities(name, config)
    if distilled is None:
        return whole
    steps = len(distilled)
    return replace(
        whole,
        modes=_MODES,
        action_domains=(),
        controls=(),
        control_guidance=None,
        steps=Range(steps, steps),
        guidance_scale=Range(1, 1),
        negative_prompts=False,
        solvers=("euler",),
        default_solver="euler",
        flow_shift=None,
        reuse=None,
        defaults=replace(whole.defaults, steps=steps, guidance_scale=1.0),
    )


def _capabilities(name: str, config: Any) -> Capabilities:
    known = (
        robot for robot in DOMAINS if robot.width <= config.action_dim and robot.id < config.num_embodiment_domains
    )
    domains = tuple(known) if config.action_gen else ()
    return Capabilities(
        model=name,
        family="cosmos3",
        modes=(*_MODES, "transfer", *(ACTION_MODES if domains else ())),
        sizes=tuple(Size(width, height) for width, height in _SIZES),
        size_multiple=16,
        max_pixels=960 * 960,
        frames=FrameRule(4, 397),
        fps=Range(1, 60),
        guidance_scale=Range(1, 10),
        steps=Range(1, 100),
        prompt_words=4000,
        conditioning_frames=(5, 1),
        conditioning_indexes=True,
        solvers=("unipc", "euler", "dpmpp_2m"),
        default_solver="unipc",
        defaults=Defaults(width=1280, height=720, frames=189, fps=24, steps=35, guidance_scale=6.0, negative_prompt=""),
        flow_shift=Range(0.1, 30),
        controls=tuple(kind for kind in CONTROL_KINDS if kind in KINDS),
        control_guidance=Range(0, 10),
        action_domains=domains,
    )


_MODES: tuple[Mode, ...] = ("text2world", "image2world", "video2world")
_SIZES = (
    *((1280, 720), (960, 960), (720, 1280), (1104, 832), (832, 1104)),
    *((832, 480), (640, 640), (480, 832), (736, 544), (544, 736)),
    *((320, 192), (256, 256), (192, 320), (320, 256), (256, 320)),
)
"""Width and height of the tiers 720, 480 and 256, each as 16:9, 1:1, 9:16, 4:3 and 3:4."""
