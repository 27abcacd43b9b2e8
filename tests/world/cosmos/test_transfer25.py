"""Transfer2.5, one chunk and several, against diffusers' own pipeline with the same seed."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file

from cosmorama.engine.prepare import PreparedRequest
from cosmorama.engine.rollout import Rollout
from cosmorama.errors import InvalidRequestError
from cosmorama.progress import Progress
from cosmorama.request import Control, ResolvedRequest
from cosmorama.resolve import resolve
from cosmorama.world.cosmos.sampling import CHUNK_FRAMES, CosmosWorld
from cosmorama.world.registry import load_world
from tests.world.cosmos.transfer_checkpoints import controls_without_torchvision, save_transfer

WIDTH, HEIGHT, STEPS, SEED, CHUNK = 80, 48, 3, 5, 9
TOLERANCE = 1e-5
REQUEST = ResolvedRequest(
    prompt="a red ball rolls",
    negative_prompt="ugly blurred scene",
    prompt_upsampling=False,
    width=WIDTH,
    height=HEIGHT,
    fps=16,
    steps=STEPS,
    guidance_scale=3.0,
    seed=SEED,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A checkpoint's folder and diffusers' pipeline on it."""
    folder = tmp_path_factory.mktemp("transfer")
    return folder, save_transfer(folder)


def world_of(folder: Path) -> CosmosWorld:
    """The checkpoint with chunks short enough for a test."""
    world = load_world(str(folder), device="cpu")
    assert isinstance(world, CosmosWorld)
    assert world.chunk_frames == CHUNK_FRAMES
    world.chunk_frames = CHUNK
    return world


def clip(frames: int, phase: float = 0.0) -> NDArray[np.uint8]:
    """Smooth moving colors, uint8 `[T, H, W, 3]`."""
    t, y, x, c = np.ogrid[:frames, :HEIGHT, :WIDTH, :3]
    return (127.5 + 127.5 * np.sin(x / 9 + y / 7 + t / 2 + c + phase)).astype(np.uint8)


def rollout_of(world: Any, clips: dict[str, NDArray[np.uint8]], weight: float = 0.7, **changes: Any) -> Rollout:
    controls = tuple(Control(kind, weight, b"a clip") for kind in clips)  # type: ignore[arg-type]
    frames = len(next(iter(clips.values()))) if clips else 9
    request = replace(REQUEST, frames=frames, controls=controls, task="transfer", **changes)
    return Rollout(world, PreparedRequest(resolve(request, world.capabilities), request.prompt or "", None, clips))


def sampled(world: Any, clips: dict[str, NDArray[np.uint8]], **options: Any) -> Rollout:
    rollout = rollout_of(world, clips, **options)
    while not rollout.done:
        rollout.advance()
    return rollout


def reference(pipeline: Any, frames: int, output: str, **changes: Any) -> Any:
    arguments = {
        "controls": [Image.fromarray(frame) for frame in clip(frames)],
        "controls_conditioning_scale": 0.7,
        "prompt": REQUEST.prompt,
        "negative_prompt": REQUEST.negative_prompt,
        "height": HEIGHT,
        "width": WIDTH,
        "num_frames_per_chunk": CHUNK,
        "num_inference_steps": STEPS,
        "guidance_scale": REQUEST.guidance_scale,
        "generator": torch.Generator().manual_seed(SEED),
    }
    with controls_without_torchvision():
        return pipeline(**arguments | changes, output_type=output).frames


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("guidance_scale", [3.0, 1.0])
def test_one_chunk_gives_diffusers_latents(checkpoint: tuple[Path, Any], guidance_scale: float) -> None:
    folder, pipeline = checkpoint
    ours = sampled(world_of(folder), {"edge": clip(CHUNK)}, guidance_scale=guidance_scale).latents
    theirs = reference(pipeline, CHUNK, "latent", guidance_scale=guidance_scale)
    assert relative_error(ours, theirs) <= TOLERANCE


