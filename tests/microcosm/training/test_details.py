"""Training on kept cells: what is kept is what is drawn, and what learns from it comes nearer."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from cosmorama.world.microcosm.autoencoder import VideoAutoencoder
from microcosm.scenes.corridor import draw_drive
from microcosm.scenes.dataset import SPLITS
from microcosm.scenes.simulate import draw_shot
from microcosm.scenes.steered import draw_steered
from microcosm.training import drive, still_refiner
from microcosm.training.details import ahead_wrong, cells_ahead, cells_of_stills, learn, outlines_wrong, write_back
from tests.microcosm.shards import write_shard

PLAIN = np.full((1, 1, 88, 160, 3), 90, np.uint8)


def test_what_is_kept_is_learned_and_written_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for split, draw in (("starts", draw_shot), ("corridor-images", draw_drive)):
        shots = [draw(SPLITS[split].first_seed + index) for index in range(6)]
        write_shard(tmp_path, split, shots, PLAIN.repeat(6, 0))
    write_shard(tmp_path, "drives", [draw_steered(3)], PLAIN.repeat(49, 1), 12)
    VideoAutoencoder(4).save_pretrained(tmp_path / "vae")
    stills = still_refiner.Training(
        still_refiner.Options(runs=tmp_path, data=tmp_path, batch=4, processes=1, compiled=False), 0
    )
    drives = drive.Training(drive.Options(runs=tmp_path, data=tmp_path, processes=1, compiled=False), 0)
    net, driver = stills.net, drives.net
    for training, kept, parts, wrong in (
        (stills, list(cells_of_stills(stills, 2)), [net.paint.write, net.outline, net.finish], outlines_wrong),
        (drives, list(cells_ahead(drives, tmp_path)), [driver.light, driver.ahead], ahead_wrong),
    ):
        cells = [torch.cat(part) for part in zip(*kept, strict=True)]
        assert len({len(part) for part in cells}) == 1
        before = float(wrong(training.net, cells).detach())
        after = learn(training.net, parts, cells, wrong, 30)
        assert math.isfinite(after)
        assert float(wrong(training.net, cells).detach()) < 0.7 * before
        write_back(training)  # type: ignore[arg-type]
        assert training.checkpoint.exists()  # type: ignore[attr-defined]


def test_kept_cells_are_drawn_as_pictures_are(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shots = [draw_shot(SPLITS["starts"].first_seed + index) for index in range(6)]
    write_shard(tmp_path, "starts", shots, np.random.default_rng(0).integers(0, 256, (6, 1, 88, 160, 3), np.uint8))
    VideoAutoencoder(4).save_pretrained(tmp_path / "vae")
    options = still_refiner.Options(runs=tmp_path, data=tmp_path, batch=2, processes=1, compiled=False)
    stills = still_refiner.Training(options, 0)
    torch.nn.init.normal_(stills.net.paint.write.weight, std=0.1)
    torch.nn.init.normal_(stills.net.finish[-1].weight, std=0.1)
    drawn: list[torch.Tensor] = []
    draw = stills.net.draw
    stills.net.draw = lambda *given: drawn.append(draw(*given)) or drawn[-1]
    kept = next(cells_of_stills(stills, 2))
    cells = torch.nn.functional.pixel_unshuffle(drawn[0], 2).unflatten(1, (3, 4)).permute(0, 3, 4, 2, 1).flatten(0, 2)
    as_kept = [kept[0], torch.zeros_like(kept[1]), *kept[2:]]
    of_one = [float(outlines_wrong(stills.net, [part[row : row + 1] for part in as_kept]).detach()) for row in range(5)]
    square = cells.unflatten(1, (2, 2))
    wanted = cells.abs().mean((1, 2)) + 0.5 * (
        square.diff(dim=1).abs() + square.diff(dim=2).abs().transpose(1, 2)
    ).mean((1, 2, 3))
    assert all((wanted - one).abs().min() < 2e-3 for one in of_one)
