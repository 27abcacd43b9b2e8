"""Microcosm's text encoder: a word tokenizer and a small transformer, trained together with the denoiser."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from cosmorama.world.microcosm.stored import Stored

MAX_TOKENS = 96
_PAD, _START = 0, 1
RESERVED = 2
_WORD = re.compile(r"[a-z]+")


def words(text: str) -> list[str]:
    """The lower-case words of a text, without punctuation."""
    return _WORD.findall(text.lower())


class TextEncoder(Stored):
    """Prompts to embeddings.

    Words outside the vocabulary are dropped: the world has no picture for them, and a prompt of unknown words only is
    the empty prompt. The empty prompt is one start token.

    Args:
        vocabulary: The known words; their order is the token order.
        width: Width D of the embeddings.
        layers: Transformer layers.
        heads: Attention heads.
    """

    def __init__(self, vocabulary: Sequence[str], width: int = 192, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self._ids = {word: index + RESERVED for index, word in enumerate(vocabulary)}
        self.embedding = nn.Embedding(len(vocabulary) + RESERVED, width)
        nn.init.normal_(self.embedding.weight, std=0.5)
        self.position = nn.Parameter(torch.empty(MAX_TOKENS, width))
        nn.init.normal_(self.position, std=0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 3 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def tokenize(self, prompt: str) -> list[int]:
        """Token ids of a prompt: the start token and up to 95 known words."""
        known = [self._ids[word] for word in words(prompt) if word in self._ids]
        return [_START, *known[: MAX_TOKENS - 1]]

    def unread(self, prompt: str) -> str | None:
        """What of a prompt there is no picture for, in a sentence; None: little or nothing."""
        said = words(prompt)
        known = sum(word in self._ids for word in said)
        if said and not known:
            return "nothing of the prompt was understood: this model knows a few words only, and none of these"
        if known >= MAX_TOKENS:
            return f"the first {MAX_TOKENS - 1} of the {known} words of the prompt that this model knows were used"
        if 2 * known < len(said):
            return f"{known} of the {len(said)} words of the prompt were understood: this model knows a few only"
        return None

    def forward(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Encode prompts.

        Returns:
            Embeddings [B, S, D], and a bool mask [B, S] that is False on padding.
        """
        rows = [self.tokenize(prompt) for prompt in prompts]
        ids = torch.full((len(rows), max(map(len, rows))), _PAD, device=self.position.device)
        for row, tokens in zip(ids, rows, strict=True):
            row[: len(tokens)] = torch.tensor(tokens, device=ids.device)
        return self.embed(ids)

    def embed(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Encode token ids [B, S], 0 being padding; see `forward`."""
        mask = ids != _PAD
        x = self.embedding(ids) + self.position[: ids.shape[1]]
        attention_mask = mask[:, None, None, :]
        for layer in self.blocks:
            x = _encode(layer, x, attention_mask)
        return cast(Tensor, self.norm(x)), mask


def _encode(layer: Any, x: Tensor, mask: Tensor) -> Tensor:
    """A pre-norm `nn.TransformerEncoderLayer`, spelled out.

    The module's own inference path drops padded positions, which changes the sequence length between training and
    serving.
    """
    attention = layer.self_attn
    query, key, value = (
        part.unflatten(2, (attention.num_heads, -1)).transpose(1, 2)
        for part in nn.functional.linear(layer.norm1(x), attention.in_proj_weight, attention.in_proj_bias).chunk(
            3, dim=-1
        )
    )
    attended = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    x = x + attention.out_proj(attended.transpose(1, 2).flatten(2))
    return cast(Tensor, x + layer.linear2(nn.functional.gelu(layer.linear1(layer.norm2(x)))))
