"""Small random checkpoints of the Predict families, written by diffusers' own classes in the layout that is published.

Anything that needs a Cosmos model can use them: `save_predict("predict2.5", folder)`, then `load_world(str(folder))`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCosmos,
    AutoencoderKLWan,
    Cosmos2_5_PredictBasePipeline,
    Cosmos2TextToImagePipeline,
    Cosmos2VideoToWorldPipeline,
    CosmosTextToWorldPipeline,
    CosmosTransformer3DModel,
    CosmosVideoToWorldPipeline,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    T5Config,
    T5EncoderModel,
)

from cosmorama.world.load.files import has_weights
from cosmorama.world.load.fit import bytes_of
from cosmorama.world.load.weights import Weights

PIPELINES: dict[str, Any] = {
    "predict1-text2world": CosmosTextToWorldPipeline,
    "predict1-video2world": CosmosVideoToWorldPipeline,
    "predict2-text2image": Cosmos2TextToImagePipeline,
    "predict2-video2world": Cosmos2VideoToWorldPipeline,
    "predict2.5": Cosmos2_5_PredictBasePipeline,
}
TEXT = "a red blue ball cube rolls falls to the left right on green floor and hits ugly blurred dark scene"
WORDS = TEXT.split()
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}<|im_end|>\n{% endfor %}"
)


class Guardrail:
    """Stands for the safety checker, which diffusers' pipelines insist on: lets everything pass."""

    def to(self, device: object) -> Guardrail:
        return self

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, frames: Any) -> Any:
        return frames


def save_predict(
    kind: str, folder: Path, *, text_width: int = 32, wan: dict[str, Any] | None = None, **transformer: Any
) -> Any:
    """Write a checkpoint of a kind in `PIPELINES` into `folder`.

    Args:
        kind: Which one.
        folder: Where to.
        text_width: How wide the text is that the transformer's blocks read.
        wan: Changes to the small config of Wan's tokenizer.
        transformer: Changes to the transformer's small config.

    Returns:
        diffusers' own pipeline on the same modules.
    """
    torch.manual_seed(0)
    encoder, tokenizer = qwen() if kind == "predict2.5" else _t5(text_width)
    parts = {
        "transformer": _transformer(kind, {"text_embed_dim": text_width, **transformer}),
        "vae": _cosmos_vae() if kind.startswith("predict1") else wan_vae(**wan or {}),
        "text_encoder": encoder,
        "tokenizer": tokenizer,
        "scheduler": scheduler_of(kind),
    }
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": PIPELINES[kind].__name__}))
    return _pipeline(kind, parts)


def load_pipeline(kind: str, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """diffusers' own pipeline on a checkpoint that `save_predict` wrote."""
    encoder = Qwen2_5_VLForConditionalGeneration if kind == "predict2.5" else T5EncoderModel
    vae = AutoencoderKLCosmos if kind.startswith("predict1") else AutoencoderKLWan
    models = {"transformer": CosmosTransformer3DModel, "vae": vae, "text_encoder": encoder}
    parts = {name: model.from_pretrained(folder / name, torch_dtype=dtype) for name, model in models.items()}
    parts["tokenizer"] = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    parts["scheduler"] = type(scheduler_of(kind)).from_pretrained(folder / "scheduler")
    return _pipeline(kind, parts)


def _pipeline(kind: str, parts: dict[str, Any]) -> Any:
    pipeline = PIPELINES[kind](**parts, safety_checker=Guardrail())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _transformer(kind: str, changes: dict[str, Any]) -> CosmosTransformer3DModel:
    options: dict[str, Any] = {
        "in_channels": 16 if kind in ("predict1-text2world", "predict2-text2image") else 17,
        "out_channels": 16,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 2,
        "mlp_ratio": 2.0,
        "adaln_lora_dim": 4,
        "max_size": (16, 32, 32),
        "patch_size": (1, 2, 2),
        "rope_scale": (2.0, 1.0, 1.0),
        "concat_padding_mask": True,
        "extra_pos_embed_type": "learnable" if kind.startswith("predict1") else None,
    }
    if kind == "predict2.5":
        options |= {"use_crossattn_projection": True, "crossattn_proj_in_channels": 64}
        options |= {"encoder_hidden_states_channels": changes["text_embed_dim"], "rope_scale": (1.0, 3.0, 3.0)}
    transformer = CosmosTransformer3DModel(**options | changes)
    with torch.no_grad():  # norms and learned positions start as ones and zeros: nothing would notice them
        for name, parameter in transformer.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 or "pos_emb" in name else 0.1))
    return transformer.eval()


def wan_vae(**changes: Any) -> AutoencoderKLWan:
    """A Wan 2.1 autoencoder, small but for `changes` to its config."""
    small = {"z_dim": 16, "base_dim": 8, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    return AutoencoderKLWan(**{**small, "temperal_downsample": [False, True, True], **changes}).eval()


def _cosmos_vae() -> AutoencoderKLCosmos:
    return AutoencoderKLCosmos(
        latent_channels=16,
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,),
        resolution=64,
        num_layers=1,
    ).eval()


def scheduler_of(kind: str) -> Any:
    """The scheduler of a kind, as in the published checkpoints."""
    if kind.startswith("predict1"):
        return EDMEulerScheduler(sigma_min=0.002, sigma_max=80, sigma_data=0.5, final_sigmas_type="sigma_min")
    if kind.startswith("predict2-"):
        return FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
    return UniPCMultistepScheduler(
        use_karras_sigmas=True,
        use_flow_sigmas=True,
        prediction_type="flow_prediction",
        sigma_max=200.0,
        sigma_min=0.01,
    )


def _t5(width: int) -> tuple[T5EncoderModel, PreTrainedTokenizerFast]:
    special = ["<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate([*special, *WORDS])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    config = T5Config(
        vocab_size=len(special) + len(WORDS), d_model=width, d_kv=8, d_ff=48, num_layers=2, num_heads=4, dropout_rate=0
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )
    return T5EncoderModel(config).eval(), fast


def qwen() -> tuple[Qwen2_5_VLForConditionalGeneration, PreTrainedTokenizerFast]:
    """A Qwen2.5-VL text encoder and a tokenizer for it."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>", model_max_length=4096
    )
    fast.chat_template = CHAT
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3], "rope_type": "default"},
            "max_position_embeddings": 1024,
        },
        vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32},
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval(), fast


def weight_bytes(folder: Path, *how: Any, **more: Any) -> int:
    """Bytes that the weights of a part take, see `bytes_of`; 0 of what has none."""
    return bytes_of(Weights(folder), *how, **more) if has_weights(folder) else 0