def test_every_chunk_goes_on_from_the_one_before_as_in_diffusers(checkpoint: tuple[Path, Any]) -> None:
    folder, pipeline = checkpoint
    ours = sampled(world_of(folder), {"depth": clip(21)})  # chunks at frames 0, 8 and 16; the last is cut
    theirs = reference(pipeline, 21, "latent")
    assert relative_error(ours.latents[:, :, 1:2], theirs[:, :, 5:]) <= TOLERANCE
    frames = np.concatenate(list(ours.decode()))
    levels = np.round(reference(pipeline, 21, "np")[0] * 255)
    assert frames.shape == levels.shape == (21, HEIGHT, WIDTH, 3)
    assert np.abs(frames - levels).max() <= 1  # diffusers rounds down


def test_progress_runs_through_all_chunks(checkpoint: tuple[Path, Any]) -> None:
    rollout = rollout_of(world_of(checkpoint[0]), {"vis": clip(17)})
    seen = [rollout.advance() for _ in range(2 * STEPS + 1)]
    assert seen == [Progress("denoise", step, 2 * STEPS) for step in range(2 * STEPS + 1)]
    assert rollout.done


def test_rollouts_may_be_advanced_in_turns(checkpoint: tuple[Path, Any]) -> None:
    world = world_of(checkpoint[0])
    alone = sampled(world, {"seg": clip(17)}).latents
    first, second = rollout_of(world, {"seg": clip(17)}), rollout_of(world, {"seg": clip(9)}, seed=8)
    while not first.done:
        first.advance()
        second.advance()
    assert torch.equal(first.latents, alone)


def test_controls_of_several_networks_act_together(tmp_path: Path) -> None:
    pipeline = save_transfer(tmp_path, ("edge", "depth"))
    world = world_of(tmp_path)
    assert world.capabilities.controls == ("edge", "depth")
    alone = sampled(world, {"edge": clip(CHUNK)}).latents
    assert relative_error(alone, reference(pipeline, CHUNK, "latent")) <= TOLERANCE
    # A control that weighs nothing changes nothing but the noise that is drawn after it.
    both = {"edge": clip(CHUNK), "depth": clip(CHUNK, phase=1.0)}
    assert not torch.allclose(sampled(world, both).latents, alone)
    scaled = sampled(world, both, weight=1.0).latents
    assert torch.equal(scaled, sampled(world, both, weight=0.5).latents)  # a sum above 1 is scaled to 1


def test_a_control_network_computes_in_the_denoisers_type_however_it_is_stored(tmp_path: Path) -> None:
    save_transfer(tmp_path)
    alone = sampled(world_of(tmp_path), {"edge": clip(9)}).latents
    file = tmp_path / "controlnet/diffusion_pytorch_model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file)
    rounded = sampled(world_of(tmp_path), {"edge": clip(9)}).latents
    assert relative_error(rounded, alone) < 0.01


def test_controls_that_cannot_act_are_refused(checkpoint: tuple[Path, Any]) -> None:
    world = world_of(checkpoint[0])
    with pytest.raises(InvalidRequestError, match="one control: this checkpoint has one control network"):
        sampled(world, {"edge": clip(9), "vis": clip(9)})
    with pytest.raises(InvalidRequestError, match="one or more of edge, depth, seg, vis"):
        sampled(world, {})


def test_previews_show_the_chunk_that_is_being_sampled(checkpoint: tuple[Path, Any]) -> None:
    rollout = rollout_of(world_of(checkpoint[0]), {"edge": clip(17)})
    shown: list[NDArray[np.uint8]] = []
    while not rollout.done:
        rollout.advance()
        if (frame := rollout.preview()) is not None:
            shown.append(frame)
    first, second = shown[:STEPS], shown[STEPS:]
    assert len(second) == STEPS
    assert all(not np.array_equal(a, b) for a, b in pairwise(second))
    assert not any(np.array_equal(frame, first[-1]) for frame in second)
