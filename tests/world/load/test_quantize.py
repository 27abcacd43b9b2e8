"""int8 weights: what they take, how far from the full ones their clips are, and what they do not go with."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from cosmorama.api import app as server
from cosmorama.cli import app
from cosmorama.engine.build import load_model
from cosmorama.engine.engine import Engine
from cosmorama.errors import ModelNotFoundError, NotEnoughMemoryError
from cosmorama.request import Adapter
from cosmorama.settings import Settings
from cosmorama.world.kernels.layers import is_quantized
from cosmorama.world.load import fit
from cosmorama.world.load.adapters import AdaptedWorld
from cosmorama.world.load.fit import check_weights_fit
from cosmorama.world.load.offload import offload_layers
from cosmorama.world.load.options import LoadOptions
from cosmorama.world.load.quantize import check_quantize, held_bytes, quantize_blocks
from cosmorama.world.microcosm.sampling import CosmosFlowWorld
from cosmorama.world.registry import load_world
from tests.world.checkpoints import save_predict, weight_bytes
from tests.world.cosmos.test_transfer25 import clip, rollout_of
from tests.world.cosmos.transfer_checkpoints import save_transfer
from tests.world.cosmos3_checkpoints import save_cosmos3
from tests.world.generic_checkpoints import save_wan
from tests.world.load.test_memory import REQUEST, latents

pytest.importorskip("torchao", reason="needs torchao (pip install '.[quantize]')")

CLOSE = 0.01
"""Relative error of a clip's latents after two steps; 0.0015 to 0.0035 was measured."""
WIDE = {"num_attention_heads": 4, "attention_head_dim": 64, "mlp_ratio": 4.0}
"""Of the shape that published denoisers have: nearly all of their weights are the blocks' matrices."""


def networks(world: Any) -> tuple[nn.Module, ...]:
    """The networks of a model that are evaluated at every step."""
    transformer: Any = world.transformer
    return getattr(world, "readers", (transformer,))


def bytes_of(world: Any) -> int:
    """What they take."""
    return sum(held_bytes(weight) for network in networks(world) for weight in network.parameters())


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def transferred(world: Any) -> Tensor:
    """Latents of the last chunk of a Transfer2.5 clip."""
    world.chunk_frames = 9
    going = rollout_of(world, {"edge": clip(9)})
    while not going.done:
        going.advance()
    return going.latents


