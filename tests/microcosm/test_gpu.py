"""The command for a machine with a GPU: pieces that go on from each other, the last of which is the end of the plan."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cosmorama.world.microcosm.autoencoder import VideoAutoencoder
from cosmorama.world.microcosm.loader import load_microcosm
from microcosm import gpu
from tests.microcosm.shards import write_shards


def test_the_plan_is_the_minutes_asked_for() -> None:
    stages = gpu.plan(24)
    assert [stage.name for stage in stages] == ["stills", "windows"]
    assert sum(stage.minutes for stage in stages) == pytest.approx(24)
    assert all(0 < stage.decay < stage.minutes for stage in stages)


def test_calls_go_on_from_each_other_until_the_plan_is_done(tmp_path: Path) -> None:
    data, runs, out = (tmp_path / name for name in ("data", "runs", "out"))
    write_shards(data)
    torch.manual_seed(0)
    vae = VideoAutoencoder(6, cell=2)
    torch.nn.init.orthogonal_(vae.basis.data)
    vae.save_pretrained(runs / "vae")

    def call(training_minutes: float) -> float:
        gpu.main(
            out,
            10,
            training_minutes,
            data=data,
            runs=runs,
            widths="32,32,32,48",
            depths="1,1,1,1",
            batch=1,
            processes=0,
        )
        return float(torch.load(runs / "gpu.pt", weights_only=False)["progress"]["seconds"])

    first = call(0.05)
    assert first >= 2
    assert call(first / 60) == first  # done: nothing more is trained
    assert call(first / 60 + 0.1) > first
    assert load_microcosm(out / "weights").capabilities.model == "microcosm"
