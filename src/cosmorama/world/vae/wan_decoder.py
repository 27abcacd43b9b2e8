"""The Wan tokenizers' decoder with its largest part, that of full size, on one frame at a time instead of four.

It is what diffusers' `WanDecoder3d.forward` does, to the bit: a causal convolution remembers the frames before a chunk,
however long the chunk is. What a frame takes on its way out is a quarter then of what four take.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cosmorama.world.kernels.causal_conv import continued


def frame_by_frame(decoder: Any, z: Tensor, memory: list[Any], *, first: bool) -> Tensor:
    """Decode one latent frame `[1, C, 1, h, w]` to pixels `[1, 3, t, H, W]`, one frame or four.

    Args:
        decoder: diffusers' `WanDecoder3d`.
        z: The latent frame.
        memory: What its convolutions know of the frames before, in the order of diffusers' `feat_cache`.
        first: Whether this is the clip's first latent frame.
    """
    place = [0]
    x = continued(decoder.conv_in, z, memory, place)
    x = decoder.mid_block(x, feat_cache=memory, feat_idx=place)
    *small, large = decoder.up_blocks
    enlarge = None
    for block in small:
        if block is small[-1] and _enlarges_frames_alone(block):
            enlarge = block.upsamplers[0]
            for resnet in block.resnets:
                x = resnet(x, feat_cache=memory, feat_idx=place)
        else:
            x = block(x, feat_cache=memory, feat_idx=place, first_chunk=first)
    frames = []
    for frame in x.split(1, dim=2):
        there = place.copy()
        y = frame if enlarge is None else enlarge(frame, feat_cache=memory, feat_idx=there)
        y = large(y, feat_cache=memory, feat_idx=there, first_chunk=first)
        frames.append(continued(decoder.conv_out, decoder.nonlinearity(decoder.norm_out(y)), memory, there))
    return torch.cat(frames, dim=2)


def _enlarges_frames_alone(block: Any) -> bool:
    """Whether a block ends by enlarging every frame on its own, with nothing beside that."""
    ends = getattr(block, "upsamplers", None)
    return ends is not None and ends[0].mode == "upsample2d"
