"""How a checkpoint is loaded. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    import torch

DType = Literal["float32", "bfloat16", "float16"]
"""What weights can be converted to."""

Offload = Literal["none", "model", "layer", "release"]
"""What waits in the CPU's memory to run layer by layer: nothing, what reads prompts, or the denoiser as well.

Prompts are read by a text encoder; of Cosmos3 by the half of its transformer that only text runs through. `release`,
for Cosmos3 alone: that half is dropped once a prompt is read, and read from the checkpoint again for the next one.
"""

Compile = Literal["none", "kernels", "blocks"]
"""What of a denoiser is compiled (torch.compile) on a GPU: nothing, norm and rotary embedding of queries and keys, or
whole blocks."""

Quantize = Literal["none", "int8", "float8"]
"""What the matrices of a denoiser's blocks are held as: what the dtype says, int8, or float8, which GPUs multiply."""


class Choices(TypedDict, total=False):
    """What of `LoadOptions` is taken as it is given."""

    offload: Offload
    vae_tiling: int
    quantize: Quantize
    variant: str | None
    fps_modulation: bool | None
    attention: str
    compile: Compile


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a checkpoint is loaded.

    Attributes:
        device: Where its modules go.
        dtype: What their weights are; None keeps each part's as it is stored.
        offload: What waits in the CPU's memory to run layer by layer; only where the model runs on a GPU.
        vae_tiling: For requests that do not say: a tile's side in pixels, see `ResolvedRequest`.
        quantize: What the matrices of the denoiser's blocks are held as, instead of the dtype; needs torchao.
        attention: Which kernel a denoiser's self-attention takes, by diffusers' names; auto: torch's own choice.
        compile: What of the denoiser is compiled, on a GPU.
        fps_modulation: For Predict2: whether positions in time follow the frame rate, as diffusers has it; None is off,
            as NVIDIA's released configurations have it.
        variant: Of the weights, for example `fp16`, taken where a part has it; None: the usual files.
    """

    device: torch.device | str = "cpu"
    dtype: torch.dtype | None = None
    offload: Offload = "none"
    vae_tiling: int = 0
    quantize: Quantize = "none"
    variant: str | None = None
    fps_modulation: bool | None = None
    attention: str = "auto"
    compile: Compile = "kernels"


ON_CPU = LoadOptions()
"""As it is stored, on the CPU."""
