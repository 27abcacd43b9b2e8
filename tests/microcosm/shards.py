"""Shards of noise, in the format of rendered ones."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from microcosm.scenes.dataset import Label
from microcosm.scenes.shots import caption_of
from microcosm.scenes.simulate import draw_shot


def write_shards(folder: Path) -> None:
    """One of stills, of which the last is an early one, one of short clips, one of long ones, three shots each."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, shots = np.random.default_rng(0), [draw_shot(seed) for seed in range(1, 4)]
    for kind, frames in (("images", 1), ("shorts", 33), ("clips", 121)):
        arrays = {"24x16": rng.integers(0, 256, (3, frames, 16, 24, 3), dtype=np.uint8)}
        np.savez(folder / f"{kind}-0000.npz", **arrays)  # type: ignore[arg-type]
        labels = [Label(s.seed, "24x16", row, 24, s.scene, caption_of(s.scene)) for row, s in enumerate(shots)]
        (folder / f"{kind}-0000.jsonl").write_text("".join(json.dumps(asdict(label)) + "\n" for label in labels))
