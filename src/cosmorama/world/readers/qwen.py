"""The Qwen2.5-VL text encoder of Predict2.5 and Transfer2.5: all its layers' states, normalized, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cosmorama.world.base import TextEmbedding
from cosmorama.world.load.checkpoint import load_module, load_tokenizer
from cosmorama.world.load.offload import place
from cosmorama.world.load.options import ON_CPU, LoadOptions

ROWS = 512
_SYSTEM = "You are a helpful assistant who will provide prompts to an image generator."


class QwenReader:
    """Reads prompts. Only the language half of the model is kept: nothing here sees, and no word is predicted."""

    def __init__(self, language_model: Any, tokenizer: Any, device: torch.device | str) -> None:
        self._model, self._tokenizer, self._device = language_model, tokenizer, device

    @classmethod
    def load(cls, folder: Path, options: LoadOptions = ON_CPU) -> QwenReader:
        """From the `text_encoder` and `tokenizer` folders of a checkpoint.

        Raises:
            ModelNotFoundError: the weights do not fit the config.
        """
        from transformers import Qwen2_5_VLForConditionalGeneration

        cpu = LoadOptions(dtype=options.dtype, variant=options.variant)  # the other half of the model never leaves it
        whole = load_module(Qwen2_5_VLForConditionalGeneration, folder / "text_encoder", cpu)
        tokenizer = load_tokenizer(folder / "tokenizer", chat=True, reader=whole)
        return cls(place(whole.model.language_model, options.device, options.offload), tokenizer, options.device)

    @property
    def width(self) -> int:
        """Of its states."""
        config = self._model.config
        return int(config.num_hidden_layers * config.hidden_size)

    @torch.inference_mode()
    def __call__(self, prompt: str) -> TextEmbedding:
        """States `[1, 512, layers * hidden]` of a prompt's tokens, then of padding, which the denoiser reads too."""
        chat = [
            {"role": "system", "content": [{"type": "text", "text": _SYSTEM}]},
            {"role": "user", "content": [{"type": "text", "text": prompt}]},
        ]
        how = {"tokenize": True, "add_generation_prompt": False, "add_vision_id": False, "return_dict": True}
        count = len(self._tokenizer.apply_chat_template(chat, **how)["input_ids"])
        tokens = self._tokenizer.apply_chat_template(
            chat, max_length=ROWS, truncation=True, padding="max_length", **how
        )
        ids = torch.tensor([tokens["input_ids"]], device=self._device)
        layers = self._model(ids, output_hidden_states=True, use_cache=False).hidden_states[1:]
        states = torch.cat([_normalized(states) for states in layers], dim=-1)
        return TextEmbedding(states, tokens=count, limit=ROWS)


def _normalized(states: Tensor) -> Tensor:
    return (states - states.mean(-1, keepdim=True)) / (states.std(-1, keepdim=True) + 1e-8)
