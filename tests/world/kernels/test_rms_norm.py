"""The norm that is computed in place, against diffusers' own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.models.normalization import RMSNorm

from cosmorama.world.kernels.rms_norm import can_be_inlined, inverse_root_mean_square
from cosmorama.world.load.offload import offload_layers


@pytest.fixture
def norm() -> RMSNorm:
    torch.manual_seed(0)
    norm = RMSNorm(16, eps=1e-6, elementwise_affine=True)
    torch.nn.init.normal_(norm.weight)
    return norm


@torch.inference_mode()
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_it_is_diffusers_norm(norm: RMSNorm, size: float) -> None:
    x = size * torch.randn(2, 5, 3, 16)
    kept = x.clone()
    torch.testing.assert_close(x * inverse_root_mean_square(norm, x) * norm.weight, norm(x), rtol=1e-5, atol=1e-6)
    assert torch.equal(x, kept)


def test_it_is_for_inference_in_float32_with_weights_at_hand(norm: RMSNorm, tmp_path: Path) -> None:
    x = torch.randn(1, 16)
    assert not can_be_inlined(norm, x)  # it could be differentiated
    with torch.inference_mode():
        assert can_be_inlined(norm, x)
        assert not can_be_inlined(norm, x.bfloat16())
        whole = torch.nn.Sequential(norm)
        offload_layers(whole, torch.device("cpu"), disk=tmp_path)
        assert not can_be_inlined(norm, x)
