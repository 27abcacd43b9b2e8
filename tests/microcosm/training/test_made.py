"""Stills that the denoiser makes, and which of them are learned from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from microcosm.training import made
from microcosm.training.still_refiner import Options as StillOptions
from microcosm.training.stills import Sampler, read_made
from tests.tiny import save_tiny


def test_what_the_denoiser_makes_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made, "_STILLS", 4)
    weights, out = save_tiny(tmp_path / "weights", sizes=((1280, 704),)), tmp_path / "made"
    out.mkdir()
    made.write(0, weights, out)
    written = {path.name: path.stat().st_mtime_ns for path in out.glob("*")}
    made.write(0, weights, out)  # is there already
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*")} == written
    assert np.load(out / "stills-0000.npz")["frames"].shape == (4, 88, 160, 3)
    assert len((out / "stills-0000.jsonl").read_text().splitlines()) == 4


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
