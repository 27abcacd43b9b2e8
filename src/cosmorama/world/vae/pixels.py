"""Between frames as people see them and pixels as networks do."""

from __future__ import annotations

import torch
from torch import Tensor


def to_pixels(frames: Tensor) -> Tensor:
    """uint8 frames `[T, H, W, 3]` to float32 pixels `[1, 3, T, H, W]` in -1..1."""
    return frames.permute(3, 0, 1, 2)[None].to(torch.float32) / 255 * 2 - 1


def to_frames(pixels: Tensor) -> Tensor:
    """Pixels `[1, 3, T, H, W]` in -1..1 to uint8 frames `[T, H, W, 3]` on the CPU, rounded to the nearest level.

    diffusers rounds down in its Predict pipelines, which darkens a clip by half a level on average.
    """
    levels = (pixels[0].permute(1, 2, 3, 0).float() + 1) * 127.5
    return levels.round_().clamp_(0, 255).to(torch.uint8).cpu()