FAMILIES: dict[str, tuple[Callable[[Path], Any], Callable[[Any], Tensor]]] = {
    "predict1": (lambda folder: save_predict("predict1-text2world", folder), latents),
    "predict2": (
        lambda folder: save_predict("predict2-video2world", folder),
        lambda world: latents(world, image=b"a picture"),
    ),
    "predict2.5": (lambda folder: save_predict("predict2.5", folder), latents),
    "transfer2.5": (save_transfer, transferred),
    "cosmos3": (save_cosmos3, latents),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_nearly_the_same_clip_and_the_same_every_time(family: str, tmp_path: Path) -> None:
    save, sampled = FAMILIES[family]
    save(tmp_path)
    full, world = (load_world(str(tmp_path), device="cpu", quantize=held) for held in ("none", "int8"))
    assert world.capabilities.family == family
    ours = sampled(world)
    assert 0 < relative_error(ours, sampled(full)) < CLOSE
    assert torch.equal(sampled(world), ours)
    assert torch.equal(sampled(load_world(str(tmp_path), device="cpu", quantize="int8")), ours)
    held = {name for net in networks(world) for name, weight in net.named_parameters() if is_quantized(weight)}
    matrices = {
        name
        for net in networks(world)
        for name, weight in net.named_parameters()
        if weight.ndim == 2 and ".norm" not in name and ("blocks." in name or name.startswith("layers."))
    }
    assert held == {name for name in matrices if "before_proj" not in name and "after_proj" not in name}


def test_a_wide_denoiser_takes_about_half_of_bfloat16_and_is_counted_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_predict("predict2.5", tmp_path, **WIDE, num_layers=6)
    before = torch.get_float32_matmul_precision()
    for dtype, share in (("float32", 0.31), ("bfloat16", 0.55)):
        full, world = (load_world(str(tmp_path), dtype=dtype, device="cpu", quantize=held) for held in ("none", "int8"))
        assert bytes_of(world) < share * bytes_of(full)
        assert bytes_of(world) == weight_bytes(tmp_path / "transformer", getattr(torch, dtype), quantize="int8")
    assert torch.get_float32_matmul_precision() == before

    whole = sum(weight_bytes(part, quantize="int8") for part in tmp_path.iterdir() if part.is_dir())
    monkeypatch.setattr(fit, "available_bytes", lambda device: whole)
    check_weights_fit(tmp_path, LoadOptions(quantize="int8"))
    with pytest.raises(NotEnoughMemoryError, match="COSMORAMA_QUANTIZE=int8"):
        check_weights_fit(tmp_path, LoadOptions())
    monkeypatch.setattr(fit, "available_bytes", lambda device: whole - 1)
    with pytest.raises(NotEnoughMemoryError, match=r"bfloat16\) may help"):
        check_weights_fit(tmp_path, LoadOptions(quantize="int8"))


def test_int8_adds_less_than_bfloat16_does(tmp_path: Path) -> None:
    save_predict("predict2.5", tmp_path, **WIDE)
    exact, int8, half, both = (
        latents(load_world(str(tmp_path), dtype=dtype, device="cpu", quantize=held))
        for dtype, held in (("float32", "none"), ("float32", "int8"), ("bfloat16", "none"), ("bfloat16", "int8"))
    )
    assert relative_error(int8, exact) < relative_error(half, exact) < 0.05
    assert relative_error(both, exact) < 1.6 * relative_error(half, exact)


@pytest.fixture(scope="module")
def predict25(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("quantization") / "model"
    return folder, save_predict("predict2.5", folder)


def test_the_same_request_gives_the_same_file(predict25: tuple[Path, Any], tmp_path: Path) -> None:
    files = []
    for name in ("first", "again"):
        engine = Engine(load_model(Settings(model=str(predict25[0]), quantize="int8")))
        engine.submit(name, REQUEST, output=tmp_path / f"{name}.mp4")
        while engine.pending:
            engine.step()
        engine.close()
        files.append((tmp_path / f"{name}.mp4").read_bytes())
    assert files[0] == files[1]


def test_adapters_act_on_int8_weights_and_leave_them_alone_otherwise(
    predict25: tuple[Path, Any], tmp_path: Path
) -> None:
    folder, pipeline = predict25
    torch.manual_seed(0)
    weights = {}
    for name, linear in pipeline.transformer.named_modules():
        if name.endswith(("attn1.to_q", "attn2.to_k", "ff.net.2")):
            weights[f"transformer.{name}.lora_A.weight"] = torch.randn(4, linear.in_features) * 0.3
            weights[f"transformer.{name}.lora_B.weight"] = torch.randn(linear.out_features, 4) * 0.3
    save_file(weights, tmp_path / "style.safetensors")
    full, world = (load_world(str(folder), dtype="float32", device="cpu", quantize=held) for held in ("none", "int8"))
    plain = latents(world)
    adapted, expected = (AdaptedWorld(base, {"style": tmp_path / "style.safetensors"}) for base in (world, full))
    acted = latents(adapted, adapters=(Adapter("style"),))
    assert relative_error(acted, latents(expected, adapters=(Adapter("style"),))) < CLOSE
    assert relative_error(acted, plain) > 10 * CLOSE
    assert torch.equal(latents(adapted), plain)


def test_hooks_that_fetch_layers_leave_int8_weights_as_they_are(predict25: tuple[Path, Any]) -> None:
    world: Any = load_world(str(predict25[0]), dtype="float32", device="cpu", quantize="int8")
    expected = latents(world)

    def held() -> dict[str, torch.Tensor]:
        named = world.transformer.named_parameters()
        return {name: weight.dequantize() for name, weight in named if is_quantized(weight)}

    before = held()
    offload_layers(world.transformer, torch.device("cpu"))
    # Norms of layers that are fetched are not computed in place: up to rounding the same.
    torch.testing.assert_close(latents(world), expected, rtol=1e-5, atol=1e-5)
    after = held()
    assert before
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_half_of_cosmos3_that_reads_comes_back_as_int8(tmp_path: Path) -> None:
    save_cosmos3(tmp_path)
    kept: Any = load_world(str(tmp_path), device="cpu", quantize="int8")
    dropped: Any = load_world(str(tmp_path), device="cpu", quantize="int8", offload="release")
    full = dropped.text_half.nbytes
    assert torch.equal(latents(dropped), latents(kept))
    assert dropped.text_half.nbytes == 0
    dropped.text_half.restore()
    assert dropped.text_half.nbytes == full == kept.text_half.nbytes


def test_microcosm_is_float32_whatever_holds_for_the_models_beside_it(tiny_checkpoint: Path) -> None:
    world = load_world(str(tiny_checkpoint), quantize="int8")
    assert isinstance(world, CosmosFlowWorld)
    assert {parameter.dtype for parameter in world.transformer.parameters()} == {torch.float32}


def test_what_cannot_be_held_as_int8_is_refused(
    predict25: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, pipeline = predict25
    with pytest.raises(ModelNotFoundError, match="quantize is 'int8', but WanPipeline runs by its own code"):
        load_world(str(save_wan(tmp_path / "wan")), device="cpu", quantize="int8")
    with pytest.raises(ModelNotFoundError, match="does not go with float16"):
        load_world(str(folder), dtype="float16", device="cpu", quantize="int8")
    save_predict("predict2.5", tmp_path / "half")
    pipeline.transformer.half().save_pretrained(tmp_path / "half" / "transformer")
    pipeline.transformer.float()
    with pytest.raises(ModelNotFoundError, match="does not go with float16"):
        load_world(str(tmp_path / "half"), device="cpu", quantize="int8")
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(ModelNotFoundError, match=r"needs torchao: pip install '.\[quantize\]'"):
        load_world(str(folder), device="cpu", quantize="int8")


def test_the_setting_and_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Settings] = []
    monkeypatch.setattr(server, "serve", served.append)
    CliRunner().invoke(app, ["serve"])
    monkeypatch.setenv("COSMORAMA_QUANTIZE", "int8")
    CliRunner().invoke(app, ["serve"])
    CliRunner().invoke(app, ["serve", "--quantize", "none"])
    assert [settings.quantize for settings in served] == ["none", "int8", "none"]


def test_float8_is_for_gpus_that_multiply_it_and_for_bfloat16(
    predict25: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = predict25
    with pytest.raises(ModelNotFoundError, match=r"float8 needs a GPU that multiplies float8 .* to run on cpu"):
        load_world(str(folder), device="cpu", quantize="float8")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda place: (8, 0))
    with pytest.raises(ModelNotFoundError, match="to run on cuda:0"):
        check_quantize("float8", None, "cuda:0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda place: (9, 0))
    check_quantize("float8", torch.bfloat16, "cuda:0")
    with pytest.raises(ModelNotFoundError, match="computes in bfloat16"):
        check_quantize("float8", torch.float32, "cuda:0")
    # The same matrices as int8's, each by rows: what torchao makes of them only a GPU can tell.
    asked: list[tuple[torch.Size, Any]] = []
    monkeypatch.setattr(
        "torchao.quantization.quantize_", lambda layer, config: asked.append((layer.weight.shape, config))
    )
    world: Any = load_world(str(folder), device="cpu", dtype="bfloat16")
    quantize_blocks(world.transformer, lambda name: "cpu", "float8")
    assert {type(config).__name__ for _, config in asked} == {"Float8DynamicActivationFloat8WeightConfig"}
    assert {type(part).__name__ for _, config in asked for part in config.granularity} == {"PerRow"}
    assert sum(shape.numel() for shape, _ in asked) > 0
