"""Training what follows objects: what the denoiser makes to learn from, a step that learns, and what is exported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cosmorama.world.microcosm.autoencoder import VideoAutoencoder
from cosmorama.world.microcosm.loader import load_microcosm
from microcosm.scenes.dataset import SPLITS
from microcosm.scenes.simulate import draw_shot
from microcosm.training import made
from microcosm.training.export import main as export
from microcosm.training.still_refiner import Options as StillOptions
from microcosm.training.stills import Sampler, read_made
from microcosm.training.tracker import Options, Training
from tests.microcosm.learning import learns
from tests.microcosm.shards import write_shard
from tests.tiny import save_tiny


def test_what_the_denoiser_makes_is_learned_from_and_what_is_exported_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(made, "_STILLS", 4)
    rng = np.random.default_rng(0)
    for split, frames in (("shorts", 33), ("starts", 1)):
        shots = [draw_shot(SPLITS[split].first_seed + index) for index in range(3)]
        write_shard(tmp_path, split, shots, rng.integers(0, 256, (3, frames, 88, 160, 3), np.uint8))
    weights, out = save_tiny(tmp_path / "weights", sizes=((1280, 704),)), tmp_path / "made"
    out.mkdir()
    for source in (0, tmp_path / "shorts-0000.npz"):
        made.write(source, weights, out)
    written = {path.name: path.stat().st_mtime_ns for path in out.glob("*")}
    made.write(0, weights, out)  # is there already
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*")} == written
    rows = [json.loads(line) for line in (out / "shorts-0000.jsonl").read_text().splitlines()]
    looks = np.load(out / "shorts-0000.npz")["160x88"]
    assert looks.shape == (len(rows), 4, 2, 3, 88, 160)
    assert {row["given"] for row in rows} <= {1, 9}

    VideoAutoencoder(4).save_pretrained(tmp_path / "vae")
    options = Options(minutes=0.0, runs=tmp_path, data=tmp_path, made=out, batch=2, processes=1, compiled=False)
    training = Training(options, 0)
    learns(training)
    export(runs=tmp_path, out=weights, part=["tracker"])
    assert load_microcosm(weights).tracker is not None
    assert json.loads((weights / "world.json").read_text())["tracker"]["steps"] == 2


def test_stills_that_show_the_colors_of_their_prompt_are_learned_from(tmp_path: Path) -> None:
    frames = np.full((2, 88, 160, 3), 140, np.uint8)
    frames[:, 30:60, 100:130] = 217, 15, 15  # red at the right
    frames[0, 30:60, 20:50] = 18, 51, 224  # blue at the left, in the first one only
    scene = {"objects": [{"color": "red", "shape": "ball"}, {"color": "blue", "shape": "cube"}]}
    np.savez(tmp_path / "stills-0000.npz", frames=frames)
    rows = [{"prompt": "a red ball hits a blue cube", "scene": scene}] * 2
    (tmp_path / "stills-0000.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_made(tmp_path)
    assert found.kinds == [[("cube", "blue"), ("ball", "red")]]
    assert len(found.frames) == 1
    sampler = Sampler(tmp_path, tmp_path, 8, 0)
    batch = sampler.named(found)
    assert batch.made
    objects = batch.layout.objects
    assert (objects[..., 0] == 1).all()
    balls = objects[..., 6] == 1
    assert (balls.sum(1) == 1).all()
    assert balls[:, 0].any()  # mirrored: the ball is at the left
    assert balls[:, 1].any()
    assert StillOptions().made == made.MADE
