"""What a layer's weights are at the moment: there to be read by a kernel, or held in another way."""

from __future__ import annotations

from torch import Tensor, nn


def is_offloaded(layer: nn.Module) -> bool:
    """Whether a layer's weights are where it runs only while it is called: nobody else can use them."""
    return hasattr(layer, "_diffusers_hook")


def is_quantized(weight: Tensor) -> bool:
    """Whether a weight is held as integers and scales."""
    return hasattr(weight, "__tensor_flatten__")
