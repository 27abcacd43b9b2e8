"""Memory: weights are counted before they are read, layers can wait elsewhere, and what is too much is explained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cosmorama.engine.engine import Engine
from cosmorama.engine.outcome import Outcome
from cosmorama.engine.prepare import PreparedRequest
from cosmorama.engine.rollout import Rollout
from cosmorama.errors import ModelNotFoundError, NotEnoughMemoryError
from cosmorama.request import GenerationRequest
from cosmorama.resolve import resolve
from cosmorama.world import memory
from cosmorama.world.checkpoint import LoadOptions
from cosmorama.world.memory import available_bytes, check_weights_fit, explained, offload_layers, place, weight_bytes
from cosmorama.world.registry import load_world
from tests.world.checkpoints import save_predict

CPU = torch.device("cpu")
REQUEST = GenerationRequest(
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


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("memory") / "model"
    return folder, save_predict("predict2.5", folder)


def latents(world: Any) -> torch.Tensor:
    request = resolve(REQUEST, world.capabilities)
    going = Rollout(world, PreparedRequest(request, request.prompt or "", None))
    while not going.done:
        going.advance()
    return going.latents


def test_weights_are_counted_from_the_files_alone(checkpoint: tuple[Path, Any]) -> None:
    folder, pipeline = checkpoint
    expected = sum(tensor.nbytes for tensor in pipeline.transformer.state_dict().values())
    assert weight_bytes(folder / "transformer") == expected
    assert weight_bytes(folder / "transformer", torch.bfloat16) == expected // 2


def test_what_cannot_fit_is_refused_before_it_is_read(
    checkpoint: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = checkpoint
    assert available_bytes(CPU) > 0
    check_weights_fit(folder, LoadOptions())
    whole = sum(weight_bytes(part) for part in folder.iterdir() if part.is_dir())
    monkeypatch.setattr(memory, "available_bytes", lambda device: whole - 1)
    with pytest.raises(NotEnoughMemoryError, match="COSMORAMA_DTYPE=bfloat16"):
        check_weights_fit(folder, LoadOptions())
    check_weights_fit(folder, LoadOptions(dtype=torch.bfloat16))
    with pytest.raises(NotEnoughMemoryError, match="COSMORAMA_OFFLOAD"):
        check_weights_fit(folder, LoadOptions("cuda"))
    check_weights_fit(folder, LoadOptions("cuda", offload="model"))


def test_layers_that_wait_elsewhere_give_the_same_numbers(checkpoint: tuple[Path, Any], tmp_path: Path) -> None:
    folder, _ = checkpoint
    expected = latents(load_world(str(folder), dtype="float32"))
    world: Any = load_world(str(folder), dtype="float32")
    offload_layers(world.parts.transformer, CPU, disk=tmp_path)
    # While they wait on disk, nothing of them is in memory: whichever layer is not fetched gives other numbers.
    for name, parameter in world.parts.transformer.named_parameters():
        if "." in name:
            parameter.data.view(-1)[:1].fill_(float("nan"))
    assert torch.equal(latents(world), expected)


def test_there_is_nothing_to_offload_from_on_the_cpu() -> None:
    with pytest.raises(ModelNotFoundError, match="runs on the CPU"):
        place(torch.nn.Linear(2, 2), "cpu", "layer")


def test_a_request_that_runs_out_of_memory_is_told_what_to_reduce(
    checkpoint: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world: Any = load_world(str(checkpoint[0]), dtype="float32")
    begin = world.begin

    def greedy(inputs: Any, read: Any) -> Any:
        if inputs.request.seed == 1:
            torch.empty(2**60)
        return begin(inputs, read)

    monkeypatch.setattr(world, "begin", greedy)
    engine = Engine(world)
    for seed in (1, 2):
        engine.submit(str(seed), replace(REQUEST, seed=seed), output=tmp_path / f"{seed}.mp4")
    results: dict[str, Any] = {}
    while engine.pending:
        engine.step()
        results.update(engine.finished())
    engine.close()
    assert isinstance(results["2"], Outcome)
    assert isinstance(results["1"], NotEnoughMemoryError)
    assert results["1"].status == 507
    assert "5 frames of 64x32" in str(results["1"])


def test_other_errors_are_not_taken_for_it() -> None:
    assert explained(RuntimeError("shape mismatch"), REQUEST) is None
    assert explained(torch.OutOfMemoryError("CUDA out of memory"), REQUEST) is not None
