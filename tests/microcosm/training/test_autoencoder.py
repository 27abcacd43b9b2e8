"""Microcosm's video autoencoder: shapes, causality, streaming."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cosmorama.world.microcosm.autoencoder import Upsampler, VideoAutoencoder, from_blocks, to_blocks
from microcosm.training.autoencoder import main as fit
from microcosm.training.autoencoder import to_float


def _autoencoder(refiner_width: int = 0, upsampler_width: int = 0) -> VideoAutoencoder:
    torch.manual_seed(0)
    model: VideoAutoencoder = VideoAutoencoder(16, refiner_width=refiner_width, upsampler_width=upsampler_width)
    with torch.no_grad():
        model.basis.copy_(torch.linalg.qr(torch.randn(1536, 16))[0].T)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.05 * torch.randn_like(parameter))
    model.eval()
    return model


def _clip(frames: int, height: int = 44, width: int = 56) -> Tensor:
    return torch.rand(1, 3, frames, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_blocks_there_and_back() -> None:
    frames = torch.randn(2, 3, 16, 24, 32)
    torch.testing.assert_close(from_blocks(to_blocks(frames)), frames)


@pytest.mark.parametrize(("height", "width"), [(704, 1280), (960, 960), (960, 704), (704, 960), (1280, 704)])
def test_latents_have_the_announced_shape(height: int, width: int) -> None:
    model = _autoencoder()
    latents = model.encode_small(_clip(9, height // 8, width // 8))
    assert tuple(latents.shape) == model.latents_shape(9, height, width)
    assert latents.shape[3] % 2 == latents.shape[4] % 2 == 0


def test_a_clip_at_output_size_is_averaged_down() -> None:
    model, small = _autoencoder(), _clip(1, 88, 120)
    large = F.interpolate(small[:, :, 0], scale_factor=8, mode="nearest")[:, :, None]
    torch.testing.assert_close(model.encode(large), model.encode_small(small), rtol=1e-4, atol=1e-4)


def test_latents_do_not_depend_on_the_future() -> None:
    model, clip = _autoencoder(), _clip(17)
    torch.testing.assert_close(model.encode_small(clip)[:, :, :2], model.encode_small(clip[:, :, :9]))


def test_other_frame_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="8k"):
        _autoencoder().encode_small(_clip(8))


@pytest.mark.parametrize("widths", [(0, 0), (4, 4)], ids=["linear", "learned"])
def test_a_stream_is_the_whole_in_pieces(widths: tuple[int, int]) -> None:
    model = _autoencoder(*widths)
    latents = model.encode_small(_clip(17))
    pieces = list(model.decode_stream(latents, 352, 448))
    assert [len(piece) for piece in pieces] == [1, 8, 8]
    with torch.inference_mode():
        small = model.decode_small(latents, 44, 56)[0, :, 7:].transpose(0, 1)
        if model.upsampler is None:
            large = F.interpolate(small, scale_factor=8, mode="bicubic", align_corners=False)
        else:
            large = model.upsampler.enlarge(small)
    whole = (large * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    difference = (torch.cat(pieces).int() - whole.int()).abs()
    assert difference.max() <= 3  # the enlargement works on bytes where nothing is added to it


def test_an_untrained_upsampler_is_bicubic() -> None:
    small = _clip(1)[:, :, 0]
    bicubic = F.interpolate(small, scale_factor=8, mode="bicubic", align_corners=False)
    torch.testing.assert_close(Upsampler(4).enlarge(small), bicubic, rtol=1e-4, atol=1e-5)


def test_a_held_frame_is_the_last_one_standing_still() -> None:
    model, clip = _autoencoder(), _clip(9, 48, 64)
    with torch.no_grad():
        model.basis.copy_(torch.zeros(16, 1536))
        model.basis[torch.arange(16), torch.randperm(1536, generator=torch.Generator().manual_seed(2))[:16]] = 1
    latents = model.encode_small(clip)
    held = model.hold(latents)
    assert held.shape == latents[:, :, :1].shape
    last = model.decode_linear(latents, 48, 64)[:, :, -1:]
    still = model.encode_blocks(to_blocks(last.expand(-1, -1, 8, -1, -1)))
    torch.testing.assert_close(held, still)
    torch.testing.assert_close(model.hold(held), model.hold(torch.cat([latents, held], 2)))


def test_the_transform_is_fitted_to_what_stands_and_what_moves(tmp_path: Path) -> None:
    """Stripes that move: their blocks have few components, so a few tell nearly all."""
    columns = np.arange(64)
    for kind, frames in (("images", 1), ("shorts", 33), ("clips", 121)):
        clips = []
        for phase in range(4):
            wave = np.sin((columns[None, :] + np.arange(frames)[:, None] + phase) / 3)
            clips.append((127 + 100 * wave).astype(np.uint8)[:, None, :, None].repeat(32, 1).repeat(3, 3))
        np.savez(tmp_path / f"{kind}-0000.npz", **{"64x32": np.stack(clips)})
        (tmp_path / f"{kind}-0000.jsonl").write_text("")
    fit(tmp_path, tmp_path, channels=4, moving_channels=3)
    vae = VideoAutoencoder.from_pretrained(tmp_path / "vae")
    frames = to_float(np.stack(clips))[:, :, :17]
    again = vae.decode_small(vae.encode_small(frames), 32, 64)[:, :, 8:]
    assert float((again - frames[:, :, 1:]).abs().max()) < 0.05
    torch.testing.assert_close(vae.basis @ vae.basis.T, torch.eye(7), atol=1e-4, rtol=0)
