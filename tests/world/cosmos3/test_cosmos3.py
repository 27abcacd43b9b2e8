"""Cosmos3 in every mode, loaded as a user would, against diffusers' own pipeline with the same seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import Cosmos3OmniPipeline
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cosmorama.engine.embeddings import EmbeddingCache
from cosmorama.engine.prepare import PreparedRequest
from cosmorama.engine.rollout import Rollout
from cosmorama.errors import InvalidRequestError, ModelNotFoundError
from cosmorama.request import ResolvedRequest
from cosmorama.resolve import resolve
from cosmorama.world.cosmos3.sampling import Cosmos3World
from cosmorama.world.registry import load_world
from tests.world.cosmos3_checkpoints import KARRAS, save_cosmos3

TOLERANCE = 1e-5
WIDTH, HEIGHT, STEPS, SEED, FPS = 96, 80, 4, 5, 16  # 80 pixels are 5 latent rows: not a whole number of patches
REQUEST = ResolvedRequest(
    prompt="A robot waves.",
    negative_prompt="blurred",
    prompt_upsampling=False,
    width=WIDTH,
    height=HEIGHT,
    frames=13,
    fps=FPS,
    steps=STEPS,
    guidance_scale=6.0,
    seed=SEED,
)
KINDS: dict[str, dict[str, Any]] = {"nano": {"scheduler": KARRAS}, "shifted": {}, "edge": {"edge": True}}
Checkpoint = Callable[[str], tuple[Path, Cosmos3OmniPipeline]]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A checkpoint's folder and diffusers' pipeline on it, by kind."""
    made: dict[str, tuple[Path, Cosmos3OmniPipeline]] = {}

    def get(kind: str) -> tuple[Path, Cosmos3OmniPipeline]:
        if kind not in made:
            folder = save_cosmos3(tmp_path_factory.mktemp(kind), **KINDS[kind])
            pipeline = Cosmos3OmniPipeline.from_pretrained(folder, safety_checker=None)
            pipeline.set_progress_bar_config(disable=True)
            made[kind] = folder, pipeline
        return made[kind]

    return get


@pytest.fixture
def nano(checkpoint: Checkpoint) -> Cosmos3World:
    world = load_world(str(checkpoint("nano")[0]), device="cpu")
    assert isinstance(world, Cosmos3World)
    return world


def clip(frames: int) -> NDArray[np.uint8]:
    """Smooth moving colors, uint8 `[T, H, W, 3]`."""
    t, y, x, c = np.ogrid[:frames, :HEIGHT, :WIDTH, :3]
    return (127.5 + 127.5 * np.sin(x / 9 + y / 7 + t / 2 + c)).astype(np.uint8)


def sampled(world: Any, given: int = 0, **changes: Any) -> Rollout:
    """Run a request to the end, through the engine's own rollout."""
    media = {0: {}, 1: {"image": b"a picture"}}.get(given, {"video": b"a clip"})
    request = resolve(replace(REQUEST, **media, **changes), world.capabilities)
    rollout = Rollout(world, PreparedRequest(request, request.prompt or "", clip(given) if given else None))
    while not rollout.done:
        rollout.advance()
    return rollout


def reference(pipeline: Cosmos3OmniPipeline, given: int = 0, output: str = "latent", **changes: Any) -> Any:
    """The same from diffusers."""
    frames = [Image.fromarray(frame) for frame in clip(given)]
    media = {0: {}, 1: {"image": frames[:1] and frames[0]}}.get(given, {"video": frames})
    arguments = {
        "prompt": REQUEST.prompt,
        "negative_prompt": REQUEST.negative_prompt,
        "num_frames": REQUEST.frames,
        "height": HEIGHT,
        "width": WIDTH,
        "fps": FPS,
        "num_inference_steps": STEPS,
        "guidance_scale": REQUEST.guidance_scale,
        "generator": torch.Generator().manual_seed(SEED),
    }
    return pipeline(**arguments | media | changes, output_type=output).video


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("frames", "given"), [(1, 0), (13, 0), (13, 1), (13, 5)], ids=["t2i", "t2v", "i2v", "v2v"])
def test_every_mode_gives_diffusers_latents(checkpoint: Checkpoint, kind: str, frames: int, given: int) -> None:
    folder, pipeline = checkpoint(kind)
    ours = sampled(load_world(str(folder), device="cpu"), given, frames=frames).latents
    assert relative_error(ours, reference(pipeline, given, num_frames=frames)) <= TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_as_near_to_float32_as_diffusers_own(checkpoint: Checkpoint, kind: str) -> None:
    folder, pipeline = checkpoint(kind)
    rounded = Cosmos3OmniPipeline.from_pretrained(folder, safety_checker=None, torch_dtype=torch.bfloat16)
    exact = reference(pipeline)
    ours = sampled(load_world(str(folder), device="cpu", dtype="bfloat16")).latents
    assert float((ours - exact).norm()) <= 1.25 * float((reference(rounded).float() - exact).norm())


