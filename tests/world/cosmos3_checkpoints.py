"""Small random Cosmos3 checkpoints, written by diffusers' own classes in the layout that is published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_cosmos3 import Cosmos3OmniTransformer
from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import Cosmos3OmniPipeline
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>")
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
KARRAS = {"use_karras_sigmas": True, "sigma_min": 0.147, "sigma_max": 200.0}
"""As in the published checkpoints."""


def save_cosmos3(
    folder: Path,
    *,
    edge: bool = False,
    actions: bool = False,
    scheduler: dict[str, Any] | None = None,
    **transformer: Any,
) -> Path:
    """Write a checkpoint into `folder`: of the kind of Nano, or of Edge, which differs in norms, texts and levels.

    Args:
        folder: Where to.
        edge: Of the kind of Edge.
        actions: With actions.
        scheduler: Changes to the scheduler's config.
        transformer: Changes to the transformer's small config.
    """
    torch.manual_seed(0)
    pipeline = Cosmos3OmniPipeline(
        transformer=_transformer(transformer, edge=edge, actions=actions),
        text_tokenizer=byte_tokenizer(),
        vae=wan_2_2_vae(),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, **({"flow_shift": 10.0} | (scheduler or {}))
        ),
        enable_safety_checker=False,
        default_use_system_prompt=not edge,
        use_native_flow_schedule=edge,
    )
    pipeline.save_pretrained(folder)
    return folder


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, with the special tokens and the kind of chat that Cosmos3 uses."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", additional_special_tokens=list(SPECIAL)
    )
    fast.chat_template = CHAT
    return fast


def _transformer(changes: dict[str, Any], *, edge: bool, actions: bool) -> Cosmos3OmniTransformer:
    kind: dict[str, Any] = {}
    if edge:
        kind |= {"hidden_act": "relu2", "qk_norm_for_text": False, "use_und_k_norm_for_gen": True}
    if actions:
        kind |= {"action_gen": True, "action_dim": 16, "num_embodiment_domains": 10}
    small = {
        "head_dim": 12,
        "hidden_size": 32,
        "intermediate_size": 48,
        "latent_channel": 8,
        "latent_patch_size": 2,
        "patch_latent_dim": 32,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "rope_axes_dim": (2, 2, 2),
        "vocab_size": len(SPECIAL) + 256,
    }
    transformer = Cosmos3OmniTransformer(**small | kind | changes)
    for name, parameter in transformer.named_parameters():
        if parameter.ndim == 1:  # norms and modality embeddings start as ones and zeros: nothing would notice them
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.3)
    return transformer


def wan_2_2_vae() -> AutoencoderKLWan:
    """A Wan 2.2 autoencoder."""
    return AutoencoderKLWan(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=8,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=torch.linspace(-0.3, 0.3, 8).tolist(),
        latents_std=torch.linspace(0.5, 1.5, 8).tolist(),
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
        scale_factor_temporal=4,
    )
