"""Which weights of a network are which, by their names: those held in a byte each, those that only text reads."""

from __future__ import annotations

import re
from collections.abc import Sequence

_MATRICES = {
    "CosmosTransformer3DModel": re.compile(r"transformer_blocks\.\d+\.(attn1|attn2|ff)\.(.+\.)?weight"),
    "CosmosControlNetModel": re.compile(r"control_blocks\.\d+\.(attn1|attn2|ff)\.(.+\.)?weight"),
    "Cosmos3OmniTransformer": re.compile(r"layers\.\d+\.(self_attn|mlp|mlp_moe_gen)\.(.+\.)?weight"),
}
"""By the class of a network: the names of weights that are quantized where they are matrices, not norms."""
_ROW_BYTES = 5
"""Of a row's scale (float32) and its zero point (int8, always 0)."""
_TEXT_HALF = re.compile(
    r"embed_tokens\.|norm\.|layers\.\d+\.(input_layernorm|post_attention_layernorm|mlp|"
    r"self_attn\.(to_q|to_k|to_v|to_out|norm_q|norm_k|k_norm_und_for_gen))\."
)


def is_quantized_matrix(network: str, weight: str, shape: Sequence[int]) -> bool:
    """Whether quantizing a network, by the name of its class, changes the weight of this name and shape."""
    names = _MATRICES.get(network)
    return names is not None and len(shape) == 2 and names.fullmatch(weight) is not None


def is_denoiser(network: str) -> bool:
    """Whether a network, by the name of its class, is a denoiser or a ControlNet of the families sampled here."""
    return network in _MATRICES


def quantized_bytes(shape: Sequence[int]) -> int:
    """Bytes that a matrix `[rows, columns]` takes as int8, and about as float8."""
    rows, columns = shape
    return rows * (columns + _ROW_BYTES)


def read_by_text(name: str) -> bool:
    """Whether a weight is one that only text runs through."""
    return _TEXT_HALF.match(name) is not None
