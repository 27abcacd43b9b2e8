"""Small random checkpoints of pipelines that Cosmorama has no code for, as diffusers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AllegroPipeline,
    AllegroTransformer3DModel,
    AutoencoderKLAllegro,
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
    AutoencoderKLMochi,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from tests.world.cosmos3_checkpoints import wan_2_2_vae

WORDS = ("<pad>", "</s>", "<unk>", "a", "red", "blue", "ball", "cube", "falls")
T5 = {"vocab_size": 16, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}


def save_wan(folder: Path, channels: int = 16, vae: AutoencoderKLWan | None = None, **parts: Any) -> Path:
    """Write a Wan 2.1 text-to-video checkpoint, but for other parts or another autoencoder of so many channels."""
    torch.manual_seed(0)
    pipeline = WanPipeline(
        tokenizer=word_tokenizer(),
        text_encoder=UMT5EncoderModel(UMT5Config(**T5)).eval(),
        vae=vae or AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
        transformer=_wan_transformer(channels),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        **parts,
    )
    pipeline.save_pretrained(folder)
    return folder


def save_wan_2_2(folder: Path) -> Path:
    """Write one of the kind of Wan 2.2 A14B: a network for much noise, and one for little."""
    return save_wan(folder, transformer_2=_wan_transformer(16), boundary_ratio=0.9)


def save_wan_ti2v(folder: Path) -> Path:
    """Write one of the kind of Wan 2.2 TI2V 5B: another autoencoder, and a timestep for every token."""
    return save_wan(folder, 8, wan_2_2_vae(), expand_timesteps=True)


def _wan_transformer(channels: int) -> WanTransformer3DModel:
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=channels,
        out_channels=channels,
        text_dim=32,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )


def save_ltx(folder: Path) -> Path:
    """Write an LTX-Video checkpoint."""
    torch.manual_seed(0)
    pipeline = LTXPipeline(
        tokenizer=word_tokenizer(),
        text_encoder=T5EncoderModel(T5Config(**T5)).eval(),
        vae=AutoencoderKLLTXVideo(
            latent_channels=8,
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1),
            spatio_temporal_scaling=(True, True, False, False),
            decoder_spatio_temporal_scaling=(True, True, False, False),
            patch_size=1,
            patch_size_t=1,
            encoder_causal=True,
            decoder_causal=False,
        ),
        transformer=LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            num_attention_heads=4,
            attention_head_dim=8,
            cross_attention_dim=32,
            num_layers=2,
            caption_channels=32,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
    pipeline.save_pretrained(folder)
    return folder


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word that it knows."""
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", model_max_length=128
    )


def save_cogvideox(folder: Path) -> Path:
    """Write a CogVideoX text-to-video checkpoint."""
    torch.manual_seed(0)
    CogVideoXPipeline(
        tokenizer=word_tokenizer(),
        text_encoder=T5EncoderModel(T5Config(**T5)).eval(),
        vae=AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
        ),
        transformer=CogVideoXTransformer3DModel(
            num_attention_heads=4,
            attention_head_dim=8,
            in_channels=4,
            out_channels=4,
            time_embed_dim=2,
            text_embed_dim=32,
            num_layers=1,
            sample_width=2,
            sample_height=2,
            sample_frames=9,
        ),
        scheduler=CogVideoXDDIMScheduler(),
    ).save_pretrained(folder)
    return folder


def save_mochi(folder: Path) -> Path:
    """Write a Mochi checkpoint."""
    torch.manual_seed(0)
    MochiPipeline(
        tokenizer=word_tokenizer(),
        text_encoder=T5EncoderModel(T5Config(**T5)).eval(),
        vae=AutoencoderKLMochi(
            encoder_block_out_channels=(32, 32, 32, 32),
            decoder_block_out_channels=(32, 32, 32, 32),
            layers_per_block=(1, 1, 1, 1, 1),
        ),
        transformer=MochiTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            pooled_projection_dim=16,
            in_channels=12,
            text_embed_dim=32,
            time_embed_dim=4,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    ).save_pretrained(folder)
    return folder


def save_allegro(folder: Path) -> Path:
    """Write an Allegro checkpoint."""
    torch.manual_seed(0)
    AllegroPipeline(
        tokenizer=word_tokenizer(),
        text_encoder=T5EncoderModel(T5Config(**T5)).eval(),
        vae=AutoencoderKLAllegro(
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=2,
        ),
        transformer=AllegroTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            num_layers=1,
            cross_attention_dim=24,
            caption_channels=32,
        ),
        scheduler=EulerAncestralDiscreteScheduler(),
    ).save_pretrained(folder)
    return folder


def save_hunyuan(folder: Path) -> Path:
    """Write a HunyuanVideo checkpoint, with two text encoders."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 4}
    HunyuanVideoPipeline(
        tokenizer=word_tokenizer(),
        text_encoder=LlamaModel(LlamaConfig(vocab_size=16, **sizes)).eval(),
        tokenizer_2=word_tokenizer(),
        text_encoder_2=CLIPTextModel(CLIPTextConfig(vocab_size=16, projection_dim=8, eos_token_id=1, **sizes)).eval(),
        vae=AutoencoderKLHunyuanVideo(
            latent_channels=4,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=4,
        ),
        transformer=HunyuanVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=10,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            patch_size=1,
            text_embed_dim=16,
            pooled_projection_dim=16,
            rope_axes_dim=(2, 4, 4),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    ).save_pretrained(folder)
    return folder
