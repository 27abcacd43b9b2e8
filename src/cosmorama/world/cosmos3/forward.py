"""The forward pass of a Cosmos3 transformer in its two halves: text once, generated tokens at every step.

In `Cosmos3OmniTransformer.forward` (diffusers) text and generated tokens go through every layer together. But text
tokens attend only to text, and carry neither noise nor a timestep: all that the generated tokens ever see of them is
one key and one value per layer. `understand` computes those once; `generate` is the rest, with the same arithmetic on
the same modules. The timestep embedding, which diffusers evaluates for every noisy token, is evaluated once as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosmorama.request import Action
from cosmorama.world.kernels.attention import attend
from cosmorama.world.kernels.gpu import block_of
from cosmorama.world.ranks.shares import Share, share_of

FRAMES_PER_LATENT = 4
"""After the first, which stands alone."""
Rotary = tuple[Tensor, Tensor]
"""Cosines and sines `[N, 1, head_dim]`."""
KeyValue = tuple[Tensor, Tensor]
"""Keys and values of one layer `[S, key_value_heads, head_dim]`."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the generated tokens are, and which of them carry noise; vision tokens first, then actions.

    Attributes:
        rows, columns: Latent rows and columns of a frame, before they are padded to whole patches.
        rotary: Of all generated tokens.
        noisy: bool `[N, 1]`: True on tokens that are denoised, False on the given ones.
        domain: Number of the robot whose action projections are used; None without actions.
    """

    rows: int
    columns: int
    rotary: Rotary
    noisy: Tensor
    domain: int | None = None


@dataclass(frozen=True, slots=True)
class Spread:
    """Generated tokens that several processes share: an equal part of every latent frame, and all actions in each.

    Attributes:
        share: Which part is this process's.
        frames: Latent frames, those of clips that come before too.
        vision: Tokens of all frames.
    """

    share: Share
    frames: int
    vision: int

    @classmethod
    def of(cls, model: nn.Module, frames: int, vision: int) -> Spread | None:
        """How a network's tokens are shared; None: they are not."""
        share = share_of(model, vision // frames)
        return None if share is None else cls(share, frames, vision)

    def take(self, x: Tensor) -> Tensor:
        """This process's rows of `x` `[N, ...]`."""
        mine = self.share.take(x[: self.vision].unflatten(0, (self.frames, -1)), 1)
        return torch.cat([mine.flatten(0, 1), x[self.vision :]])

    def join(self, x: Tensor) -> Tensor:
        """All rows from every process's."""
        mine = self.frames * self.share.size
        whole = self.share.join(x[:mine].unflatten(0, (self.frames, -1)), 1)
        return torch.cat([whole.flatten(0, 1), x[mine:]])


def given_actions(action: Action, action_dim: int) -> Tensor:
    """The request's actions `[steps, action_dim]`: the last one repeated or the rest left out, padded with zeros."""
    values = torch.tensor(action.values, dtype=torch.float32)
    missing = max(0, action.steps - len(values))
    values = torch.cat([values, values[-1:].expand(missing, -1)])[: action.steps]
    return torch.nn.functional.pad(values, (0, action_dim - values.shape[1]))


def rotary_embedding(model: nn.Module, positions: Tensor) -> Rotary:
    """Rotary embedding at positions (time, row, column) `[3, N]`, as the model interleaves the three."""
    net: Any = model
    dtype = net.proj_in.weight.dtype
    cos, sin = net.rotary_emb(positions.unsqueeze(1), device=positions.device, dtype=dtype)
    return cos.squeeze(0).unsqueeze(1), sin.squeeze(0).unsqueeze(1)


class ActionRows(NamedTuple):
    """Actions beside a clip: of which robot, how many rows, how many of them, the last, are denoised.

    An action lies between two frames: the first one with the second frame, or, where a state comes before, the first.
    """

    domain: int
    rows: int
    noisy: int
    from_first: bool


def layout_of(
    model: nn.Module,
    shape: Sequence[int],
    fps: float,
    text_length: int,
    kept: Sequence[int],
    *,
    before: int = 0,
    actions: ActionRows | None = None,
) -> Layout:
    """Positions of the generated tokens: time goes on after the text, rows and columns start at 0.

    Args:
        model: A `Cosmos3OmniTransformer`.
        shape: Of the latents, `[1, C, T, h, w]`.
        fps: Frames per second.
        text_length: In tokens.
        kept: The latent frames that are given.
        before: How many clean clips of the same size come before, at the same positions.
        actions: Beside the clip.
    """
    # Its module needs transformers, which a server of other models may be without.
    from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import get_3d_mrope_ids_vae_tokens

    net: Any = model
    config, (frames, height, width) = net.config, shape[2:]
    patch = config.latent_patch_size
    rows, columns = -(-height // patch), -(-width // patch)
    common = {
        "temporal_offset": text_length + config.unified_3d_mrope_temporal_modality_margin,
        "fps": fps if config.enable_fps_modulation else None,
        "base_fps": float(config.base_fps),
        "reset_spatial_indices": config.unified_3d_mrope_reset_spatial_ids,
    }
    positions, _ = get_3d_mrope_ids_vae_tokens(
        frames, rows, columns, temporal_compression_factor=FRAMES_PER_LATENT, **common
    )
    noisy = torch.ones(frames, rows * columns, dtype=torch.bool)
    noisy[list(kept)] = False
    noisy = torch.cat([torch.zeros(before * noisy.numel(), dtype=torch.bool), noisy.flatten()])
    positions = positions.repeat(1, before + 1)
    if actions is not None:
        of_actions, _ = get_3d_mrope_ids_vae_tokens(
            *(actions.rows, 1, 1),
            temporal_compression_factor=1,
            base_temporal_compression_factor=FRAMES_PER_LATENT,
            start_frame_offset=0 if actions.from_first else 1,
            **common,
        )
        positions = torch.cat([positions, of_actions], dim=1)
        noisy = torch.cat([noisy, torch.arange(actions.rows) >= actions.rows - actions.noisy])
    rotary = rotary_embedding(net, positions.to(net.device))
    return Layout(height, width, rotary, noisy[:, None].to(net.device), actions and actions.domain)


def understand(model: nn.Module, tokens: Tensor) -> Tensor:
    """Run text through the understanding half.

    Args:
        model: A `Cosmos3OmniTransformer`.
        tokens: Token numbers `[S]`.

    Returns:
        Keys and values of every layer, `[1, S, layers * 2 * key_value_heads * head_dim]`: one row per token, as
        `text_memory` unpacks it.
    """
    net: Any = model
    rotary = rotary_embedding(model, torch.arange(len(tokens), device=tokens.device).expand(3, -1))
    hidden = net.embed_tokens(tokens)
    memory: list[Tensor] = []
    last = len(net.layers) - 1
    for index, layer in enumerate(net.layers):
        attn = layer.self_attn
        normed = layer.input_layernorm(hidden)
        key = attn.norm_k(_heads(attn.to_k(normed), attn.head_dim))
        seen = key if attn.k_norm_und_for_gen is None else attn.k_norm_und_for_gen(key)
        value = _heads(attn.to_v(normed), attn.head_dim)
        memory += [_rotate(seen, rotary).flatten(1), value.flatten(1)]
        if index == last:
            break  # what the last layer would make of the text, nothing reads
        query = _rotate(attn.norm_q(_heads(attn.to_q(normed), attn.head_dim)), rotary)
        hidden = hidden + attn.to_out(_attend_causally(query, _rotate(key, rotary), value))
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return torch.cat(memory, dim=1)[None]


def text_memory(model: nn.Module, states: Tensor) -> list[KeyValue]:
    """What `understand` returned, layer by layer (views, not copies)."""
    net: Any = model
    attn = net.layers[0].self_attn
    parts = states[0].unflatten(1, (len(net.layers), 2, attn.num_key_value_heads, attn.head_dim))
    return [(parts[:, index, 0], parts[:, index, 1]) for index in range(len(net.layers))]


def generate(
    model: nn.Module,
    memory: list[KeyValue],
    layout: Layout,
    latents: Tensor,
    timestep: float,
    actions: Tensor | None = None,
    before: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor | None]:
    """Run the generation half.

    Args:
        model: A `Cosmos3OmniTransformer`.
        memory: Keys and values of the text.
        layout: Of the tokens.
        latents: `[1, C, T, h, w]`.
        timestep: Of the noisy tokens, in the scheduler's unit.
        actions: `[A, action_dim]`.
        before: Clean clips in front of it, in the shape of the latents.

    Returns:
        The predicted velocities of the latents and of the actions, in the shapes of both; on given tokens they mean
        nothing.
    """
    net: Any = model
    weight = net.proj_in.weight
    patch = net.config.latent_patch_size
    hidden = net.proj_in(torch.cat([patchify(clip.to(weight.dtype), patch) for clip in (*before, latents)]))
    vision, first = len(hidden), len(hidden) // (len(before) + 1) * len(before)
    if actions is not None:
        embedded = _robot_linear(net.action_proj_in, actions.to(weight.dtype), layout.domain)
        hidden = torch.cat([hidden, embedded + net.action_modality_embed])
    noisy, rotary = layout.noisy, layout.rotary
    spread = Spread.of(net, latents.shape[2] * (len(before) + 1), vision)
    if spread is not None:
        hidden, noisy, cos, sin = (spread.take(x) for x in (hidden, noisy, *rotary))
        rotary = cos, sin
    time = _timestep_embedding(net, timestep, hidden.device).to(weight.dtype)
    hidden = torch.where(noisy, hidden + time, hidden)
    forward = block_of(net, generation_layer) if spread is None else generation_layer
    for layer, (text_key, text_value) in zip(net.layers, memory, strict=True):
        hidden = forward(layer, hidden, text_key, text_value, rotary, spread)
    hidden = net.norm_moe_gen(hidden)
    if spread is not None:
        hidden = spread.join(hidden)
    shape = (latents.shape[2], layout.rows, layout.columns)
    velocity = unpatchify(net.proj_out(hidden[first:vision]), patch, shape)
    if actions is None:
        return velocity, None
    return velocity, _robot_linear(net.action_proj_out, hidden[vision:], layout.domain)


def patchify(latents: Tensor, patch: int) -> Tensor:
    """`[1, C, T, h, w]` to tokens `[T * rows * columns, patch * patch * C]`; odd sides are padded with zeros."""
    _, _, _, height, width = latents.shape
    padded = F.pad(latents[0], (0, -width % patch, 0, -height % patch))
    blocks = padded.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # [C, T, rows, p, columns, p]
    return cast(Tensor, blocks.permute(1, 2, 4, 3, 5, 0).flatten(3, 5).flatten(0, 2))


def unpatchify(tokens: Tensor, patch: int, shape: tuple[int, int, int]) -> Tensor:
    """Tokens back to `[1, C, T, h, w]`, without the padding."""
    frames, height, width = shape
    rows, columns = -(-height // patch), -(-width // patch)
    blocks = tokens.view(frames, rows, columns, patch, patch, -1).permute(5, 0, 1, 3, 2, 4)
    return blocks.flatten(4, 5).flatten(2, 3)[None, :, :, :height, :width]


def generation_layer(
    layer: Any, hidden: Tensor, text_key: Tensor, text_value: Tensor, rotary: Rotary, spread: Spread | None = None
) -> Tensor:
    """One layer of the generation half on tokens `[N, hidden]`; where processes share them, on this one's."""
    attn = layer.self_attn
    normed = layer.input_layernorm_moe_gen(hidden)
    query = _rotate(attn.norm_added_q(_heads(attn.add_q_proj(normed), attn.head_dim)), rotary)
    key = _rotate(attn.norm_added_k(_heads(attn.add_k_proj(normed), attn.head_dim)), rotary)
    value = _heads(attn.add_v_proj(normed), attn.head_dim)
    if spread is not None:
        key, value = spread.join(torch.cat([key, value], dim=1)).chunk(2, dim=1)
    keys, values = torch.cat([text_key, key])[None], torch.cat([text_value, value])[None]
    attended = attend(attn, query[None], keys, values)[0].flatten(1)
    hidden = hidden + attn.to_add_out(attended)
    return cast(Tensor, hidden + layer.mlp_moe_gen(layer.post_attention_layernorm_moe_gen(hidden)))


def _timestep_embedding(net: Any, timestep: float, device: torch.device) -> Tensor:
    # `full` fills on the device: a tensor made here would have to be waited for on its way there.
    projected = net.time_proj(torch.full((1,), timestep, device=device) * net.config.timestep_scale)
    return cast(Tensor, net.time_embedder(projected.to(next(net.time_embedder.parameters()).dtype)))


def _robot_linear(linear: Any, x: Tensor, domain: int | None) -> Tensor:
    """A `DomainAwareLinear` for rows `[N, in]` of one robot; diffusers copies the robot's weights once per row."""
    robot = torch.full((), domain or 0, dtype=torch.long, device=x.device)
    weight = linear.fc(robot).view(linear.input_size, linear.output_size)
    return torch.addmm(linear.bias(robot), x, weight)


def _heads(projected: Tensor, head_dim: int) -> Tensor:
    return cast(Tensor, projected.unflatten(-1, (-1, head_dim)))


def _rotate(x: Tensor, rotary: Rotary) -> Tensor:
    cos, sin = rotary
    low, high = x.chunk(2, dim=-1)
    half = low.shape[-1]
    rotated = x * cos
    rotated[..., :half].addcmul_(high, sin[..., :half], value=-1)
    rotated[..., half:].addcmul_(low, sin[..., half:])
    return rotated


def _attend_causally(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention over tokens `[N, heads, head_dim]`, with several query heads to one key: `[N, heads * head_dim]`."""
    query, key, value = (x.transpose(0, 1)[None] for x in (query, key, value))
    attended = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    return attended[0].transpose(0, 1).flatten(1)
