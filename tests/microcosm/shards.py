"""Shards of noise, in the format of rendered ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from microcosm.scenes.dataset import Label
from microcosm.scenes.shots import AnyShot, caption_of
from microcosm.scenes.simulate import Frames, draw_shot


def write_shard(folder: Path, kind: str, shots: Sequence[AnyShot], frames: Frames, fps: int = 24) -> None:
    """The first shard of a kind: shots and their frames, [shots, T, h, w, 3]."""
    size = f"{frames.shape[3]}x{frames.shape[2]}"
    np.savez(folder / f"{kind}-0000.npz", **{size: frames})  # type: ignore[arg-type]
    labels = [Label(s.seed, size, row, fps, s.scene, caption_of(s.scene)) for row, s in enumerate(shots)]
    (folder / f"{kind}-0000.jsonl").write_text("".join(json.dumps(asdict(label)) + "\n" for label in labels))


def write_shards(folder: Path) -> None:
    """One of stills, of which the last is an early one, one of short clips, one of long ones, three shots each."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, shots = np.random.default_rng(0), [draw_shot(seed) for seed in range(1, 4)]
    for kind, frames in (("images", 1), ("shorts", 33), ("clips", 121)):
        write_shard(folder, kind, shots, rng.integers(0, 256, (3, frames, 16, 24, 3), dtype=np.uint8))
