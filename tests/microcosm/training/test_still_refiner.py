"""Training what draws stills again: what sampled stills look like, a step that learns, and what is exported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from cosmorama.world.microcosm.autoencoder import VideoAutoencoder
from cosmorama.world.microcosm.loader import load_microcosm
from microcosm.scenes.corridor import draw_drive
from microcosm.scenes.dataset import SPLITS, still_time
from microcosm.scenes.simulate import draw_shot
from microcosm.training.decoder import encode_group
from microcosm.training.export import main as export
from microcosm.training.still_refiner import Options, Training, softened, still_roundtrip
from tests.microcosm.learning import learns
from tests.microcosm.shards import write_shard
from tests.tiny import save_tiny


def test_a_still_goes_through_the_autoencoder_as_eight_equal_frames_do() -> None:
    torch.manual_seed(0)
    vae = VideoAutoencoder(16, refiner_width=4)
    torch.nn.init.orthogonal_(vae.basis.data)
    torch.nn.init.normal_(vae.mean.data)
    frames = torch.rand(2, 3, 88, 120) * 2 - 1
    eight = encode_group(vae, frames[:, :, None].expand(-1, -1, 8, -1, -1))
    wanted = vae.decode_linear(eight, 88, 120)[:, :, -1].clamp(-1, 1)
    assert torch.allclose(still_roundtrip(vae, frames, torch.zeros(2, 1, 1, 1)), wanted, atol=1e-4)
    soft = softened(vae, frames.clone())
    assert soft.shape == frames.shape
    assert not torch.allclose(soft, frames, atol=0.05)


def test_a_step_learns_and_what_is_exported_draws_stills_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, draw in (("starts", draw_shot), ("corridor-images", draw_drive)):
        shots = [draw(SPLITS[split].first_seed + index) for index in range(3)]
        write_shard(tmp_path, split, shots, rng.integers(0, 256, (3, 1, 88, 160, 3), np.uint8))
    assert all(0 <= still_time(SPLITS["starts"].first_seed + index) <= 0.35 for index in range(50))
    VideoAutoencoder(4).save_pretrained(tmp_path / "vae")
    options = Options(minutes=0.0, runs=tmp_path, data=tmp_path, batch=6, processes=1, compiled=False, ema=0.5)
    training = Training(options, 0)
    learns(training)
    assert Training(options, 0).progress["steps"] == 2
    weights = save_tiny(tmp_path / "weights")
    assert load_microcosm(weights).still_refiner is None
    export(runs=tmp_path, out=weights, part=["still_refiner"])
    assert load_microcosm(weights).still_refiner is not None
    assert json.loads((weights / "world.json").read_text())["still_refiner"]["steps"] == 2
