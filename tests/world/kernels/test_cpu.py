"""Kernels for a CPU, against torch's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention import FeedForward
from torch import nn

from cosmorama.world.kernels.cpu import use_onednn
from cosmorama.world.load.quantize import quantize_layer
from cosmorama.world.registry import load_world
from tests.world.checkpoints import save_predict

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


def both(layer: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What a layer makes of `x` by oneDNN and by torch."""
    with torch.inference_mode():
        expected = layer(x)
        use_onednn(layer)
        return layer(x), expected


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), (1, 7), (2, 0, 7), (2, 3, 5, 7)])
def test_products_are_the_same_for_inputs_of_any_shape(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    ours, expected = both(nn.Linear(7, 11, bias=bias), torch.randn(shape))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_inputs_may_lie_in_memory_in_any_order() -> None:
    torch.manual_seed(0)
    ours, expected = both(nn.Linear(7, 11), torch.randn(7, 64, 3).transpose(0, 2)[:, ::2])
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", ["gelu", "gelu-approximate", "geglu"])
def test_feed_forward_layers_are_the_same(activation: str) -> None:
    torch.manual_seed(0)
    ours, expected = both(FeedForward(32, activation_fn=activation), 3 * torch.randn(2, 9, 32))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_other_dtypes_are_computed_by_torch_as_before() -> None:
    torch.manual_seed(0)
    ours, expected = both(FeedForward(32, activation_fn="gelu").bfloat16(), torch.randn(2, 9, 32).bfloat16())
    assert torch.equal(ours, expected)


def test_matrices_may_become_integers_afterwards() -> None:
    pytest.importorskip("torchao", reason="needs torchao (pip install '.[quantize]')")
    torch.manual_seed(0)
    layer, x = FeedForward(32, activation_fn="gelu"), torch.randn(2, 9, 32)
    use_onednn(layer)
    with torch.inference_mode():
        expected = layer(x)
        for linear in [module for module in layer.modules() if isinstance(module, nn.Linear)]:
            quantize_layer(linear)
        assert 1e-5 < (layer(x) - expected).abs().max() < 0.05


def test_a_wrong_input_is_refused_in_torchs_words() -> None:
    layer = nn.Linear(7, 11)
    use_onednn(layer)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="same dtype"):
        layer(torch.randn(3, 7).double())


def test_models_on_the_cpu_use_it(tmp_path: Path) -> None:
    save_predict("predict2.5", tmp_path)
    world: Any = load_world(str(tmp_path), device="cpu")
    layers = [module for module in world.transformer.modules() if type(module) is nn.Linear]
    assert layers
    assert all("forward" in vars(layer) for layer in layers)
