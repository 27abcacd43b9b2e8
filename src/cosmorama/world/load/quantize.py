"""Weights of one byte each: the matrices of a denoiser's blocks as int8 or float8, with a scale per output row.

int8 is for weights only: a layer brings its matrix to the dtype of the activations, multiplies, scales every output.
With float8 (e4m3) activations are rounded too, row by row as they come, and the GPU multiplies what takes a byte each.
How matrices are held and multiplied is torchao's.

Attention and feed-forward matrices of the blocks are 95 % of a 14B denoiser's weights. What is left stays as it is:
adaLN, whose one row per frame shifts, scales and gates all tokens of that frame; norms and biases, which are vectors;
and what brings patches, times, text and control clips in and the prediction out, where an error meets the clip itself.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cosmorama.errors import ModelNotFoundError
from cosmorama.world.kernels.layers import is_quantized
from cosmorama.world.load.names import is_quantized_matrix
from cosmorama.world.load.options import Quantize

_FLOAT8_CAPABILITY = (8, 9)
"""CUDA compute capability from which GPUs multiply float8: Ada, Hopper and later."""


def check_quantize(
    quantize: Quantize, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> None:
    """Refuse, before anything is read, what cannot be.

    Raises:
        ModelNotFoundError: torchao is missing, the dtype is float16, or the device cannot multiply float8.
    """
    if quantize == "none":
        return
    if importlib.util.find_spec("torchao") is None:
        raise ModelNotFoundError(f"COSMORAMA_QUANTIZE={quantize} needs torchao: pip install '.[quantize]'")
    if quantize == "float8":
        place = None if device is None else torch.device(device)
        if place is not None and (place.type != "cuda" or torch.cuda.get_device_capability(place) < _FLOAT8_CAPABILITY):
            raise ModelNotFoundError(
                f"COSMORAMA_QUANTIZE=float8 needs a GPU that multiplies float8 (NVIDIA Ada, Hopper or later), and the "
                f"model is to run on {place}: take int8, or none"
            )
        if dtype not in (None, torch.bfloat16):
            raise ModelNotFoundError("COSMORAMA_QUANTIZE=float8 computes in bfloat16: take COSMORAMA_DTYPE=bfloat16")
    if dtype == torch.float16:
        # Products come before they are scaled: with integers up to 127 they pass float16's 65504.
        raise ModelNotFoundError(
            f"COSMORAMA_QUANTIZE={quantize} does not go with float16, which its products overflow: take "
            "COSMORAMA_DTYPE=bfloat16 (or float32)"
        )


def quantize_blocks(model: nn.Module, place_of: Callable[[str], torch.device | str], kind: Quantize = "int8") -> None:
    """Hold the matrices of a denoiser's blocks in a byte each; a network of any other kind is left alone.

    Args:
        model: The network, with its weights.
        place_of: Where a layer goes whose matrix is held so, by the name of the matrix. They go one by one: no more
            than one is there in full.
        kind: int8 or float8.

    Raises:
        ModelNotFoundError: it computes in float16, or torchao is missing.
    """
    network = type(model).__name__
    for layer_name, layer in model.named_modules():
        name = f"{layer_name}.weight"
        if isinstance(layer, nn.Linear) and is_quantized_matrix(network, name, layer.weight.shape):
            check_quantize(kind, layer.weight.dtype)
            quantize_layer(layer.to(place_of(name)), kind)


def quantize_layer(layer: nn.Linear, kind: Quantize = "int8") -> None:
    """Hold the matrix of one linear layer as int8 or float8."""
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, Int8WeightOnlyConfig, PerRow, quantize_

    # Their settings for torch.compile would change how float32 is multiplied in the whole process.
    if kind == "float8":
        config: Any = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), set_inductor_config=False)
    else:
        config = Int8WeightOnlyConfig(set_inductor_config=False)
    quantize_(layer, config)


def held_bytes(weight: Tensor) -> int:
    """Bytes of memory that a weight takes; torch's own `nbytes` counts an int8 one as what it stands for."""
    if not is_quantized(weight):
        return weight.nbytes
    wrapper: Any = weight
    inner, _ = wrapper.__tensor_flatten__()
    return sum(int(getattr(wrapper, name).nbytes) for name in inner)
