"""The Qwen2.5-VL text encoder of Predict2.5 and Transfer2.5: all its layers' states, normalized, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cosmorama.errors import ModelNotFoundError
from cosmorama.world.base import TextEmbedding
from cosmorama.world.load.checkpoint import load_module, load_tokenizer
from cosmorama.world.load.options import ON_CPU, LoadOptions

ROWS = 512
_SYSTEM = "You are a helpful assistant who will provide prompts to an image generator."


class QwenReader:
    """Reads prompts. Only the language half of the model is loaded: nothing here sees, and no word is predicted."""

    def __init__(self, language_model: Any, tokenizer: Any, device: torch.device | str) -> None:
        self._model, self._tokenizer, self._device = language_model, tokenizer, device

    @classmethod
    def load(cls, folder: Path, options: LoadOptions = ON_CPU) -> QwenReader:
        """From the `text_encoder` and `tokenizer` folders of a checkpoint.

        Raises:
            ModelNotFoundError: the weights do not fit the config.
        """
        from transformers import Qwen2_5_VLTextModel

        model = load_module(Qwen2_5_VLTextModel, folder / "text_encoder", options)
        half, parts = model.layers[0].self_attn.head_dim // 2, model.config.rope_parameters.get("mrope_section")
        if not isinstance(parts, list) or sum(parts) != half:
            raise ModelNotFoundError(
                f"{folder / 'text_encoder/config.json'}: mrope_section is {parts}; it must sum to {half}, half a head"
            )
        tokenizer = load_tokenizer(folder / "tokenizer", chat=_written, reader=model)
        return cls(model, tokenizer, options.device)

    @property
    def width(self) -> int:
        """Of its states."""
        config = self._model.config
        return int(config.num_hidden_layers * config.hidden_size)

    @torch.inference_mode()
    def __call__(self, prompt: str) -> TextEmbedding:
        """States `[1, 512, layers * hidden]` of a prompt's tokens, then of padding, which the denoiser reads too."""
        count = len(_written(self._tokenizer, prompt, tokenize=True)["input_ids"])
        how = {"max_length": ROWS, "truncation": True, "padding": "max_length"}
        tokens = _written(self._tokenizer, prompt, tokenize=True, **how)
        ids = torch.tensor([tokens["input_ids"]], device=self._device)
        layers = self._model(ids, output_hidden_states=True, use_cache=False).hidden_states[1:]
        states = torch.cat([_normalized(states) for states in layers], dim=-1)
        return TextEmbedding(states, tokens=count, limit=ROWS)


def _written(tokenizer: Any, prompt: str, *, tokenize: bool = False, **how: Any) -> Any:
    """A prompt as the chat that the denoiser was trained with, or its tokens."""
    chat = [
        {"role": "system", "content": [{"type": "text", "text": _SYSTEM}]},
        {"role": "user", "content": [{"type": "text", "text": prompt}]},
    ]
    how = {"add_generation_prompt": False, "add_vision_id": False, "return_dict": tokenize, **how}
    return tokenizer.apply_chat_template(chat, tokenize=tokenize, **how)


def _normalized(states: Tensor) -> Tensor:
    return (states - states.mean(-1, keepdim=True)) / (states.std(-1, keepdim=True) + 1e-8)
