"""Offloading: parts of a model wait in the CPU's memory and come to the GPU layer by layer; or are read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from cosmorama.errors import ModelNotFoundError
from cosmorama.world.kernels.layers import is_quantized
from cosmorama.world.load.names import read_by_text
from cosmorama.world.load.options import LoadOptions, Offload
from cosmorama.world.load.quantize import held_bytes, quantize_layer
from cosmorama.world.load.weights import Weights

M = TypeVar("M", bound=nn.Module)


def place(module: M, device: torch.device | str, offload: Offload = "none") -> M:
    """Put a part of a model where it runs, or where it waits to run layer by layer.

    Offloading is diffusers' group offloading of single layers, the only kind that does not depend on who calls them:
    the Cosmos models' blocks are never called as a whole here.

    Raises:
        ModelNotFoundError: it would wait where it runs.
    """
    reads = type(module).__module__.startswith("transformers.")
    kind = "text_encoder" if reads else "denoiser"
    if not waits(kind if "AutoencoderKL" not in type(module).__name__ else "vae", offload):
        return module.to(device)
    check_offload(device, offload)
    offload_layers(module, torch.device(device), called_whole=reads)
    return module


def check_offload(device: torch.device | str, offload: Offload) -> None:
    """Refuse to let anything wait in the memory that it runs in.

    Raises:
        ModelNotFoundError: says so.
    """
    if offload in ("model", "layer") and torch.device(device).type == "cpu":
        raise ModelNotFoundError(f"offload is {offload!r}, but the model runs on the CPU, where its weights are anyway")


def offload_layers(
    module: nn.Module, device: torch.device, *, called_whole: bool = False, disk: Path | None = None
) -> None:
    """Let each layer's weights come to `device` just before it runs and leave after it.

    Args:
        module: On the CPU.
        device: Where it runs.
        called_whole: It is always called as a whole, never layer by layer: then the next layer travels while one
            computes.
        disk: A folder for the weights, instead of the CPU's memory.
    """
    from diffusers.hooks import HookRegistry
    from diffusers.hooks.group_offloading import (
        _LAYER_EXECUTION_TRACKER,
        _LAZY_PREFETCH_GROUP_OFFLOADING,
        apply_group_offloading,
    )

    loose = [(parameter, parameter.data) for parameter in module.parameters(recurse=False)]  # belong to no layer
    apply_group_offloading(
        module,
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="leaf_level",
        use_stream=device.type == "cuda",  # or weights would be copied back after every use
        offload_to_disk_path=None if disk is None else str(disk),
    )
    if not called_whole:
        # They write down the order of all calls until the module returns, which it never does.
        registry = HookRegistry.check_if_exists_or_initialize(module)
        for name in (_LAZY_PREFETCH_GROUP_OFFLOADING, _LAYER_EXECUTION_TRACKER):
            registry.remove_hook(name, recurse=True)
    for parameter, data in loose:
        parameter.data = data.to(device)


def waits(part: str, offload: Offload) -> bool:
    """Whether a part of a checkpoint, by its folder's name, waits in the CPU's memory."""
    if offload in ("none", "release") or part == "vae":
        return False
    return offload == "layer" or part.startswith("text_encoder")


class TextHalf:
    """The weights of a Cosmos3 transformer that only text runs through, about half of them, once per prompt.

    They are what other models have as a text encoder, and can be let go of in between.

    Attributes:
        resident: Whether they are in memory now.
    """

    def __init__(self, model: nn.Module, folder: Path, options: LoadOptions) -> None:
        self.resident = True
        self._quantize = options.quantize
        self._stored = Weights(folder, options.variant)
        self._weights = {name: _Weight(model, name) for name, _ in model.named_parameters() if read_by_text(name)}

    @property
    def nbytes(self) -> int:
        """Bytes of memory held now."""
        return sum(held_bytes(weight.parameter) for weight in self._weights.values())

    def release(self) -> None:
        """Let go of them."""
        for weight in self._weights.values():
            weight.set(torch.empty(0, dtype=weight.dtype, device=weight.device))
        self.resident = False

    def restore(self) -> None:
        """Have them in memory: the very same numbers, read again from the checkpoint."""
        if self.resident:
            return
        for name, tensor in self._stored.read(self._weights.__contains__):
            weight = self._weights[name]
            weight.set(tensor.to(weight.device, weight.dtype))
            if weight.quantized:
                quantize_layer(weight.owner, self._quantize)
        self.resident = True


class _Weight:
    """One weight of a model: which layer has it, under which name, and what it is."""

    def __init__(self, model: nn.Module, name: str) -> None:
        owner, _, self._attribute = name.rpartition(".")
        self.owner: Any = model.get_submodule(owner)
        self.dtype, self.device = self.parameter.dtype, self.parameter.device
        self.quantized = is_quantized(self.parameter)

    @property
    def parameter(self) -> nn.Parameter:
        parameter: nn.Parameter = getattr(self.owner, self._attribute)
        return parameter

    def set(self, tensor: Tensor) -> None:
        setattr(self.owner, self._attribute, nn.Parameter(tensor, requires_grad=False))
