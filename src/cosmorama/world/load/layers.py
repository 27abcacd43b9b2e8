"""What the layers of a network are called by NVIDIA's and Wan's own code, whose adapters are taken too."""

from __future__ import annotations

import re
from collections.abc import Iterable

_TO_COSMOS = (
    ("transformer_blocks", "blocks"),
    ("attn1", "self_attn"),
    ("attn2", "cross_attn"),
    ("to_q", "q_proj"),
    ("to_k", "k_proj"),
    ("to_v", "v_proj"),
    ("to_out.0", "output_proj"),
    ("ff.net.0.proj", "mlp.layer1"),
    ("ff.net.2", "mlp.layer2"),
    ("norm1.linear_1", "adaln_modulation_self_attn.1"),
    ("norm1.linear_2", "adaln_modulation_self_attn.2"),
    ("norm2.linear_1", "adaln_modulation_cross_attn.1"),
    ("norm2.linear_2", "adaln_modulation_cross_attn.2"),
    ("norm3.linear_1", "adaln_modulation_mlp.1"),
    ("norm3.linear_2", "adaln_modulation_mlp.2"),
    ("patch_embed.proj", "x_embedder.proj.1"),
    ("time_embed.t_embedder", "t_embedder.1"),
    ("norm_out.linear_1", "final_layer.adaln_modulation.1"),
    ("norm_out.linear_2", "final_layer.adaln_modulation.2"),
    ("proj_out", "final_layer.linear"),
    ("crossattn_proj", "crossattn_proj.0"),
)
"""diffusers' names of a layer's parts, and those of NVIDIA's code for Predict2, Predict2.5 and Transfer2.5."""
_TO_COSMOS_1 = (
    (r"transformer_blocks\.(\d+)\.", r"blocks.block\1."),
    (r"\.attn1\.(to_[qkv])$", r".blocks.0.block.attn.\1.0"),
    (r"\.attn2\.(to_[qkv])$", r".blocks.1.block.attn.\1.0"),
    (r"\.attn1\.", ".blocks.0.block.attn."),
    (r"\.attn2\.", ".blocks.1.block.attn."),
    (r"\.ff\.net\.0\.proj$", ".blocks.2.block.layer1"),
    (r"\.ff\.net\.2$", ".blocks.2.block.layer2"),
    *((rf"\.norm{n + 1}\.linear_(\d)$", rf".blocks.{n}.adaLN_modulation.\1") for n in range(3)),
)
"""The same for Predict1."""
_TO_COSMOS_3 = (
    ("to_q", "q_proj"),
    ("to_k", "k_proj"),
    ("to_v", "v_proj"),
    ("to_out", "o_proj"),
    ("add_q_proj", "q_proj_moe_gen"),
    ("add_k_proj", "k_proj_moe_gen"),
    ("add_v_proj", "v_proj_moe_gen"),
    ("to_add_out", "o_proj_moe_gen"),
)
"""The same for Cosmos3."""
_TO_WAN = (
    ("attn1", "self_attn"),
    ("attn2", "cross_attn"),
    *((f"to_{part}", part) for part in "qkv"),
    ("to_out.0", "o"),
    ("add_k_proj", "k_img"),
    ("add_v_proj", "v_img"),
    ("ffn.net.0.proj", "ffn.0"),
    ("ffn.net.2", "ffn.2"),
    ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.time_proj", "time_projection.1"),
    ("condition_embedder.image_embedder.ff.net.0.proj", "img_emb.proj.1"),
    ("condition_embedder.image_embedder.ff.net.2", "img_emb.proj.3"),
    ("proj_out", "head.head"),
)
"""The same for Wan, and its own names: diffusers reads them only where all layers of a block are there."""


def aliases_of(layers: Iterable[str]) -> dict[str, str]:
    """Every name that a layer is known by, without prefixes."""
    aliases: dict[str, str] = {}
    for layer in layers:
        first = layer
        for pattern, other in _TO_COSMOS_1:
            first = re.sub(pattern, other, first)
        names = {first, layer, *(_respelt(layer, table) for table in (_TO_COSMOS, _TO_COSMOS_3, _TO_WAN))}
        names |= {name.removesuffix(".0") for name in names if name.endswith("to_out.0")}
        for name in names:
            aliases.setdefault(name, layer)
            aliases.setdefault(name.replace(".", "_"), layer)
    return aliases


def _respelt(layer: str, table: tuple[tuple[str, str], ...]) -> str:
    name = f".{layer}."
    for ours, theirs in table:
        name = name.replace(f".{ours}.", f".{theirs}.")
    return name.strip(".")
