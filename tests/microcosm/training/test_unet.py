"""Training the U-Net: on shards as they are rendered, resumed where it stopped, and exported as it answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cosmorama.world.microcosm.autoencoder import VideoAutoencoder
from cosmorama.world.microcosm.loader import load_microcosm
from cosmorama.world.microcosm.windowed import WindowedWorld
from microcosm.evaluation.rollouts import Job, draw
from microcosm.training.export import main as export
from microcosm.training.optimizer import Muon
from microcosm.training.unet import Options, Training, loss_of
from tests.microcosm.shards import write_shards

CHANNELS = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_shards(folder)
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    vae = VideoAutoencoder(CHANNELS, cell=2)
    torch.nn.init.orthogonal_(vae.basis.data)
    vae.save_pretrained(tmp_path / "vae")
    return tmp_path


def options(data: Path, runs: Path) -> Options:
    return Options(
        minutes=0.0,
        decay_minutes=0.01,
        runs=runs,
        data=data,
        peak=1e-3,
        ema=0.5,
        processes=1,
        widths="32,32,32,48",
        depths="1,1,1,1",
        compiled=False,
    )


def test_training_lowers_the_loss_resumes_and_exports_what_answers(data: Path, runs: Path, tmp_path: Path) -> None:
    training = Training(options(data, runs), rank=0)
    batch = next(training.batches)

    def loss() -> float:
        torch.manual_seed(1)
        with torch.no_grad():
            return float(loss_of(training.net, training.text_encoder, training.vae, batch, training.options))

    before = loss()
    for _ in range(8):
        training.take_step(batch, 3e-3)
    assert loss() < before
    training.save()
    again = Training(options(data, runs), rank=0)
    assert again.progress["steps"] == training.progress["steps"] == 8
    for name, tensor in training.net.state_dict().items():
        assert torch.equal(tensor, again.net.state_dict()[name]), name
    again.run()
    assert again.progress["steps"] >= 8
    export(runs=runs, name="unet", out=tmp_path / "weights")
    world = load_microcosm(tmp_path / "weights")
    assert isinstance(world, WindowedWorld)
    assert draw(world, Job("a red ball", 9, 1, steps=1)).shape == (9, 88, 160, 3)


def test_windows_are_trained_on_too(data: Path, runs: Path) -> None:
    training = Training(replace(options(data, runs), stage="windows"), rank=0)
    shapes = set()
    while len(shapes) < 2:
        batch = next(training.batches)
        shapes.add(batch.seconds.shape[1] > 1)
        assert all(np.isfinite(value) for value in training.take_step(batch, 1e-3).values())


def test_muon_takes_the_kernels_of_a_convolution_as_one_matrix() -> None:
    torch.manual_seed(0)
    kernel = torch.nn.Parameter(torch.zeros(32, 32, 3, 3))
    matrix = torch.nn.Parameter(torch.zeros(32, 288))
    kernel.grad = torch.randn(32, 32, 3, 3)
    matrix.grad = kernel.grad.flatten(1)
    for parameter in (kernel, matrix):
        Muon([parameter]).step(0.1)
    torch.testing.assert_close(kernel.flatten(1), matrix)
    assert float(kernel.detach().abs().max()) > 0
