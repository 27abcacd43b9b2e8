"""Between frames as people see them and pixels as networks do."""

from __future__ import annotations

import torch
from torch import Tensor

from cosmorama.world.faults import NotFiniteError, all_finite


def to_pixels(frames: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """uint8 frames `[T, H, W, 3]` to pixels `[1, 3, T, H, W]` in -1..1, on a device: bytes travel there, not floats."""
    pixels = frames.to(device).permute(3, 0, 1, 2)[None].to(torch.float32)
    return pixels.div_(255).mul_(2).sub_(1)


def to_frames(pixels: Tensor) -> Tensor:
    """Pixels `[1, 3, T, H, W]` in -1..1 to uint8 frames `[T, H, W, 3]` on the CPU, rounded to the nearest level.

    diffusers rounds down in its Predict pipelines, which darkens a clip by half a level on average.

    Raises:
        NotFiniteError: there is a NaN among them, which would be a black pixel.
    """
    levels = (pixels[0].permute(1, 2, 3, 0).float() + 1) * 127.5
    check_finite(levels)
    # Put in order before they leave the GPU: there it is one fast copy.
    return levels.round_().clamp_(0, 255).to(torch.uint8).contiguous().cpu()


def check_finite(levels: Tensor) -> None:
    """Refuse decoded frames that are not numbers: they would be black pixels.

    Raises:
        NotFiniteError: says what to try.
    """
    if not all_finite(levels):
        raise NotFiniteError(
            "the decoded frames: not a number, or infinite. Try COSMORAMA_DTYPE=bfloat16 or float32 (float16 overflows "
            "in video autoencoders); if it stays so, the weights in vae/ are damaged"
        )
