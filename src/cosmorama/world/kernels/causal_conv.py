"""The Wan tokenizers' convolutions over time and space on a CPU, without the copies that torch and diffusers make.

A `WanCausalConv3d` in diffusers pads its input, joins it with earlier frames and gives it to torch's conv3d, which
unfolds narrow inputs (27 copies of them) and rearranges wide ones. Here the channels of a pixel lie side by side, so
that oneDNN takes frames as they are; in float32 a convolution is a sum of 2D ones over its time taps, of which those on
frames before the clip, all zeros, are left out. The same numbers up to the order of a sum.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanCausalConv3d,
    WanResidualBlock,
    WanRMS_norm,
    WanUpsample,
)
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv3d, pad

_SMALLEST_NORM = 1e-12
"""`torch.nn.functional.normalize` divides by no less."""
_REMEMBERED = 2
"""Frames of the past that a convolution over three frames needs."""


def lighten(vae: nn.Module) -> None:
    """Replace the forward passes of an `AutoencoderKLWan` on a CPU; for inference alone, as activations are in place.

    Its weights stay what they are, in another order in memory.
    """
    for module in vae.modules():
        if isinstance(module, WanCausalConv3d):
            if module.stride == (1, 1, 1):  # the others are given their past, and are small
                _put_channels_last(module.weight)
                module.forward = MethodType(_convolved, module)
        elif isinstance(module, WanResidualBlock):
            module.forward = MethodType(_residual, module)
        elif isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
        elif isinstance(module, WanRMS_norm) and module.channel_first and not isinstance(module.bias, nn.Parameter):
            module.forward = MethodType(_normed, module)
        elif isinstance(module, WanUpsample):
            module.forward = _doubled
        elif isinstance(module, nn.SiLU):
            module.inplace = True  # each follows a norm


def continued(conv: Any, x: Tensor, memory: list[Any], place: list[int]) -> Tensor:
    """A `WanCausalConv3d` over the next part of a clip.

    Args:
        conv: Over three frames.
        x: `[B, C, T, H, W]`; one frame alone is remembered as it is, so that nobody may write over it.
        memory: What the convolutions know of the parts before. In this one's place the last frames, each on its own:
            diffusers' tensor of two would have to be copied for every single frame.
        place: Where in it, counted up.
    """
    before: list[Tensor] = memory[place[0]] or []
    if getattr(conv.forward, "__func__", None) is _convolved:
        made: Tensor = conv(x, before)
    else:
        made = conv(x, torch.cat(before, dim=2) if before else None)
    # A clone does not hold on to the frames beside it.
    latest = [x] if x.shape[2] == 1 else [frame.clone() for frame in x[:, :, -_REMEMBERED:].split(1, dim=2)]
    memory[place[0]] = [*before, *latest][-_REMEMBERED:]
    place[0] += 1
    return made


def _residual(module: Any, x: Tensor, feat_cache: list[Any] | None = None, feat_idx: list[int] | None = None) -> Tensor:
    """`WanResidualBlock.forward`."""
    added: Tensor = module.conv_shortcut(x)
    for norm, conv in ((module.norm1, module.conv1), (module.norm2, module.conv2)):
        x = module.nonlinearity(norm(x))
        x = conv(x) if feat_cache is None or feat_idx is None else continued(conv, x, feat_cache, feat_idx)
    return x.add_(added)


def _doubled(x: Tensor) -> Tensor:
    """`WanUpsample.forward`: every pixel of `[B, C, H, W]` four times; torch's loses the layout of a single frame."""
    pixels = x.permute(0, 2, 3, 1)[:, :, None, :, None].expand(-1, -1, 2, -1, 2, -1)
    return pixels.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def _put_channels_last(weight: nn.Parameter) -> None:
    """[out, in, time, rows, columns]: every time tap on its own in float32, as `_tap_by_tap` wants them."""
    if weight.dtype == torch.float32:
        weight.data = weight.data.permute(2, 0, 3, 4, 1).contiguous().permute(1, 4, 0, 2, 3)
    else:
        weight.data = weight.data.contiguous(memory_format=torch.channels_last_3d)


def _convolved(module: Any, x: Tensor, cache_x: Tensor | list[Tensor] | None = None) -> Tensor:
    """`WanCausalConv3d.forward`: x `[B, C, T, H, W]` after the frames that are remembered, or after nothing.

    These may be given one by one, `[B, C, 1, H, W]` each.
    """
    right, _, bottom, _, past, _ = module._padding
    known = [] if cache_x is None or not past else cache_x
    if isinstance(known, Tensor):
        known = list(known.split(1, dim=2))
    if x.dtype == torch.float32:
        return _tap_by_tap(x, known, module.weight, module.bias, (bottom, right))
    # In fewer bits a sum of rounded convolutions would be less exact than one convolution.
    weight, missing, length = module.weight, past, x.shape[2]
    if known:
        x, missing = torch.cat([*known, x], dim=2), past - len(known)
    if length == 1:
        weight = weight[:, :, missing:]
    elif missing:
        x = pad(x, (0, 0, 0, 0, missing, 0))
    x = x.contiguous(memory_format=torch.channels_last_3d)
    convolved: Tensor = conv3d(x, weight, module.bias, padding=(0, bottom, right))
    return convolved


def _tap_by_tap(
    x: Tensor, known: list[Tensor], weight: Tensor, bias: Tensor | None, padding: tuple[int, int]
) -> Tensor:
    """A causal convolution of x `[B, C, T, H, W]`, which the frames `known`, `[B, C, 1, H, W]` each, come before.

    All taps but the last work on a frame at a time: what they add is then in the processor's cache.
    """
    x = x.contiguous(memory_format=torch.channels_last_3d)
    latest = conv2d(x.transpose(1, 2).flatten(0, 1), weight[:, :, -1], bias, padding=padding)
    out: Tensor = latest.unflatten(0, (len(x), -1)).transpose(1, 2)
    frames = [*(frame.squeeze(2) for frame in known), *x.unbind(2)]
    length, taps = x.shape[2], weight.shape[2]
    for frame, made in enumerate(out.unbind(2), len(frames) - length):
        for back in range(1, min(taps - 1, frame) + 1):
            made += conv2d(frames[frame - back], weight[:, :, taps - 1 - back], padding=padding)
    return out


def _normed(module: Any, x: Tensor) -> Tensor:
    """`WanRMS_norm.forward` in two passes instead of five."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
    normed: Tensor = (x * norm.clamp_min_(_SMALLEST_NORM).reciprocal_()).mul_(module.gamma.float() * module.scale)
    return normed.to(x.dtype)
