"""Encoded latents: each shard once, under its own name, and read as one without being copied together."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from cosmorama.world.microcosm.autoencoder import VideoAutoencoder
from microcosm.scenes.dataset import Label
from microcosm.scenes.shots import DRAW, caption_of
from microcosm.training.latents import Rows, encode_split, load_groups


def _shard(folder: Path, kind: str, number: int, shots: int, frames: int) -> None:
    """Grey frames as a shard of drives, or of objects."""
    draw = DRAW["corridor" if kind.startswith("corridor") else "objects"]
    path = folder / f"{kind}-{number:04d}"
    scenes = [draw(seed).scene for seed in range(shots)]
    labels = [Label(row, "32x16", row, 24, scene, caption_of(scene)) for row, scene in enumerate(scenes)]
    path.with_suffix(".jsonl").write_text("".join(json.dumps(asdict(label)) + "\n" for label in labels))
    values = np.arange(shots, dtype=np.uint8).reshape(-1, 1, 1, 1, 1) + 10 * number
    np.savez(path.with_suffix(".npz"), **{"32x16": np.broadcast_to(values, (shots, frames, 16, 32, 3))})  # type: ignore[arg-type]


def test_shards_keep_their_names_and_are_encoded_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = VideoAutoencoder(4)
    torch.nn.init.orthogonal_(vae.basis.data)
    data, out = tmp_path / "data", tmp_path / "latents"
    data.mkdir()
    out.mkdir()
    _shard(data, "corridor-shorts", 3, 2, 33)
    encode_split("corridor-shorts", data, vae, out)
    (first,) = out.iterdir()
    made = first.stat().st_mtime_ns
    _shard(data, "corridor-shorts", 1, 3, 33)  # rendered later, elsewhere
    encode_split("corridor-shorts", data, vae, out)
    assert sorted(path.name for path in out.iterdir()) == ["corridor-shorts-0001.pt", "corridor-shorts-0003.pt"]
    assert first.stat().st_mtime_ns == made

    (group,) = load_groups("corridor-shorts", out)
    assert group.latents.shape == (10, 4, 5, 2, 4)
    assert group.mirrored == [False] * 3 + [True] * 3 + [False] * 2 + [True] * 2
    rows = group.latents[np.array([7, 0])].float()
    frames = torch.tensor([31.0, 10.0]).view(2, 1, 1, 1, 1).expand(2, 3, 33, 16, 32) / 127.5 - 1
    torch.testing.assert_close(rows, vae.encode_small(frames), rtol=1e-2, atol=1e-2)


def test_rows_of_several_parts_are_those_of_one() -> None:
    whole = torch.randn(7, 2, 5, 1, 1)
    rows = Rows(whole.split([3, 1, 3]))
    chosen = np.array([6, 0, 3, 2, 3])
    assert torch.equal(rows[chosen], whole[chosen])
    assert torch.equal(rows.first(2)[chosen], whole[chosen, :, :2])
    assert rows.first(2).shape == (7, 2, 2, 1, 1)
