"""Distilled Cosmos3 (few steps, stochastic), against diffusers' `Cosmos3DistilledModularPipeline` by seed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.modular_pipelines.cosmos.modular_blocks_cosmos3_distilled import Cosmos3DistilledBlocks
from diffusers.modular_pipelines.cosmos.modular_pipeline import Cosmos3DistilledModularPipeline
from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import Cosmos3OmniPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from PIL import Image

from cosmorama.engine.prepare import PreparedRequest
from cosmorama.engine.rollout import Rollout
from cosmorama.errors import InvalidRequestError, ModelNotFoundError
from cosmorama.request import GenerationRequest
from cosmorama.resolve import resolve
from cosmorama.world.registry import load_world
from tests.world.cosmos3.test_cosmos3 import FPS, HEIGHT, SEED, TOLERANCE, WIDTH, clip, relative_error
from tests.world.cosmos3_checkpoints import save_cosmos3

SIGMAS = [1.0, 0.9375, 0.8333, 0.625]
REQUEST = GenerationRequest(
    prompt="A robot waves.",
    prompt_upsampling=False,
    width=WIDTH,
    height=HEIGHT,
    frames=13,
    fps=FPS,
    seed=SEED,
)


def save_distilled(folder: Path, *, plain_index: bool = False, **scheduler: Any) -> Path:
    save_cosmos3(folder)
    FlowMatchEulerDiscreteScheduler(**({"stochastic_sampling": True, "shift": 1.0} | scheduler)).save_pretrained(
        folder / "scheduler"
    )
    modular = {
        "_class_name": "Cosmos3DistilledModularPipeline",
        "is_distilled": True,
        "distilled_sigmas": SIGMAS,
        "default_use_system_prompt": True,
    }
    (folder / "modular_model_index.json").write_text(json.dumps(modular))
    if not plain_index:
        (folder / "model_index.json").unlink()
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_distilled(tmp_path_factory.mktemp("distilled"))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    whole = Cosmos3OmniPipeline.from_pretrained(save_cosmos3(tmp_path_factory.mktemp("whole")), safety_checker=None)

    def run(shift: float = 1.0, **arguments: Any) -> Any:
        pipeline = Cosmos3DistilledModularPipeline(blocks=Cosmos3DistilledBlocks())
        pipeline.update_components(
            transformer=whole.transformer,
            vae=whole.vae,
            text_tokenizer=whole.text_tokenizer,
            scheduler=FlowMatchEulerDiscreteScheduler(stochastic_sampling=True, shift=shift),
            distilled_sigmas=SIGMAS,
            enable_safety_checker=False,
        )
        pipeline.disable_safety_checker()
        usual = {"prompt": REQUEST.prompt, "height": HEIGHT, "width": WIDTH, "fps": FPS, "num_frames": 13}
        generator = torch.Generator().manual_seed(SEED)
        return pipeline(**usual | arguments, generator=generator, output="latents")

    return run


def sampled(world: Any, given: int = 0, **changes: Any) -> Rollout:
    media = {0: {}, 1: {"image": b"a picture"}}.get(given, {"video": b"a clip"})
    request = resolve(replace(REQUEST, **media, **changes), world.capabilities)
    rollout = Rollout(world, PreparedRequest(request, request.prompt or "", clip(given) if given else None))
    while not rollout.done:
        rollout.advance()
    return rollout


@pytest.mark.parametrize(("frames", "given"), [(1, 0), (13, 0), (13, 1), (13, 5)], ids=["t2i", "t2v", "i2v", "v2v"])
def test_every_mode_gives_diffusers_latents(
    folder: Path, reference: Callable[..., Any], frames: int, given: int
) -> None:
    pictures = [Image.fromarray(frame) for frame in clip(given)]
    media = {0: {}, 1: {"image": pictures and pictures[0]}}.get(given, {"video": pictures})
    ours = sampled(load_world(str(folder), device="cpu"), given, frames=frames)
    theirs = reference(num_frames=frames, **media)
    assert relative_error(ours.latents, theirs.reshape(ours.latents.shape)) <= TOLERANCE
    assert ours.evaluations == len(SIGMAS)


def test_the_levels_are_shifted_as_the_scheduler_says(tmp_path: Path, reference: Callable[..., Any]) -> None:
    ours = sampled(load_world(str(save_distilled(tmp_path, shift=3.0)), device="cpu")).latents
    assert relative_error(ours, reference(shift=3.0).reshape(ours.shape)) <= TOLERANCE


def test_a_folder_with_both_indexes_is_distilled(tmp_path: Path) -> None:
    world = load_world(str(save_distilled(tmp_path, plain_index=True)), device="cpu")
    assert world.capabilities.steps.high == len(SIGMAS)


def test_the_same_seed_gives_the_same_latents_also_where_a_step_is_done_again(folder: Path) -> None:
    world = load_world(str(folder), device="cpu")
    expected = sampled(world).latents
    request = resolve(REQUEST, world.capabilities)
    again = Rollout(world, PreparedRequest(request, "A robot waves.", None))
    again.advance()
    assert again._sampling is not None
    while not again.done:
        again._denoise(again._sampling)  # as if memory had run out at its end
        again.advance()
    assert torch.equal(again.latents, expected)


@pytest.mark.parametrize(
    ("field", "changes"),
    [("steps", {"steps": 35}), ("guidance_scale", {"guidance_scale": 6.0}), ("reuse", {"reuse": 0.2})],
)
def test_what_the_checkpoint_owns_is_refused_by_name(folder: Path, field: str, changes: dict[str, Any]) -> None:
    capabilities = load_world(str(folder), device="cpu").capabilities
    with pytest.raises(InvalidRequestError) as refused:
        resolve(replace(REQUEST, **changes), capabilities)
    assert field in [problem.field for problem in refused.value.problems]
    assert resolve(replace(REQUEST, steps=4, guidance_scale=1), capabilities).steps == 4


def test_what_samples_otherwise_is_refused(tmp_path: Path) -> None:
    save_distilled(tmp_path, stochastic_sampling=False)
    with pytest.raises(ModelNotFoundError, match="stochastic_sampling is False"):
        load_world(str(tmp_path), device="cpu")
    (tmp_path / "modular_model_index.json").write_text('{"_class_name": "Cosmos3DistilledModularPipeline"}')
    with pytest.raises(ModelNotFoundError, match="distilled_sigmas is None"):
        load_world(str(tmp_path), device="cpu")


@pytest.mark.parametrize("indexes", [(0, 3), (2,), (1, 2)])
def test_any_latent_frames_may_be_given(tmp_path: Path, indexes: tuple[int, ...]) -> None:
    saved = save_cosmos3(tmp_path)
    pipeline = Cosmos3OmniPipeline.from_pretrained(saved, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    given = 1 + 4 * max(indexes)
    theirs = pipeline(
        prompt=REQUEST.prompt,
        negative_prompt="blurred",
        video=[Image.fromarray(frame) for frame in clip(given)],
        condition_frame_indexes_vision=indexes,
        num_frames=13,
        height=HEIGHT,
        width=WIDTH,
        fps=FPS,
        num_inference_steps=4,
        guidance_scale=6.0,
        generator=torch.Generator().manual_seed(SEED),
        output_type="latent",
    ).video
    world = load_world(str(saved), device="cpu")
    changes: dict[str, Any] = {"negative_prompt": "blurred", "steps": 4, "guidance_scale": 6.0}
    ours = sampled(world, given, conditioning_indexes=indexes, **changes)
    assert relative_error(ours.latents, theirs) <= TOLERANCE
    frames = np.concatenate(list(ours.decode()))
    assert len(frames) == 13
