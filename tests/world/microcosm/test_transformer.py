"""Microcosm's transformer is diffusers' Cosmos transformer: the same layers, and the same numbers to the bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import CosmosTransformer3DModel

from cosmorama.world.cosmos.forward import cosmos_forward
from cosmorama.world.microcosm.loader import load_component
from cosmorama.world.microcosm.transformer import CosmosTransformer

SIZES: dict[str, Any] = {
    "in_channels": 5,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 20,
    "num_layers": 2,
    "mlp_ratio": 2.0,
    "text_embed_dim": 12,
    "adaln_lora_dim": 8,
    "max_size": (16, 24, 24),
}


@pytest.mark.parametrize("fps", [None, 12.0])
def test_a_checkpoint_of_diffusers_gives_the_same_numbers(tmp_path: Path, fps: float | None) -> None:
    torch.manual_seed(0)
    theirs = CosmosTransformer3DModel(
        **SIZES,
        patch_size=(1, 2, 2),
        rope_scale=(1.0, 1.5, 0.8),
        concat_padding_mask=False,
        extra_pos_embed_type=None,
    ).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_component(CosmosTransformer, tmp_path)
    assert list(ours.config.rope_scale) == [1.0, 1.5, 0.8]
    latents, text = torch.randn(2, 4, 3, 6, 10), torch.randn(2, 7, 12)
    with torch.inference_mode():
        made, expected = (
            cosmos_forward(
                net, latents, torch.rand(2, 3).fill_(0.4), text, condition_mask=torch.ones(2, 1, 3, 6, 10), fps=fps
            )
            for net in (ours, theirs)
        )
    assert torch.equal(made, expected)
    assert ours.state_dict().keys() == theirs.state_dict().keys()


def test_microcosm_makes_clips_without_the_libraries_of_large_models() -> None:
    program = """import sys, cosmorama
clip = cosmorama.load().generate("an orange ball rolls to the right", image=sys.argv[1], frames=9, steps=1)
list(clip.frames)
print(*sys.modules)"""
    command = [sys.executable, "-c", program, "docs/images/start.png"]
    loaded = set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert "torch" in loaded
    assert not loaded & {"diffusers", "transformers", "peft", "accelerate", "torch._dynamo", "scipy"}


@pytest.mark.parametrize("left_out", ["concat_padding_mask", "use_crossattn_projection"])
def test_a_checkpoint_with_layers_that_are_left_out_is_refused(left_out: str) -> None:
    with pytest.raises(ValueError, match="has no padding mask"):
        CosmosTransformer(**SIZES, **{left_out: True})
