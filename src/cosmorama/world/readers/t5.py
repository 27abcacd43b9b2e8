"""The T5 text encoder of Predict1 and Predict2: 512 rows per prompt, those past its end zero."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cosmorama.world.base import TextEmbedding
from cosmorama.world.load.checkpoint import load_module, load_tokenizer
from cosmorama.world.load.options import ON_CPU, LoadOptions

ROWS = 512
"""How many rows the denoisers were trained to read. They read the zero ones too: nothing is masked."""


class T5Reader:
    """Reads prompts."""

    def __init__(
        self, encoder: Any, tokenizer: Any, device: torch.device | str = "cpu", *, fold_rows: bool = True
    ) -> None:
        self._encoder, self._tokenizer, self._device, self._fold_rows = encoder, tokenizer, device, fold_rows

    @classmethod
    def load(cls, folder: Path, options: LoadOptions = ON_CPU) -> T5Reader:
        """From the `text_encoder` and `tokenizer` folders of a checkpoint.

        Raises:
            ModelNotFoundError: the weights do not fit the config.
        """
        from transformers import T5EncoderModel

        encoder = load_module(T5EncoderModel, folder / "text_encoder", options)
        return cls(
            encoder,
            load_tokenizer(folder / "tokenizer", reader=encoder),
            options.device,  # not that of its weights: they may wait elsewhere
            # On a GPU every length of text would have a plan of its own in cuDNN, for half a percent of the work.
            fold_rows=torch.device(options.device).type == "cpu",
        )

    @property
    def width(self) -> int:
        """Of its states."""
        return int(self._encoder.config.d_model)

    @torch.inference_mode()
    def __call__(self, prompt: str) -> TextEmbedding:
        """Read one prompt; tokens past the 512th are not read.

        Returns:
            States `[1, S, D]`, the last row zero and standing for all the zero rows up to 512. Unfolded: `[1, 512, D]`.
        """
        count = len(self._tokenizer(prompt).input_ids)
        padding = False if self._fold_rows else "max_length"
        tokens = self._tokenizer(prompt, padding=padding, max_length=ROWS, truncation=True, return_tensors="pt").to(
            self._device
        )
        # Attention is masked and positions are relative, so padding changes nothing for the prompt's own tokens.
        states: Tensor = self._encoder(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        length = int(tokens.attention_mask.sum())
        if not self._fold_rows:
            states[:, length:] = 0
            return TextEmbedding(states, tokens=count, limit=ROWS)
        if length == ROWS:
            return TextEmbedding(states, tokens=count, limit=ROWS)
        folded = torch.cat([states, states.new_zeros(1, 1, states.shape[2])], dim=1)
        return TextEmbedding(folded, repeats=ROWS - length, tokens=count, limit=ROWS)
