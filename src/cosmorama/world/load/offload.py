"""Offloading: parts of a model wait in the CPU's memory and come to the GPU layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from cosmorama.errors import ModelNotFoundError
from cosmorama.world.load.options import Offload

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
