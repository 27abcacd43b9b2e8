"""From settings to an engine: devices, and what torch's allocators are told."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from cosmorama.engine.build import build_engine
from cosmorama.errors import ModelNotFoundError
from cosmorama.settings import Settings
from cosmorama.world.registry import load_world
from tests.world.checkpoints import save_predict


@pytest.mark.parametrize("parallel", ["guidance", "sequence"])
def test_processes_that_share_a_model_need_a_gpu_each(monkeypatch: pytest.MonkeyPatch, parallel: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ModelNotFoundError, match=f"{parallel} needs a GPU for each of 2 .* is 1 GPU"):
        build_engine(Settings(parallel=parallel))


def test_a_cosmos_model_on_a_cpu_says_so_unless_it_was_put_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_predict("predict2-text2image", tmp_path)
    with caplog.at_level(logging.WARNING, logger="cosmorama"):
        load_world(str(tmp_path), device="cpu")
        assert "CPU" not in caplog.text
        load_world(str(tmp_path))
    assert caplog.text.count("WILL RUN ON THE CPU") == 1
