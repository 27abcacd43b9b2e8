"""The command for a machine with a GPU: pieces that go on from each other, the last of which is the end of the plan."""

from __future__ import annotations

from pathlib import Path

import torch

from cosmorama.world.microcosm.autoencoder import VideoAutoencoder
from cosmorama.world.microcosm.loader import load_microcosm
from microcosm import gpu
from tests.microcosm.shards import write_shards


def test_calls_go_on_from_each_other_until_the_plan_is_done(tmp_path: Path) -> None:
    data, runs, out = (tmp_path / name for name in ("data", "runs", "out"))
    write_shards(data)
    torch.manual_seed(0)
    vae = VideoAutoencoder(6)
    torch.nn.init.orthogonal_(vae.basis.data)
    vae.save_pretrained(runs / "vae")

    def call(training_minutes: float) -> float:
        gpu.main(out, 10, training_minutes, data=data, runs=runs, heads=1, batch=1, processes=0)
        return float(torch.load(runs / "gpu.pt", weights_only=False)["progress"]["seconds"])

    first = call(0.12)
    assert first >= 6
    assert call(first / 60) == first  # done: nothing more is trained
    assert call(first / 60 + 0.1) > first
    assert load_microcosm(out / "weights").capabilities.model == "microcosm"
