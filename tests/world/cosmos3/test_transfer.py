"""Cosmos3 following controls, against diffusers' modular pipeline with `control_videos` at the same seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.modular_pipelines.cosmos.modular_blocks_cosmos3 import Cosmos3OmniBlocks
from diffusers.modular_pipelines.cosmos.modular_pipeline import Cosmos3OmniModularPipeline
from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import Cosmos3OmniPipeline
from numpy.typing import NDArray
from PIL import Image

from cosmorama.engine.prepare import PreparedRequest
from cosmorama.engine.rollout import Rollout
from cosmorama.errors import InvalidRequestError
from cosmorama.request import Control, GenerationRequest
from cosmorama.resolve import resolve
from cosmorama.world.registry import load_world
from tests.world.cosmos3.test_cosmos3 import FPS, SEED
from tests.world.cosmos3_checkpoints import KARRAS, save_cosmos3

WIDTH, HEIGHT, STEPS = 64, 32, 2  # diffusers wants multiples of 16
REQUEST = GenerationRequest(
    prompt="A robot waves.",
    negative_prompt="blurred",
    prompt_upsampling=False,
    width=WIDTH,
    height=HEIGHT,
    fps=FPS,
    steps=STEPS,
    guidance_scale=3.0,
    seed=SEED,
    task="transfer",
    chunk_frames=9,
    control_guidance=1.5,
)
NAMES = {"edge": "edge", "vis": "blur", "depth": "depth", "seg": "seg", "wsm": "wsm"}
Clip = NDArray[np.uint8]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_cosmos3(tmp_path_factory.mktemp("transfer"), scheduler=KARRAS)


@pytest.fixture(scope="module")
def world(folder: Path) -> Any:
    return load_world(str(folder), device="cpu")


@pytest.fixture(scope="module")
def reference(folder: Path) -> Callable[..., NDArray[np.float32]]:
    whole = Cosmos3OmniPipeline.from_pretrained(folder, safety_checker=None)

    def run(controls: dict[str, Clip], first: Clip | None = None, **arguments: Any) -> NDArray[np.float32]:
        pipeline = Cosmos3OmniModularPipeline(blocks=Cosmos3OmniBlocks())
        pipeline.update_components(
            transformer=whole.transformer,
            vae=whole.vae,
            text_tokenizer=whole.text_tokenizer,
            scheduler=whole.scheduler,
            enable_safety_checker=False,
        )
        pipeline.disable_safety_checker()
        usual: dict[str, Any] = {
            "prompt": REQUEST.prompt,
            "negative_prompt": REQUEST.negative_prompt,
            "height": HEIGHT,
            "width": WIDTH,
            "fps": FPS,
            "num_inference_steps": STEPS,
            "guidance_scale": REQUEST.guidance_scale,
            "control_guidance": REQUEST.control_guidance,
            "num_video_frames_per_chunk": REQUEST.chunk_frames,
            "control_videos": {NAMES[kind]: pictures(clip) for kind, clip in controls.items()},
            "generator": torch.Generator().manual_seed(SEED),
            "output_type": "np",
        }
        if first is not None:
            usual |= {"video": pictures(first), "num_first_chunk_conditional_frames": len(first)}
        return np.asarray(pipeline(**usual | arguments, output="videos"))

    return run


def pictures(clip: Clip) -> list[Image.Image]:
    return [Image.fromarray(frame) for frame in clip]


def moving(frames: int, phase: float = 0.0) -> Clip:
    t, y, x, c = np.ogrid[:frames, :HEIGHT, :WIDTH, :3]
    return (127.5 + 127.5 * np.sin(x / 9 + y / 7 + t / 2 + c + phase)).astype(np.uint8)


def rollout(world: Any, clips: dict[str, Clip], first: Clip | None = None, **changes: Any) -> Rollout:
    controls = tuple(Control(kind, 1.0, b"a clip") for kind in clips)  # type: ignore[arg-type]
    frames = len(next(iter(clips.values()))) if clips else 9
    request = replace(REQUEST, controls=controls, **{"frames": frames} | changes)
    if first is not None:
        request = replace(request, video=b"a clip", first_conditioning_frames=len(first))
    return Rollout(world, PreparedRequest(resolve(request, world.capabilities), request.prompt or "", first, clips))


def frames_of(made: Rollout) -> Clip:
    while not made.done:
        made.advance()
    return np.concatenate(list(made.decode()))


CASES: dict[str, tuple[dict[str, Clip], int, dict[str, Any], dict[str, Any]]] = {
    "one chunk": ({"edge": moving(9)}, 0, {}, {}),
    "three chunks, the last one filled up": ({"depth": moving(21)}, 0, {}, {}),
    "two controls, in the model's order": ({"seg": moving(9, 1.0), "vis": moving(9)}, 0, {}, {}),
    "without guidance by text": ({"wsm": moving(9)}, 0, {"guidance_scale": 1.0}, {"guidance_scale": 1.0}),
    "without guidance by controls": ({"edge": moving(9)}, 0, {"control_guidance": 1.0}, {"control_guidance": 1.0}),
    "five frames from chunk to chunk": (
        {"edge": moving(13)},
        0,
        {"conditioning_frames": 5},
        {"num_conditional_frames": 5},
    ),
    "behind given frames, and not all of the controls": ({"edge": moving(13)}, 5, {"frames": 7}, {"num_frames": 7}),
    "a still": ({"edge": moving(1)}, 0, {}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_frames_are_those_of_diffusers(world: Any, reference: Callable[..., Any], case: str) -> None:
    clips, given, ours, theirs = CASES[case]
    first = moving(given, 2.0) if given else None
    made = rollout(world, clips, first, **ours)
    frames, expected = frames_of(made), reference(clips, first, **theirs) * 255
    assert frames.shape == expected.shape
    assert np.abs(frames - expected).max() <= 0.51


def test_chunks_are_decoded_as_they_are_made_and_again_at_the_end(world: Any) -> None:
    made, parts = rollout(world, {"edge": moving(21)}), []
    shown = 0
    while not made.done:
        made.advance()
        if made.clean > shown:
            parts += list(made.decode(shown))
            shown = made.clean
    assert shown == 3
    assert made.progress.total == 3 * STEPS
    assert np.array_equal(np.concatenate(parts), frames_of(rollout(world, {"edge": moving(21)})))
    assert np.array_equal(np.concatenate(list(made.decode())), np.concatenate(parts))


def test_controls_are_followed_the_more_the_stronger_they_are(world: Any) -> None:
    one, other = ({"edge": moving(9, phase)} for phase in (0.0, 2.0))
    apart = [
        float(
            np.abs(frames_of(rollout(world, one, **how)).astype(int) - frames_of(rollout(world, other, **how))).mean()
        )
        for how in ({"control_guidance": strength, "guidance_scale": 1.0} for strength in (0.0, 1.0, 3.0))
    ]
    assert apart[0] == 0 < apart[1] < apart[2]


def test_what_cannot_be_followed_is_refused_by_name(world: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"controls: .* one or more of edge, depth, seg, vis, wsm"):
        rollout(world, {}).advance()
    with pytest.raises(InvalidRequestError, match=r"conditioning_frames: .* fewer than the chunk's 9"):
        rollout(world, {"edge": moving(21)}, conditioning_frames=9).advance()
    uneven = rollout(world, {"edge": moving(9), "seg": moving(9)})
    controls = (Control("edge", 1.0, b"a"), Control("seg", 0.5, b"a"))
    prepared = replace(uneven.prepared, request=replace(uneven.prepared.request, controls=controls))
    with pytest.raises(InvalidRequestError, match="equal weights above 0"):
        Rollout(world, prepared).advance()
