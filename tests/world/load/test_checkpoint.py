"""Checkpoint folders and hub ids: what is recognized, and what is said about what is missing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cosmorama.engine.build import load_model
from cosmorama.errors import ModelNotFoundError
from cosmorama.settings import Settings
from cosmorama.world.registry import load_world
from tests.world.checkpoints import PIPELINES, save_predict

FAMILIES = {
    "predict1-text2world": ("predict1", ("text2world",), "edm_euler"),
    "predict1-video2world": ("predict1", ("image2world", "video2world"), "edm_euler"),
    "predict2-text2image": ("predict2", ("text2world",), "euler"),
    "predict2-video2world": ("predict2", ("image2world", "video2world"), "euler"),
    "predict2.5": ("predict2.5", ("text2world", "image2world", "video2world"), "unipc"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("checkpoints") / "predict2"
    save_predict("predict2-video2world", made)
    return made


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.mark.parametrize("kind", PIPELINES)
def test_the_family_is_recognized(kind: str, tmp_path: Path) -> None:
    save_predict(kind, tmp_path / "my-model")
    capabilities = load_world(str(tmp_path / "my-model")).capabilities
    assert capabilities.model == "my-model"
    assert (capabilities.family, capabilities.modes, capabilities.default_solver) == FAMILIES[kind]
    assert capabilities.default_solver in capabilities.solvers


@pytest.mark.parametrize(
    "file",
    [
        "model_index.json",
        "transformer/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "tokenizer/tokenizer.json",
        "scheduler/scheduler_config.json",
    ],
)
def test_a_missing_file_is_named(file: str, copy: Path) -> None:
    (copy / file).unlink()
    with pytest.raises(ModelNotFoundError, match=file.replace(".", r"\.")):
        load_world(str(copy))


def test_pickled_weights_are_not_read(copy: Path) -> None:
    (weights,) = (copy / "transformer").glob("*.safetensors")
    weights.rename(copy / "transformer" / "diffusion_pytorch_model.bin")
    with pytest.raises(ModelNotFoundError, match=r"transformer/\*\.safetensors \(there is .*\.bin, but pickles"):
        load_world(str(copy))


def test_a_missing_shard_is_named(copy: Path) -> None:
    (weights,) = (copy / "transformer").glob("*.safetensors")
    index = copy / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": weights.name, "b": "second-00002.safetensors"}}))
    with pytest.raises(ModelNotFoundError, match=r"missing transformer/second-00002\.safetensors"):
        load_world(str(copy))


def test_weights_that_do_not_fit_are_refused(copy: Path) -> None:
    config = copy / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_layers": 3}))
    with pytest.raises(ModelNotFoundError, match=r"transformer_blocks\.2"):
        load_world(str(copy))


def test_a_scheduler_of_another_kind_is_refused(copy: Path) -> None:
    config = copy / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({"_class_name": "DDIMScheduler"}))
    with pytest.raises(ModelNotFoundError, match="FlowMatchEulerDiscreteScheduler"):
        load_world(str(copy))


def test_another_pipeline_is_refused_by_name(copy: Path) -> None:
    (copy / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(ModelNotFoundError, match="StableDiffusionPipeline"):
        load_world(str(copy))


def test_weights_keep_their_type_unless_told_otherwise(tmp_path: Path) -> None:
    built = save_predict("predict2-text2image", tmp_path)
    built.transformer.to(torch.bfloat16).save_pretrained(tmp_path / "transformer")
    world: Any = load_world(str(tmp_path))
    assert world.dtype == torch.bfloat16
    assert world.autoencoder.vae.dtype == torch.float32
    assert load_world(str(tmp_path), dtype="float32").dtype == torch.float32  # type: ignore[attr-defined]
    with pytest.raises(ModelNotFoundError, match="offload is 'release', which is for Cosmos3"):
        load_world(str(tmp_path), device="cpu", offload="release")
    with pytest.raises(ValueError, match="int8"):
        load_world(str(tmp_path), dtype="int8")


@pytest.mark.parametrize("device", ["cuda", "cuda:7", torch.device("cuda", 1)])
def test_a_gpu_that_torch_does_not_see_is_told_before_anything_is_read(
    folder: Path, device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ModelNotFoundError, match=r"to run on cuda.*sees 0 GPUs: for one install its driver"):
        load_world(str(folder), device=device)
    with pytest.raises(ModelNotFoundError, match="device is 'gpu:x': "):
        load_world(str(folder), device="gpu:x")


def test_what_microcosm_does_not_take_is_told(caplog: pytest.LogCaptureFixture) -> None:
    load_world("microcosm", dtype=torch.float32, offload="none", variant=None)
    assert not caplog.messages
    load_world("microcosm", dtype="bfloat16", quantize="int8")
    assert caplog.messages == ["microcosm runs on the CPU, in float32, whole: dtype bfloat16, quantize int8 not used"]


def test_loading_says_nothing_of_its_own(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_world(str(folder), device="cpu")
    assert "Loading weights" not in capfd.readouterr().err


def test_a_model_of_the_hub_is_taken_from_the_cache_folder_without_a_download(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "models--tiny--cosmos"
    shutil.copytree(folder, kept / "snapshots" / "0123")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("0123")
    monkeypatch.setenv("NIM_CACHE_PATH", str(tmp_path))
    monkeypatch.setenv("NIM_DISABLE_MODEL_DOWNLOAD", "1")
    assert load_model(Settings(model="tiny/cosmos")).capabilities.family == "predict2"
    with pytest.raises(ModelNotFoundError, match=f"no copy of it in {tmp_path}, and downloads .* are switched off"):
        load_model(Settings(model="tiny/another"))


def test_knowing_the_models_does_not_import_torch() -> None:
    code = "import sys, cosmorama.world.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
