"""Training to drive: what is drawn of rendered drives, and a step that learns from them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from cosmorama.world.microcosm.autoencoder import VideoAutoencoder
from cosmorama.world.microcosm.corridor_map import kind_of
from cosmorama.world.microcosm.driving import seen
from cosmorama.world.microcosm.loader import load_microcosm
from cosmorama.world.microcosm.odometry import HALF_WIDTH_M
from microcosm.evaluation.steering import motions
from microcosm.scenes.steered import FPS, LIMITS, draw_steered
from microcosm.training import finder
from microcosm.training.drive import Options, Training, apart, erased, stacked, worsened
from microcosm.training.export import main as export
from tests import needs
from tests.microcosm.learning import learns
from tests.microcosm.shards import write_shard
from tests.tiny import save_tiny


def test_a_driver_keeps_to_the_limits_and_the_shelves_to_their_place() -> None:
    for seed in range(20):
        drive = draw_steered(seed)
        assert len(drive.poses) == len(drive.actions) + 1
        for index, (low, high) in enumerate(LIMITS):
            assert low <= drive.actions[:, index].min() <= drive.actions[:, index].max() <= high
        assert max(abs(x) for x, _, _ in drive.poses) < HALF_WIDTH_M - 0.5
        turns = np.diff([yaw for _, _, yaw in drive.poses]) * FPS
        assert np.allclose(turns, drive.actions[:, 1], atol=1e-5)
    calm = draw_steered(1, 721, calm=True)
    assert max(abs(math.remainder(yaw, math.pi)) for _, _, yaw in calm.poses) < 1


@pytest.mark.parametrize("seed", [9_100_006, 9_100_009, 9_100_011], ids=["stopped", "bright", "turning fast"])
def test_how_the_camera_moves_is_read_off_its_pixels(seed: int) -> None:
    needs.osmesa()
    drive = draw_steered(seed, 17)
    found = motions(drive.frames(), drive)
    assert found.shape == (16, 3)
    assert np.abs(found - drive.motions).mean(0).max() < 0.1


def test_what_stands_in_the_way_takes_from_the_motion_alone() -> None:
    for seed in range(9_100_000, 9_100_012):
        drive = draw_steered(seed)
        assert np.allclose(drive.motions[:, 1], drive.actions[:, 1], atol=1e-4)
        less = np.abs(drive.motions - drive.actions).max(1) > 1e-3
        speeds, wanted = (np.linalg.norm(some[:, [0, 2]], axis=1) for some in (drive.motions, drive.actions))
        assert (speeds[less] <= wanted[less] + 1e-3).all()


def test_a_map_seen_from_its_other_end_is_the_same() -> None:
    """Half a turn of the map and of the view leaves all boxes and what stands ahead in their places in the picture."""
    drive = draw_steered(3)
    assert drive.ahead[0]
    for yaw in (0.3, 2.6, -2.9):
        view = np.array([0.4, 1.0, yaw, 1.3, -0.09], np.float32)
        boxes, ahead = drive.boxes(-6, 13), np.array(drive.ahead, np.float32)
        turned, *rest = finder.looking_on(view, boxes, -6, ahead)
        assert math.cos(turned[2]) > 0
        whole, part = (
            seen(torch.from_numpy(one)[None], stacked([(*some, kind_of(None).numpy())]))[0]
            for one, some in ((view, (boxes, -6, ahead)), (turned, rest))
        )
        near = whole[3] > 0.3
        for channel in (10, 11, 13, 18, 20):
            assert torch.allclose(whole[channel][near], part[channel][near], atol=1e-3)


def test_what_is_erased_has_no_form_and_the_rest_is_as_it_was() -> None:
    torch.manual_seed(0)
    frames = torch.rand(16, 2, 3, 88, 160)
    left, whole = erased(frames)
    assert whole.any()
    assert not whole.all()
    assert torch.equal(left[whole], frames[whole])
    assert (left[~whole] != frames[~whole]).float().mean() > 0.3
    assert apart(frames[:, 0], frames[:, 0]).sum() == 0
    assert worsened(frames).shape == frames.shape


def test_a_step_learns_and_what_is_exported_can_be_driven(tmp_path: Path) -> None:
    drives = [draw_steered(seed) for seed in (1, 2)]
    noise = np.random.default_rng(0).integers(0, 256, (2, 49, 88, 160, 3), np.uint8)
    write_shard(tmp_path, "drives", drives, noise, FPS)
    VideoAutoencoder(4).save_pretrained(tmp_path / "vae")
    options = Options(
        minutes=0.0, runs=tmp_path, data=tmp_path, batch=1, rollout=1, processes=1, compiled=False, ema=0.5
    )
    training = Training(options, 0)
    learns(training)
    assert Training(options, 0).progress["steps"] == 2
    finding = finder.Training(
        finder.Options(minutes=0.0, runs=tmp_path, data=tmp_path, batch=2, processes=1, compiled=False), 0
    )
    assert all(map(math.isfinite, finding.take_step(next(finding.batches), 1e-3).values()))
    finding.save()
    weights = save_tiny(tmp_path / "weights")
    export(tmp_path, "", weights, ["drive", "finder"])
    world = load_microcosm(weights)
    assert world.driver is not None
    assert "forward_dynamics" in world.capabilities.modes
    assert json.loads((weights / "world.json").read_text())["drive"]["steps"] == 2
