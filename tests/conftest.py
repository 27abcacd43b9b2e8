"""Shared fixtures: a tiny checkpoint with random weights, in the layout of a real one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers.models.transformers.transformer_cosmos import CosmosTransformer3DModel

from cosmorama.world.cosmos_flow import CosmosFlowWorld
from cosmorama.world.microcosm.autoencoder import VideoAutoencoder
from cosmorama.world.microcosm.loader import load_microcosm
from cosmorama.world.microcosm.text_encoder import TextEncoder

CHANNELS = 4


@pytest.fixture(scope="session", autouse=True)
def state_of_our_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test touches the jobs of whoever runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COSMORAMA_STATE_DIR", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete checkpoint folder."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    CosmosTransformer3DModel(
        in_channels=CHANNELS + 1,
        out_channels=CHANNELS,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        mlp_ratio=2.0,
        text_embed_dim=16,
        adaln_lora_dim=8,
        max_size=(32, 40, 40),
        patch_size=(1, 2, 2),
        rope_scale=(1.0, 1.0, 1.0),
        concat_padding_mask=False,
        extra_pos_embed_type=None,
    ).save_pretrained(folder / "transformer")
    vae = VideoAutoencoder(CHANNELS)
    torch.nn.init.orthogonal_(vae.basis.data)
    vae.scaling_factor.data.fill_(0.2)
    vae.save_pretrained(folder / "vae")
    TextEncoder(["red", "blue", "ball", "cube", "falls"], width=16, layers=1, heads=2).save_pretrained(
        folder / "text_encoder"
    )
    world = {
        "name": "tiny",
        "prediction": "velocity",
        "timestep_scale": 1.0,
        "flow_shift": 3.0,
        "frames": {"multiple": 8, "max": 121},
        "fps": [12, 40],
        "sizes": [[960, 704], [704, 960], [1280, 704]],
        "conditioning_frames": [1, 9],
        "guidance_map": [[1.0, 1.0], [7.0, 3.0], [10.0, 6.0]],
    }
    (folder / "world.json").write_text(json.dumps(world))
    return folder


@pytest.fixture(scope="session")
def tiny_world(tiny_checkpoint: Path) -> CosmosFlowWorld:
    """The tiny checkpoint, loaded as a user's would be."""
    return load_microcosm(tiny_checkpoint)
