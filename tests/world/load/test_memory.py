"""Memory: weights are counted before they are read, layers can wait elsewhere, and what is too much is explained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cosmorama.engine.engine import Engine
from cosmorama.engine.outcome import Outcome
from cosmorama.engine.prepare import PreparedRequest
from cosmorama.engine.rollout import Rollout
from cosmorama.errors import ModelNotFoundError, NotEnoughMemoryError
from cosmorama.request import Action, ResolvedRequest
from cosmorama.resolve import resolve
from cosmorama.world.cosmos3.families import offload_halves
from cosmorama.world.faults import explained
from cosmorama.world.load import fit
from cosmorama.world.load.adapters import AdaptedWorld
from cosmorama.world.load.fit import available_bytes, check_weights_fit
from cosmorama.world.load.names import read_by_text
from cosmorama.world.load.offload import offload_layers, place
from cosmorama.world.load.options import LoadOptions
from cosmorama.world.readers.qwen import QwenReader
from cosmorama.world.registry import load_world
from tests.world.checkpoints import save_predict, weight_bytes
from tests.world.cosmos3_checkpoints import save_cosmos3

CPU = torch.device("cpu")
ROUNDING = 1e-5
"""Weights that were read again lie elsewhere in memory, and are added up in another order."""
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


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("memory") / "model"
    return folder, save_predict("predict2.5", folder)


def latents(world: Any, **changes: Any) -> torch.Tensor:
    request = resolve(replace(REQUEST, **changes), world.capabilities)
    given = np.full((1, request.height, request.width, 3), 90, np.uint8) if request.image else None
    going = Rollout(world, PreparedRequest(request, request.prompt or "", given))
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
    encoder, world = folder / "text_encoder", load_world(str(folder), dtype="float32", device="cpu")
    reader = layers_of(world.read_text)  # type: ignore[attr-defined]
    assert weight_bytes(encoder) == sum(tensor.nbytes for tensor in reader.state_dict().values())
    assert weight_bytes(encoder) < (encoder / "model.safetensors").stat().st_size * 0.9  # what sees and what speaks
    monkeypatch.setattr(fit, "available_bytes", lambda device: whole - 1)
    with pytest.raises(NotEnoughMemoryError, match="COSMORAMA_DTYPE=bfloat16"):
        check_weights_fit(folder, LoadOptions())
    check_weights_fit(folder, LoadOptions(dtype=torch.bfloat16))
    with pytest.raises(NotEnoughMemoryError, match="COSMORAMA_OFFLOAD"):
        check_weights_fit(folder, LoadOptions("cuda"))
    check_weights_fit(folder, LoadOptions("cuda", offload="model"))


def forget(module: torch.nn.Module, waiting: Callable[[str], bool] = lambda name: "." in name) -> None:
    """While weights wait on disk, nothing of them is in memory: whichever is not fetched gives other numbers."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if waiting(name) and tensor.is_floating_point():
            tensor.data.view(-1)[:1].fill_(float("nan"))


def layers_of(reader: Any) -> torch.nn.Module:
    """Of T5 the stack alone: its embedding is there twice, and on disk the second would be written empty."""
    layers: torch.nn.Module = reader._model if isinstance(reader, QwenReader) else reader._encoder.encoder
    return layers


@pytest.mark.parametrize("part", ["transformer", "text_encoder"])
@pytest.mark.parametrize("kind", ["predict2.5", "predict1-text2world"])
def test_layers_that_wait_elsewhere_give_the_same_numbers(kind: str, part: str, tmp_path: Path) -> None:
    save_predict(kind, tmp_path / "model")
    expected = latents(load_world(str(tmp_path / "model"), dtype="float32"))
    world: Any = load_world(str(tmp_path / "model"), dtype="float32")
    module = world.transformer if part == "transformer" else layers_of(world.read_text)
    offload_layers(module, CPU, called_whole=part == "text_encoder", disk=tmp_path / "layers")
    forget(module)
    assert torch.allclose(latents(world), expected, atol=ROUNDING)


@pytest.mark.parametrize("offload", ["layer", "model"])
@pytest.mark.parametrize("robot", [False, True])
def test_halves_of_cosmos3_that_wait_elsewhere_give_the_same_numbers(offload: Any, robot: bool, tmp_path: Path) -> None:
    folder = save_cosmos3(tmp_path / "model", actions=robot, edge=robot)
    changes: dict[str, Any] = {"task": "policy", "image": b"a picture", "action": Action(domain=7, steps=4)}
    expected = latents(load_world(str(folder), device="cpu"), **(changes if robot else {}))
    world: Any = load_world(str(folder), device="cpu")
    offload_halves(world.transformer, LoadOptions(offload=offload), disk=tmp_path / "layers")
    forget(world.transformer, read_by_text if offload == "model" else lambda name: "." in name)
    assert torch.allclose(latents(world, **(changes if robot else {})), expected, atol=ROUNDING)


def test_the_half_of_cosmos3_that_reads_is_counted_where_it_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_cosmos3(tmp_path / "model")
    read = weight_bytes(folder / "transformer", None, read_by_text)
    assert 0 < read < weight_bytes(folder / "transformer")
    whole = sum(weight_bytes(part) for part in folder.iterdir() if part.is_dir())
    monkeypatch.setattr(fit, "available_bytes", lambda device: whole - read)
    with pytest.raises(NotEnoughMemoryError, match="COSMORAMA_OFFLOAD"):
        check_weights_fit(folder, LoadOptions("cuda"))
    check_weights_fit(folder, LoadOptions("cuda", offload="model"))


def test_adapters_are_refused_where_layers_wait(checkpoint: tuple[Path, Any], tmp_path: Path) -> None:
    world: Any = load_world(str(checkpoint[0]), dtype="float32")
    offload_layers(world.transformer, CPU, disk=tmp_path)
    with pytest.raises(ModelNotFoundError, match="adapters cannot be loaded with this offload"):
        AdaptedWorld(world, {"style": tmp_path})


@pytest.mark.parametrize("offload", ["layer", "model"])
def test_there_is_nothing_to_offload_from_on_the_cpu(offload: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="runs on the CPU"):
        place(torch.nn.Linear(2, 2), "cpu", "layer")
    folder = save_cosmos3(tmp_path / "model")
    with pytest.raises(ModelNotFoundError, match="runs on the CPU"):
        load_world(str(folder), device="cpu", offload=offload)


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
