"""The kernels of a block: on a CPU in place, on a GPU compiled, and the same numbers; one graph for all blocks."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.transformer_cosmos import CosmosTransformer3DModel
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from cosmorama.errors import ModelNotFoundError
from cosmorama.world.cosmos import forward
from cosmorama.world.cosmos.forward import block_forward, cosmos_forward, kernels_for
from cosmorama.world.cosmos3.forward import generation_layer
from cosmorama.world.kernels import cpu, gpu
from cosmorama.world.load.checkpoint import build
from cosmorama.world.load.offload import offload_layers
from cosmorama.world.registry import load_world
from tests.world.checkpoints import save_predict
from tests.world.cosmos3_checkpoints import save_cosmos3


@pytest.fixture
def norm() -> RMSNorm:
    torch.manual_seed(0)
    norm = RMSNorm(16, eps=1e-6, elementwise_affine=True)
    torch.nn.init.normal_(norm.weight)
    return norm


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    gpu.compiled.cache_clear()
    yield
    torch._dynamo.reset()
    gpu.compiled.cache_clear()


def angles(tokens: int) -> tuple[Tensor, Tensor]:
    half = torch.rand(tokens, 8) * 6
    angle = torch.cat([half, half], dim=1)
    return angle.cos(), angle.sin()


@torch.inference_mode()
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("rotates", [True, False])
def test_every_norm_and_rotation_is_diffusers(norm: RMSNorm, size: float, rotates: bool) -> None:
    x, rotary = size * torch.randn(2, 5, 3, 16), angles(5) if rotates else None
    expected = norm(x)
    if rotary is not None:
        first, second = expected.chunk(2, -1)
        cos, sin = (part[:, None] for part in rotary)
        expected = expected * cos + torch.cat([-second, first], -1) * sin
    made = [
        cpu.qk_norm_rope(norm, x.clone(), rotary),
        gpu.qk_norm_rope(norm, x, rotary),
        gpu.normed_and_rotated(x, norm.weight, norm.eps, rotary),
    ]
    for ours in made:
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_what_is_differentiated_or_fetched_for_a_moment_is_not_written_over(norm: RMSNorm, tmp_path: Path) -> None:
    x = torch.randn(1, 2, 3, 16)
    assert kernels_for(x).gated_add is gpu.gated_add  # it could be differentiated
    with torch.inference_mode():
        assert kernels_for(x).gated_add is cpu.gated_add
        offload_layers(torch.nn.Sequential(norm), torch.device("cpu"), disk=tmp_path)
        kept = x.clone()
        kernels_for(x).qk_norm_rope(norm, x, None)
        assert torch.equal(x, kept)


@torch.inference_mode()
def test_one_graph_serves_all_blocks_and_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_predict("predict2.5", tmp_path, num_layers=3)
    net = build(CosmosTransformer3DModel, tmp_path / "transformer")
    monkeypatch.setattr(forward, "cpu", gpu)
    counter, compiled = CompileCounter(), gpu.compiled
    monkeypatch.setattr(gpu, "compiled", lambda function: compiled(function, backend=counter))
    graphs = []
    for size in (8, 12, 16):
        x, text = torch.randn(1, 16, 2, size, size), torch.randn(1, 5, 64)
        timesteps, mask = torch.full((1, 2), 0.5), torch.zeros(1, 1, 2, size, size)
        gpu.choose_compile(net, "none")
        expected = cosmos_forward(net, x, timesteps, text, condition_mask=mask)
        gpu.choose_compile(net, "blocks")
        torch.testing.assert_close(
            cosmos_forward(net, x, timesteps, text, condition_mask=mask), expected, rtol=1e-5, atol=1e-5
        )
        graphs.append(counter.frame_count)
    assert gpu.block_of(net, block_forward) is not block_forward
    assert graphs[0] == 1  # for three blocks
    assert graphs[-1] <= 3  # a second size may need another


@torch.inference_mode()
def test_what_cannot_be_compiled_runs_as_it_is_and_is_said_once(
    norm: RMSNorm, caplog: pytest.LogCaptureFixture
) -> None:
    def no_compiler(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler here")

    run, x = gpu.compiled(gpu.normed_and_rotated, backend=no_compiler), torch.randn(1, 2, 3, 16)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            torch.testing.assert_close(run(x, norm.weight, norm.eps, None), norm(x))
    (told,) = caplog.messages
    assert "normed_and_rotated cannot be compiled" in told


def test_nothing_is_compiled_on_a_cpu_and_blocks_not_where_layers_are_offloaded(tmp_path: Path) -> None:
    save_cosmos3(tmp_path)
    world: Any = load_world(str(tmp_path), device="cpu", compile="blocks")
    assert gpu.block_of(world.transformer, generation_layer) is generation_layer
    with pytest.raises(ModelNotFoundError, match="COSMORAMA_COMPILE=blocks does not go with COSMORAMA_OFFLOAD=layer"):
        load_world(str(tmp_path), device="cpu", compile="blocks", offload="layer")
