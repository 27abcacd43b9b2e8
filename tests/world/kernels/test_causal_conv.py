"""Wan's tokenizers with their convolutions replaced, against diffusers' own on the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cosmorama.world.load.checkpoint import build
from cosmorama.world.load.options import LoadOptions
from cosmorama.world.vae.wan import WanAutoencoder
from tests.world.checkpoints import wan_vae
from tests.world.cosmos3_checkpoints import wan_2_2_vae

TOLERANCE = 1e-5
KINDS = {"2.1": wan_vae, "2.2": wan_2_2_vae}


@pytest.fixture(params=KINDS)
def loaded(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Any]:
    """A tokenizer of either kind, loaded with the saving or without, in a dtype."""
    torch.manual_seed(0)
    vae = KINDS[request.param]()
    with torch.no_grad():  # norms start as ones, and biases small: nothing would notice them
        for parameter in vae.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else 0.02))
    vae.save_pretrained(tmp_path)

    def load(*, lean: bool, dtype: torch.dtype = torch.float32) -> Any:
        options = LoadOptions(dtype=dtype)
        return WanAutoencoder.load(tmp_path, options).vae if lean else build(AutoencoderKLWan, tmp_path, dtype)

    return load


def frames(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(1, 3, count, 64, 96, generator=torch.Generator().manual_seed(1)).to(dtype) * 2 - 1


def latents(vae: Any, count: int, batch: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    shape = batch, vae.config.z_dim, count, 6, 10
    return torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype)


def error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max())


@pytest.mark.parametrize("count", [1, 5, 13])
@torch.inference_mode()
def test_clips_are_encoded_to_the_same_numbers(loaded: Callable[..., Any], count: int) -> None:
    ours, theirs = (loaded(lean=lean).encode(frames(count)).latent_dist for lean in (True, False))
    assert error(ours.mean, theirs.mean) <= TOLERANCE
    assert error(ours.std, theirs.std) <= TOLERANCE


@pytest.mark.parametrize(("count", "batch"), [(1, 1), (2, 1), (4, 1), (3, 2)])
@torch.inference_mode()
def test_clips_are_decoded_to_the_same_numbers(loaded: Callable[..., Any], count: int, batch: int) -> None:
    ours, theirs = (loaded(lean=lean) for lean in (True, False))
    z = latents(ours, count, batch)
    kept = z.clone()
    assert error(ours.decode(z).sample, theirs.decode(z).sample) <= TOLERANCE
    assert torch.equal(z, kept)  # though activations are in place


@torch.inference_mode()
def test_bfloat16_is_as_close_to_float32_as_diffusers_is(loaded: Callable[..., Any]) -> None:
    exact = loaded(lean=False)
    z, given = latents(exact, 3), frames(5)
    works: tuple[Callable[[Any], Tensor], ...] = (
        lambda vae: vae.decode(z.to(vae.dtype)).sample,
        lambda vae: vae.encode(given.to(vae.dtype)).latent_dist.mean,
    )
    for work in works:
        wanted = work(exact)
        ours, theirs = (
            float((work(loaded(lean=lean, dtype=torch.bfloat16)).float() - wanted).norm()) for lean in (True, False)
        )
        assert ours <= 1.1 * theirs


@torch.inference_mode()
def test_the_zeros_before_a_clip_are_not_convolved(loaded: Callable[..., Any]) -> None:
    gflop = []
    for lean in (True, False):
        vae = loaded(lean=lean)
        with FlopCounterMode(display=False) as counter:
            vae.encode(frames(1))
        gflop.append(counter.get_total_flops())
    assert gflop[0] < 0.5 * gflop[1]  # of three time taps one is on the frame


@torch.inference_mode()
def test_a_lean_tokenizer_keeps_its_weights(loaded: Callable[..., Any]) -> None:
    ours, theirs = (loaded(lean=lean).state_dict() for lean in (True, False))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
