"""Training of the decoder's learned parts, on tiny random clips."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cosmorama.world.microcosm.autoencoder import Refiner, Upsampler, VideoAutoencoder
from microcosm.scenes.closeups import Closeup
from microcosm.training.decoder import (
    LARGEST_NOISE,
    Plan,
    decode_one,
    disturb,
    encode_group,
    refiner_batches,
    refiner_loss,
    train,
    upsampler_batches,
    upsampler_loss,
)


@pytest.fixture(scope="module")
def vae() -> VideoAutoencoder:
    torch.manual_seed(0)
    model: VideoAutoencoder = VideoAutoencoder(16)
    with torch.no_grad():
        model.basis.copy_(torch.linalg.qr(torch.randn(1536, 16))[0].T)
    return model.eval()


def _clips(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 16, 64, 80, 3), dtype=np.uint8))


def _closeup() -> Closeup:
    small = np.random.default_rng(1).integers(0, 256, (8, 48, 64, 3), dtype=np.uint8)
    return Closeup(small, small[3].repeat(8, 0).repeat(8, 1), 3)


def test_a_group_is_what_a_clip_has_as_its_second_latent(vae: VideoAutoencoder) -> None:
    clip = torch.rand(1, 3, 9, 44, 56) * 2 - 1
    torch.testing.assert_close(encode_group(vae, clip[:, :, 1:]), vae.encode_small(clip)[:, :, 1:])


def test_noise_has_its_level_and_is_half_common_to_a_patch() -> None:
    noise = disturb(torch.zeros(400, 16, 1, 4, 6), np.random.default_rng(0))
    levels = noise.std((1, 2, 3, 4))
    assert levels.max() < 1.3 * LARGEST_NOISE
    assert 0.2 < float((levels == 0).float().mean()) < 0.4
    noisy = noise[levels > 0.05]
    inside = (noisy[..., 0] * noisy[..., 1]).mean() / noisy.square().mean()
    across = (noisy[..., 1] * noisy[..., 2]).mean() / noisy.square().mean()
    assert float(inside) == pytest.approx(0.5, abs=0.05)
    assert float(across) == pytest.approx(0.0, abs=0.05)


def test_a_run_taken_up_again_is_the_same_run(vae: VideoAutoencoder, tmp_path: Path) -> None:
    draw = refiner_batches(vae, _clips(3))

    def trained(name: str, *stops: int) -> Refiner:
        for steps in stops:
            torch.manual_seed(0)
            refiner = Refiner(4)
            # A stop in the middle: the rate still falls over four steps.
            plan = Plan(4, 1e-3, 0, tmp_path / f"{name}.pt")
            train(refiner, draw, refiner_loss, plan, stop=steps)
        return refiner

    whole, resumed = trained("whole", 4), trained("resumed", 2, 4)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    assert any(bool(parameter.any()) for parameter in whole.layers[-1].parameters())


def test_training_lowers_the_error(vae: VideoAutoencoder, tmp_path: Path) -> None:
    torch.manual_seed(0)
    draw, upsampler = upsampler_batches(vae, [_closeup()]), Upsampler(4)
    inputs, wanted = draw(np.random.default_rng(5))
    assert wanted.shape == (*inputs.shape[:2], 8 * inputs.shape[2], 8 * inputs.shape[3])
    before = float(upsampler_loss(upsampler, inputs, wanted))
    train(upsampler, draw, upsampler_loss, Plan(8, 3e-3, 0, tmp_path / "upsampler.pt"))
    assert float(upsampler_loss(upsampler, inputs, wanted)) < before


def test_crops_of_both_sizes_show_the_same_place(vae: VideoAutoencoder) -> None:
    perfect: VideoAutoencoder = VideoAutoencoder(1536)  # every block is kept exactly
    with torch.no_grad():
        perfect.basis.copy_(torch.eye(1536))
    inputs, wanted = upsampler_batches(perfect, [_closeup()])(np.random.default_rng(0))
    torch.testing.assert_close(inputs, wanted[..., ::8, ::8], rtol=0, atol=1e-4)
    shown = decode_one(perfect, _closeup())
    torch.testing.assert_close((shown + 1) * 127.5, torch.from_numpy(_closeup().small[3]).permute(2, 0, 1).float())
