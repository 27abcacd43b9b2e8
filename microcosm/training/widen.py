"""A network twice as wide that begins as what a narrower one has learned (Net2Net, arXiv 1511.05641).

Every hidden channel is there twice, so norms see what they saw; attention has every head twice. Where a layer sums over
channels, each weight is divided between the two copies, at random: copies of equal weights would be trained alike.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from cosmorama.world.microcosm.text_encoder import RESERVED, TextEncoder

_SMALLEST_PART, _LARGEST_PART = 0.2, 0.8  # of a divided weight


def widened(net: Any) -> Any:
    """A `CosmosTransformer3DModel` with twice the heads of `net`, that answers as it does up to rounding.

    Its patch embedding, blocks and projections must be those of `world.Shape`: no position embedding is learned.
    """
    wide = type(net).from_config({**net.config, "num_attention_heads": 2 * net.config.num_attention_heads})
    wide.load_state_dict({name: _widen(name, weight) for name, weight in net.state_dict().items()})
    return wide


@torch.no_grad()
def taught(known: TextEncoder, new: TextEncoder) -> TextEncoder:
    """`new` with the weights of `known`, also of every word that both know; its other words stay as they are."""
    embedding = new.embedding.weight.clone()
    words = [word for word in new.config.vocabulary if word in known.config.vocabulary]
    rows, known_rows = ([encoder.tokenize(word)[1] for word in words] for encoder in (new, known))
    embedding[rows] = known.embedding.weight[known_rows]
    embedding[:RESERVED] = known.embedding.weight[:RESERVED]
    new.load_state_dict({**known.state_dict(), "embedding.weight": embedding})
    return new


def _widen(name: str, weight: Tensor) -> Tensor:
    """One weight, by its name: first what it is read with, then what it makes."""
    if name == "time_embed.norm.weight":
        # Of sines and cosines: twice as many frequencies, every second one as before.
        return weight.repeat_interleave(2)
    if re.search(r"norm_[qk]\.weight$", name):
        return weight  # of one head
    if re.search(r"(t_embedder|norm\d|norm_out)\.linear_1\.", name):
        weight = torch.stack([weight, torch.zeros_like(weight)], dim=2).flatten(1)  # the frequencies that are as before
    elif weight.ndim == 2 and not re.search(r"patch_embed|attn2\.to_[kv]|norm.*linear_2", name):
        weight = _divided(weight)
    if re.search(r"(norm\d|norm_out)\.linear_1\.|proj_out", name):
        return weight  # no hidden channels
    return torch.cat([part for part in weight.chunk(_parts(name)) for _ in range(2)])


def _parts(name: str) -> int:
    """How many vectors of hidden channels a layer makes, one after the other."""
    if not name.endswith("linear_2.weight"):
        return 1
    return 2 if name.startswith("norm_out") else 3  # shift and scale; of the blocks a gate too


def _divided(weight: Tensor) -> Tensor:
    """[out, in] to [out, 2 in]: each weight in two parts."""
    part = torch.empty_like(weight).uniform_(_SMALLEST_PART, _LARGEST_PART) * weight
    return torch.cat([part, weight - part], dim=1)
