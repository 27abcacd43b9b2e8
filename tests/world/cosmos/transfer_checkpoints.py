"""Small random Transfer2.5 checkpoints, written by diffusers' own classes in the layout that is published."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from diffusers.models.controlnets import controlnet_cosmos
from diffusers.models.controlnets.controlnet_cosmos import CosmosControlNetModel
from diffusers.models.transformers import transformer_cosmos
from diffusers.models.transformers.transformer_cosmos import CosmosTransformer3DModel
from diffusers.pipelines.cosmos.pipeline_cosmos2_5_transfer import Cosmos2_5_TransferPipeline

from tests.world.checkpoints import Guardrail, qwen, scheduler_of, wan_vae
from tests.world.reference import without_torchvision

_SHARED: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "mlp_ratio": 2.0,
    "text_embed_dim": 32,
    "adaln_lora_dim": 4,
    "max_size": (24, 32, 32),
    "patch_size": (1, 2, 2),
    "rope_scale": (1.0, 3.0, 3.0),
    "extra_pos_embed_type": None,
    "use_crossattn_projection": True,
    "crossattn_proj_in_channels": 64,
    "encoder_hidden_states_channels": 32,
    "img_context_dim_in": 12,
    "img_context_dim_out": 32,
}


def save_transfer(folder: Path, kinds: tuple[str, ...] = ()) -> Cosmos2_5_TransferPipeline:
    """Write a checkpoint into `folder`, with one ControlNet for any kind of control or one for each of `kinds`.

    Returns:
        diffusers' own pipeline on the same modules, with the first ControlNet.
    """
    torch.manual_seed(0)
    encoder, tokenizer = qwen()
    controlnets = {f"controlnet_{kind}": _controlnet() for kind in kinds} or {"controlnet": _controlnet()}
    parts = {
        "transformer": _noisy(
            CosmosTransformer3DModel(
                in_channels=17,
                num_layers=4,
                img_context_num_tokens=6,
                controlnet_block_every_n=2,
                concat_padding_mask=True,
                **_SHARED,
            )
        ),
        "vae": wan_vae(),
        "text_encoder": encoder,
        "tokenizer": tokenizer,
        "scheduler": scheduler_of("predict2.5"),
    }
    for name, part in (parts | controlnets).items():
        part.save_pretrained(folder / name)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "Cosmos2_5_TransferPipeline"}))
    pipeline = Cosmos2_5_TransferPipeline(
        **parts, controlnet=next(iter(controlnets.values())), safety_checker=Guardrail()
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@contextmanager
def controls_without_torchvision() -> Iterator[None]:
    """Let diffusers' ControlNet resize its padding mask as its transformer does."""
    with without_torchvision():
        transforms = transformer_cosmos.transforms
        with mock.patch.object(controlnet_cosmos, "transforms", transforms, create=True):
            yield


def _controlnet() -> CosmosControlNetModel:
    return _noisy(
        CosmosControlNetModel(n_controlnet_blocks=2, in_channels=26, latent_channels=18, model_channels=32, **_SHARED)
    )


def _noisy(model: Any) -> Any:
    """Norms and biases start as ones and zeros: nothing would notice them."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else 0.1))
    return model.eval()
