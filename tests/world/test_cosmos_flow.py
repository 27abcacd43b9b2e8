"""The flow family: conditioning, prediction types, guidance map, and the checkpoint folder."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cosmorama.errors import ModelNotFoundError
from cosmorama.world.cosmos_flow import CosmosFlowWorld
from cosmorama.world.microcosm.loader import load_microcosm
from cosmorama.world.registry import known_models, load_world


def latents_for(world: CosmosFlowWorld, frames: int = 17) -> torch.Tensor:
    shape = world.latents_shape(frames, 704, 960)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_conditioning_latents_come_back_exactly_and_steer_the_rest(tiny_world: CosmosFlowWorld) -> None:
    latents, text = latents_for(tiny_world), tiny_world.encode_text("a red ball")
    known = latents[:, :, :1] * 0.5
    free = tiny_world.denoise(latents, 0.8, text, None, 24)
    conditioned = tiny_world.denoise(latents, 0.8, text, known, 24)
    assert conditioned.shape == latents.shape
    assert torch.equal(conditioned[:, :, :1], known)
    assert not torch.allclose(conditioned[:, :, 1:], free[:, :, 1:])


def test_noise_in_conditioning_frames_has_no_effect(tiny_world: CosmosFlowWorld) -> None:
    latents, text = latents_for(tiny_world), tiny_world.encode_text("a red ball")
    other = torch.cat([latents[:, :, :1] + 3, latents[:, :, 1:]], dim=2)
    known = torch.zeros_like(latents[:, :, :1])
    a, b = (tiny_world.denoise(x, 0.8, text, known, 24) for x in (latents, other))
    assert torch.equal(a, b)


def test_a_sample_and_a_velocity_network_mean_different_clean_latents(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sample"
    shutil.copytree(tiny_checkpoint, folder)
    values = json.loads((folder / "world.json").read_text())
    (folder / "world.json").write_text(json.dumps({**values, "prediction": "sample"}))
    sample, velocity = load_microcosm(folder), load_microcosm(tiny_checkpoint)
    latents, text = latents_for(sample), sample.encode_text("a red ball")
    x0 = sample.denoise(latents, 0.5, text, None, 24)
    torch.testing.assert_close(velocity.denoise(latents, 0.5, text, None, 24), latents - 0.5 * x0)


def test_guidance_weight_follows_the_checkpoints_points(tiny_world: CosmosFlowWorld) -> None:
    weights = [tiny_world.guidance_weight(scale) for scale in (0.5, 1, 4, 7, 8.5, 10, 20)]
    assert weights == pytest.approx([1, 1, 2, 3, 4.5, 6, 6])


def test_a_conditioning_image_is_encoded_like_the_first_frame_of_a_clip(tiny_world: CosmosFlowWorld) -> None:
    clip = torch.randint(0, 256, (9, 704, 960, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole, first = tiny_world.encode_frames(clip), tiny_world.encode_frames(clip[:1])
    assert whole.shape == tiny_world.latents_shape(9, 704, 960)
    torch.testing.assert_close(whole[:, :, :1], first)


def test_decoding_yields_every_frame_once(tiny_world: CosmosFlowWorld) -> None:
    chunks = list(tiny_world.decode(latents_for(tiny_world), 704, 960))
    assert sum(len(chunk) for chunk in chunks) == 17
    assert all(chunk.dtype == torch.uint8 and chunk.shape[1:] == (704, 960, 3) for chunk in chunks)


def test_capabilities_are_read_from_the_checkpoint(tiny_world: CosmosFlowWorld) -> None:
    capabilities = tiny_world.capabilities
    assert capabilities.model == "tiny"
    assert [str(size) for size in capabilities.sizes] == ["960x704", "704x960", "1280x704"]
    assert capabilities.conditioning_frames == (9, 1)
    assert replace(capabilities.frames, maximum=121) == capabilities.frames


def test_a_folder_that_is_no_checkpoint_is_refused_by_what_is_missing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="microcosm"):
        load_world("no-such-model")
    with pytest.raises(ModelNotFoundError, match=r"missing world\.json"):
        load_world(str(tmp_path))
    incomplete = tmp_path / "incomplete"
    shutil.copytree(tiny_checkpoint, incomplete)
    shutil.rmtree(incomplete / "vae")
    with pytest.raises(ModelNotFoundError, match=r"missing vae/config\.json"):
        load_world(str(incomplete))
    assert load_world(str(tiny_checkpoint)).capabilities.model == "tiny"
    assert [model.name for model in known_models()] == ["microcosm"]
