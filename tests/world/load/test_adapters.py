"""LoRA adapters: as diffusers applies them, chosen by each request, and gone where none is chosen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from cosmorama.engine.prepare import PreparedRequest
from cosmorama.engine.rollout import Rollout
from cosmorama.errors import InvalidRequestError, ModelNotFoundError
from cosmorama.request import Adapter, ResolvedRequest
from cosmorama.resolve import resolve
from cosmorama.world.load.adapters import AdaptedWorld
from cosmorama.world.registry import load_world
from tests.world.checkpoints import save_predict

REQUEST = ResolvedRequest(
    prompt="a red ball",
    negative_prompt="blurred",
    prompt_upsampling=False,
    seed=5,
    steps=2,
    width=64,
    height=32,
    frames=5,
    fps=16,
    guidance_scale=3.0,
)
TARGETS = ("attn1.to_q", "attn1.to_v", "attn2.to_k", "attn2.to_out.0", "ff.net.2")
Saved = tuple[Any, Path, dict[str, Path]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    folder = tmp_path_factory.mktemp("predict25")
    pipeline = save_predict("predict2.5", folder / "model", concat_padding_mask=False)  # which needs torchvision
    adapters = {}
    for number, name in enumerate(("crayon", "noir")):
        torch.manual_seed(number)
        weights = {}
        for module, linear in pipeline.transformer.named_modules():
            if module.endswith(TARGETS):
                rows, columns = linear.weight.shape
                weights[f"transformer.{module}.lora_A.weight"] = torch.randn(4, columns) * 0.3
                weights[f"transformer.{module}.lora_B.weight"] = torch.randn(rows, 4) * 0.3
        assert len(weights) == 2 * 2 * len(TARGETS)
        adapters[name] = folder / name / "pytorch_lora_weights.safetensors"
        adapters[name].parent.mkdir()
        save_file(weights, adapters[name])
    return pipeline, folder / "model", adapters


@pytest.fixture(scope="module")
def adapted(saved: Saved) -> AdaptedWorld:
    return AdaptedWorld(load_world(str(saved[1]), dtype="float32"), saved[2])


def rollout(world: Any, *adapters: Adapter) -> Rollout:
    request = resolve(replace(REQUEST, adapters=adapters), world.capabilities)
    return Rollout(world, PreparedRequest(request, request.prompt or "", None))


def latents(world: Any, *adapters: Adapter) -> Tensor:
    going = rollout(world, *adapters)
    while not going.done:
        going.advance()
    return going.latents


def test_without_an_adapter_or_at_scale_0_the_numbers_are_the_plain_models(adapted: AdaptedWorld, saved: Saved) -> None:
    plain = latents(load_world(str(saved[1]), dtype="float32"))
    acted = latents(adapted, Adapter("crayon"))
    assert not torch.allclose(acted, plain, atol=1e-3)
    assert torch.equal(latents(adapted), plain)
    assert torch.equal(latents(adapted, Adapter("crayon", 0.0)), plain)


def test_an_adapter_acts_as_in_diffusers_pipeline(adapted: AdaptedWorld, saved: Saved) -> None:
    pipeline, _, adapters = saved
    pipeline.load_lora_weights(str(adapters["crayon"].parent), adapter_name="crayon")
    try:
        for scale in (1.0, 0.4):
            pipeline.transformer.set_adapters(["crayon"], [scale])
            expected = pipeline(
                prompt=REQUEST.prompt,
                negative_prompt=REQUEST.negative_prompt,
                height=REQUEST.height,
                width=REQUEST.width,
                num_frames=REQUEST.frames,
                num_inference_steps=REQUEST.steps,
                guidance_scale=REQUEST.guidance_scale,
                generator=torch.Generator().manual_seed(5),
                output_type="latent",
            ).frames
            ours = latents(adapted, Adapter("crayon", scale))
            assert (ours - expected).norm() / expected.norm() < 1e-5
    finally:
        pipeline.unload_lora_weights()


def test_requests_with_different_adapters_are_interleaved(adapted: AdaptedWorld) -> None:
    choices: list[tuple[Adapter, ...]] = [
        (Adapter("crayon"),),
        (),
        (Adapter("noir", 0.5),),
        (Adapter("crayon", 0.7), Adapter("noir", 0.7)),
    ]
    alone = [latents(adapted, *choice) for choice in choices]
    together = [rollout(adapted, *choice) for choice in choices]
    while not all(going.done for going in together):
        for going in together:
            going.advance()
    for going, expected in zip(together, alone, strict=True):
        assert torch.equal(going.latents, expected)
    assert not torch.allclose(alone[0], alone[3], atol=1e-3)


def test_adapters_are_published_and_others_refused(adapted: AdaptedWorld) -> None:
    assert adapted.capabilities.adapters == ("crayon", "noir")
    with pytest.raises(InvalidRequestError, match="one of crayon, noir"):
        rollout(adapted, Adapter("sepia"))


def test_what_is_no_adapter_for_the_model_is_refused_at_the_start(
    saved: Saved, tmp_path: Path, tiny_world: Any
) -> None:
    _, folder, _ = saved
    world = load_world(str(folder), dtype="float32")
    other = tmp_path / "other.safetensors"
    save_file(
        {
            "transformer.nowhere.lora_A.weight": torch.zeros(4, 8),
            "transformer.nowhere.lora_B.weight": torch.zeros(8, 4),
        },
        other,
    )
    pickled = tmp_path / "adapter.bin"
    torch.save({}, pickled)
    garbage = tmp_path / "garbage.safetensors"
    garbage.write_bytes(b"no header")
    for path in (tmp_path / "missing", pickled, other, garbage):
        with pytest.raises(ModelNotFoundError):
            AdaptedWorld(world, {"bad": path})
    with pytest.raises(ModelNotFoundError, match=r"does not fit|no weights"):
        AdaptedWorld(tiny_world, {"bad": other})