@pytest.mark.parametrize("given", [0, 5])
def test_frames_are_those_of_diffusers_to_the_last_level(checkpoint: Checkpoint, given: int) -> None:
    folder, pipeline = checkpoint("nano")
    ours = np.concatenate(list(sampled(load_world(str(folder), device="cpu"), given).decode()))
    theirs = reference(pipeline, given, output="np") * 255
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 0.51


def test_without_guidance_the_negative_prompt_is_not_read(checkpoint: Checkpoint, nano: Cosmos3World) -> None:
    _, pipeline = checkpoint("nano")
    ours = sampled(nano, guidance_scale=1.0, negative_prompt="anything").latents
    assert relative_error(ours, reference(pipeline, guidance_scale=1.0)) <= TOLERANCE


def test_a_flow_shift_replaces_karras_levels_which_diffusers_would_keep(
    checkpoint: Checkpoint, nano: Cosmos3World
) -> None:
    _, pipeline = checkpoint("nano")
    kept = pipeline.scheduler
    pipeline.scheduler = UniPCMultistepScheduler.from_config(kept.config, flow_shift=3.0, use_karras_sigmas=False)
    try:
        theirs = reference(pipeline)
    finally:
        pipeline.scheduler = kept
    assert relative_error(sampled(nano, flow_shift=3.0).latents, theirs) <= TOLERANCE
    assert relative_error(sampled(nano).latents, theirs) > 100 * TOLERANCE


def test_weights_that_are_released_in_between_change_no_number(checkpoint: Checkpoint, nano: Cosmos3World) -> None:
    other = load_world(str(checkpoint("nano")[0]), device="cpu", offload="release")
    assert torch.equal(sampled(other, 5).latents, sampled(nano, 5).latents)


def test_text_runs_once_per_prompt_and_its_weights_may_go_meanwhile(checkpoint: Checkpoint) -> None:
    world = load_world(str(checkpoint("nano")[0]), device="cpu", offload="release")
    assert isinstance(world, Cosmos3World)
    full = world.text_half.nbytes
    read = EmbeddingCache(world.encode_text)
    rollouts = []
    for prompt in ("A robot waves.", "A robot waves.", "A robot sits."):
        request = resolve(replace(REQUEST, prompt=prompt), world.capabilities)
        rollout = Rollout(world, PreparedRequest(request, prompt, None), read)
        rollout.advance()
        assert (world.text_half.resident, world.text_half.nbytes) == (False, 0)
        rollouts.append(rollout)
    for rollout in (*rollouts, *rollouts, *rollouts, *rollouts):  # in turns
        rollout.advance()
    assert torch.equal(rollouts[0].latents, rollouts[1].latents)
    assert not torch.equal(rollouts[0].latents, rollouts[2].latents)
    assert full > 0.3 * sum(p.nbytes for p in world.transformer.parameters())
    assert not hasattr(world.transformer, "lm_head")


def test_any_number_of_frames_is_made_at_the_next_4k_plus_1_and_cut(nano: Cosmos3World) -> None:
    ten, thirteen = (np.concatenate(list(sampled(nano, frames=frames).decode())) for frames in (10, 13))
    assert len(ten) == 10
    assert np.array_equal(ten, thirteen[:10])


def test_inputs_that_leave_nothing_to_generate_are_refused(nano: Cosmos3World) -> None:
    with pytest.raises(InvalidRequestError, match="frames: 1 is not accepted; expected more than the 1 given"):
        sampled(nano, 1, frames=1)


def test_an_unknown_solver_in_the_checkpoint_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = save_cosmos3(tmp_path, scheduler={"solver_type": "bh1"})
    with pytest.raises(ModelNotFoundError, match="solver_type is 'bh1'; only 'bh2' is supported"):
        load_world(str(folder), device="cpu")


def test_capabilities_follow_the_checkpoint(nano: Cosmos3World) -> None:
    capabilities = nano.capabilities
    assert capabilities.family == "cosmos3"
    assert capabilities.modes == (
        "text2world",
        "image2world",
        "video2world",
        "transfer",
    )  # it was built without actions
    assert (capabilities.defaults.frames, capabilities.defaults.guidance_scale) == (189, 6.0)
    assert len(capabilities.sizes) == 15
