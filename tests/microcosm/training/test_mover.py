"""Training what moves objects: shots that are simulated once, a step that learns, and what is exported."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cosmorama.world.microcosm.autoencoder import VideoAutoencoder
from cosmorama.world.microcosm.loader import load_microcosm
from cosmorama.world.microcosm.mover import STEPS_S, Mover
from microcosm.scenes.simulate import draw_shot
from microcosm.training import mover
from microcosm.training.export import load_part
from microcosm.training.export import main as export
from microcosm.training.mover import Options, Training, read_motions, taken, velocities_at
from tests.microcosm.learning import learns
from tests.tiny import save_tiny


def test_shots_are_simulated_once_and_learned_from_and_what_is_exported_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mover, "_SHOTS", 6)
    weights = save_tiny(tmp_path / "weights", sizes=((1280, 704),))
    VideoAutoencoder(4).save_pretrained(tmp_path / "vae")
    options = Options(
        minutes=0.0, runs=tmp_path, data=tmp_path, weights=weights, batch=8, files=2, compiled=False, processes=1
    )
    learns(Training(options, 0))
    written = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("motions-*.npz")}
    assert len(written) == 2
    next(Training(options, 0).batches)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("motions-*.npz")} == written
    export(runs=tmp_path, out=weights, part=["mover"])
    assert load_microcosm(weights).mover is not None
    assert json.loads((weights / "world.json").read_text())["mover"]["steps"] == 2
    begun = Training(replace(options, name="other", start=str(weights)), 0)
    averaged, _ = load_part(Mover, tmp_path / "mover.pt")
    for weight, average in zip(begun.optimizer.parameters, averaged.parameters(), strict=True):
        torch.testing.assert_close(weight, average, rtol=2e-3, atol=1e-4)  # exported in half precision


def test_what_is_known_of_a_shot_is_what_the_simulator_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mover, "_SHOTS", 4)
    known = read_motions(tmp_path, range(1))
    known.text = torch.zeros(4, 2, 2, 16)
    for row in range(4):
        shot = draw_shot(mover._FIRST_SEED + row)
        left = sorted(body.position_m[0] for body in shot.bodies)
        assert known.places[row, 0, : len(left), 0].tolist() == pytest.approx(left, abs=1e-4)
        assert float(known.things[row, :, 0].sum()) == len(left)
        fastest = max((body.velocity_m_s for body in shot.bodies), key=abs)
        assert float(known.begin[row].sum()) == pytest.approx(fastest, abs=1e-4)
    step = torch.full((4,), STEPS_S)
    second = known.places[:, STEPS_S] - known.places[:, STEPS_S - 1]
    torch.testing.assert_close(velocities_at(known, step), second * STEPS_S)
    assert torch.equal(velocities_at(known, torch.zeros(4, dtype=torch.long)), known.begin)
    some = taken(known, torch.arange(4).repeat(8))
    sides = np.sign(some.places[..., 0].numpy() * known.places.repeat(8, 1, 1, 1)[..., 0].numpy())
    assert {-1.0, 1.0} <= set(sides.flatten().tolist())
    assert torch.equal(some.places[..., 2], known.places.repeat(8, 1, 1, 1)[..., 2])
