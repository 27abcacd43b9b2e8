"""Training the denoiser: it resumes where it stopped, and what is exported answers as what was trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import typer

from cosmorama.world.cosmos.forward import cosmos_forward
from cosmorama.world.microcosm.autoencoder import VideoAutoencoder
from cosmorama.world.microcosm.text_encoder import TextEncoder
from microcosm.training.autoencoder import to_float
from microcosm.training.batches import Shots
from microcosm.training.export import load_averaged
from microcosm.training.export import main as export
from microcosm.training.gain import gain_of
from microcosm.training.optimizer import Optimizer
from microcosm.training.parallel import agreed, average_weights, in_processes
from microcosm.training.world import Options, Training, draw_t, given_parts, taught
from tests.microcosm.shards import write_shards

CHANNELS = 6


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with a random tokenizer, and shards of stills and clips beside it."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    vae = VideoAutoencoder(CHANNELS)
    torch.nn.init.orthogonal_(vae.basis.data)
    vae.save_pretrained(folder / "vae")
    write_shards(folder / "data")
    return folder


def train(runs: Path, stage: str, minutes: float, name: str = "world", start: str = "", bf16: bool = False) -> Training:
    training = Training(
        Options(
            stage=stage,
            minutes=minutes,
            decay_minutes=0.01,
            runs=runs,
            data=runs / "data",
            name=name,
            start=start,
            ema=0.5,
            processes=1,
            heads=1,
            bf16=bf16,
        ),
        rank=0,
    )
    training.run()
    return training


def test_beside_the_noise_stands_what_is_given_of_each_clip() -> None:
    clean, vae = torch.randn(3, CHANNELS, 5, 4, 6), VideoAutoencoder(CHANNELS)
    torch.nn.init.orthogonal_(vae.basis.data)
    (nothing, one, two), held = given_parts(vae, clean, torch.tensor([0, 1, 2]))
    assert not nothing.any()
    assert torch.equal(one, clean[1, :, :1].expand_as(one))
    assert torch.equal(two[:, :2], clean[2, :, :2])
    assert torch.equal(two[:, 2:], clean[2, :, 1:2].expand(-1, 3, -1, -1))
    assert not held[0].any()
    torch.testing.assert_close(held[2:], vae.hold(clean[2:, :, :2]))


def test_few_noise_levels_are_low() -> None:
    torch.manual_seed(0)
    assert float((draw_t(4000, 4.0) < 0.25).float().mean()) < 0.04


def test_channels_of_moving_cells_are_made_equally_strong() -> None:
    """Half of the picture flickers, the other half stands still."""
    torch.manual_seed(0)
    vae = VideoAutoencoder(CHANNELS)
    torch.nn.init.orthogonal_(vae.basis.data)
    frames = np.full((64, 33, 32, 48, 3), 128, np.uint8)
    frames[..., :24, :] = np.random.default_rng(0).integers(0, 256, frames[..., :24, :].shape)
    gain = gain_of([Shots("objects", frames[:, :1], []), Shots("objects", frames, [])], vae)
    moving = vae.encode_small(to_float(frames))[:, :, 1:, :, :3]
    spread = (gain[None] * moving).transpose(0, 1).flatten(1).std(1)
    torch.testing.assert_close(spread, torch.ones(CHANNELS), rtol=0.1, atol=0)


def test_training_resumes_and_what_is_exported_reads_the_given_frames_as_they_are(runs: Path) -> None:
    first = train(runs, "images", 0.05)
    second = train(runs, "full", 0.02, bf16=True)
    assert 0 < first.progress["steps"] < second.progress["steps"]
    assert second.optimizer.steps == second.progress["steps"]

    exported, _, progress = load_averaged(runs / "world.pt")
    assert progress == second.progress
    with torch.no_grad():
        for parameter, average in zip(second.net.parameters(), second.optimizer.averages, strict=False):
            parameter.copy_(average)
        clean, text = torch.randn(1, CHANNELS, 5, 4, 6), torch.randn(1, 3, 192)
        given, mask = given_parts(second.vae, clean, torch.tensor([1]))[0], torch.zeros(1, 1, 5, 4, 6)
        noisy = torch.randn_like(clean)
        trained, shipped = (
            cosmos_forward(net, torch.cat([noisy, read], 1), torch.ones(1, 5), text, condition_mask=mask, fps=24.0)
            for net, read in ((second.net, given * second.gain), (exported, given))
        )
    torch.testing.assert_close(shipped, trained, rtol=1e-4, atol=1e-5)
    assert (second.gain - 1).abs().min() > 0.2


def test_training_begins_from_exported_weights_where_they_ended(runs: Path, tmp_path: Path) -> None:
    trained = train(runs, "full", 0.02, name="first")
    export(runs, "first", tmp_path / "weights")
    begun = train(runs, "full", 0.0, name="second", start=str(tmp_path / "weights"))
    assert begun.progress["steps"] == trained.progress["steps"]
    for weight, average in zip(begun.optimizer.parameters, trained.optimizer.averages, strict=True):
        torch.testing.assert_close(weight, average, rtol=2e-3, atol=1e-4)  # exported in half precision


def test_a_text_encoder_that_learns_words_reads_those_it_knew_as_before() -> None:
    torch.manual_seed(0)
    known: TextEncoder = TextEncoder(["ball", "red"], width=32, heads=2).eval()
    new = taught(known, TextEncoder(["aisle", "ball", "red", "robot"], width=32, heads=2)).eval()
    prompts = ["a red ball", "", "red robot"]
    with torch.inference_mode():
        (before, _), (after, mask) = known(prompts), new(prompts)
    torch.testing.assert_close(after[:2], before[:2])
    assert mask.sum(1).tolist() == [3, 1, 3]
    assert not torch.allclose(after[2, :2], before[2, :2])


def test_muon_takes_the_kernels_of_a_convolution_as_one_matrix() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(32, 32, 3, bias=False)
    matrix = torch.nn.Parameter(layer.weight.detach().flatten(1).clone())
    alone = torch.optim.Muon([matrix], 0.1, 0.01, ns_steps=4, adjust_lr_fn="match_rms_adamw")
    both, before = Optimizer([layer, torch.nn.Linear(8, 8)], 0.9), matrix.detach().clone()
    layer.weight.grad = torch.randn(32, 32, 3, 3) / 1000
    matrix.grad = layer.weight.grad.flatten(1).clone()
    alone.step()
    both.step(0.1)
    torch.testing.assert_close(layer.weight.flatten(1), matrix)
    assert float((matrix.detach() - before).abs().max()) > 0


def _meet(rank: int, folder: Path) -> None:
    weight = torch.full((2,), float(rank))
    average_weights([weight])
    (folder / str(rank)).write_text(f"{agreed(rank + 7.0)} {weight.tolist()}")


def test_processes_share_their_weights_and_the_word_of_the_first(tmp_path: Path) -> None:
    in_processes(_meet, 2, tmp_path)
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["7.0 [0.5, 0.5]"] * 2


def test_a_start_that_is_nowhere_is_refused(runs: Path) -> None:
    with pytest.raises(typer.BadParameter, match=r"'nowhere': neither .*nowhere\.pt is there nor nowhere"):
        train(runs, "images", 0.0, name="other", start="nowhere")
