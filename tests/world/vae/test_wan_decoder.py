"""Wan's decoder frame by frame, against diffusers' on the same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cosmorama.world.vae.wan import WanAutoencoder
from tests.world.checkpoints import wan_vae
from tests.world.cosmos3_checkpoints import wan_2_2_vae


@pytest.fixture(params=[wan_vae, wan_2_2_vae])
def tokenizer(request: pytest.FixtureRequest) -> WanAutoencoder:
    """A tokenizer with diffusers' own convolutions."""
    torch.manual_seed(0)
    make: Callable[[], nn.Module] = request.param
    vae: Any = make()
    return WanAutoencoder(vae.eval())


def chunks_of_diffusers(vae: Any, z: Tensor) -> list[Tensor]:
    memory = [None] * vae._cached_conv_counts["decoder"]
    return [
        vae.decoder(z[:, :, i : i + 1], feat_cache=memory, feat_idx=[0], first_chunk=i == 0) for i in range(z.shape[2])
    ]


@torch.inference_mode()
def test_every_chunk_is_the_same_to_the_bit(tokenizer: WanAutoencoder) -> None:
    z = torch.randn(1, tokenizer.vae.config.z_dim, 4, 6, 10, generator=torch.Generator().manual_seed(1))
    for ours, theirs in zip(tokenizer._decoded(z), chunks_of_diffusers(tokenizer.vae, z), strict=True):
        assert torch.equal(ours, theirs)


@torch.inference_mode()
def test_frames_of_full_size_are_alone(tokenizer: WanAutoencoder) -> None:
    seen = []
    tokenizer.vae.decoder.conv_out.register_forward_pre_hook(lambda module, given: seen.append(given[0].shape[2]))
    z = torch.randn(1, tokenizer.vae.config.z_dim, 2, 6, 10, generator=torch.Generator().manual_seed(1))
    assert [chunk.shape[2] for chunk in tokenizer._decoded(z)] == [1, 4]
    assert seen == [1] * 5
