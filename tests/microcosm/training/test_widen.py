"""Widening a network: what it has learned stays, and what is new can be trained apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import CosmosTransformer3DModel

from cosmorama.world.cosmos.forward import cosmos_forward
from cosmorama.world.microcosm.loader import load_component
from cosmorama.world.microcosm.text_encoder import TextEncoder
from microcosm.training.export import WEIGHTS
from microcosm.training.widen import taught, widened


@pytest.fixture(scope="module")
def nets() -> tuple[Any, Any]:
    """A trained network (Microcosm's own) and the same widened."""
    torch.manual_seed(0)
    net = load_component(CosmosTransformer3DModel, WEIGHTS / "transformer")
    return net, widened(net)


def test_a_widened_network_answers_as_before(nets: tuple[Any, Any]) -> None:
    channels = nets[0].config.in_channels - 1
    latents, text = torch.randn(2, channels, 5, 4, 6), torch.randn(2, 7, nets[0].config.text_embed_dim)
    timesteps, mask = 1000 * torch.rand(2, 5), torch.zeros(2, 1, 5, 4, 6)
    with torch.inference_mode():
        before, after = (cosmos_forward(net, latents, timesteps, text, condition_mask=mask, fps=24.0) for net in nets)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_the_copies_of_a_channel_are_not_trained_alike(nets: tuple[Any, Any]) -> None:
    wide = nets[1].train().requires_grad_(True)
    latents, text = torch.randn(1, wide.config.in_channels - 1, 2, 4, 4), torch.randn(1, 3, wide.config.text_embed_dim)
    mask = torch.zeros(1, 1, 2, 4, 4)
    cosmos_forward(
        wide, latents, torch.full((1, 2), 500.0), text, condition_mask=mask, fps=24.0
    ).square().sum().backward()
    for name in ("patch_embed.proj", "transformer_blocks.0.attn1.to_q", "transformer_blocks.5.ff.net.0.proj"):
        first, second = wide.get_submodule(name).weight.grad.chunk(2)
        assert (first - second).norm() > 0.1 * first.norm(), name


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
