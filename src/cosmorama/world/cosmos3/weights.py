"""The weights of a Cosmos3 transformer: only those that generating needs, and the understanding half on demand.

About half of the weights are read by text alone, once per prompt: they are what other models have as a text encoder.
`TextHalf` can let go of them in between. The head that predicts text tokens is never loaded: generating has no use for
it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.transformer_cosmos3 import Cosmos3OmniTransformer
from torch import Tensor, nn

from cosmorama.world.kernels.layers import is_quantized
from cosmorama.world.load.checkpoint import check_class, choose_kernels, told_of
from cosmorama.world.load.names import is_quantized_matrix, read_by_text
from cosmorama.world.load.offload import check_offload, offload_layers
from cosmorama.world.load.options import LoadOptions
from cosmorama.world.load.quantize import held_bytes, quantize_layer
from cosmorama.world.load.weights import Weights, assign, bounded


def load_transformer(folder: Path, options: LoadOptions) -> Cosmos3OmniTransformer:
    """Load a `Cosmos3OmniTransformer` from its folder, ready to evaluate.

    Raises:
        ModelNotFoundError: weights are missing, are to wait where they run, or cannot be held as the options say.
    """
    check_offload(options.device, options.offload)
    weights = Weights(folder, options.variant)
    check_class(weights, Cosmos3OmniTransformer)
    from accelerate import init_empty_weights

    with told_of(folder), bounded(weights), init_empty_weights():
        model: Any = Cosmos3OmniTransformer.from_config({**weights.config, "sound_gen": False})
    del model.lm_head

    def place_of(name: str) -> torch.device | str:
        later = options.quantize != "none" and is_quantized_matrix(type(model).__name__, name, weights.shape(name))
        return "cpu" if later else _place_of(name, options)

    assign(model, weights, dtype=options.dtype or weights.dtype, place=place_of)
    model.rotary_emb.to(_place_of("rotary_emb", options))
    model.eval().requires_grad_(False)
    choose_kernels(model, options, lambda name: _place_of(name, options))
    offload_halves(model, options)
    return model


def offload_halves(model: nn.Module, options: LoadOptions, *, disk: Path | None = None) -> None:
    """Let the weights that are to wait on the CPU come layer by layer; with `disk` they wait in that folder."""
    device = torch.device(options.device)
    if options.offload == "layer":
        offload_layers(model, device, disk=disk)
    elif options.offload == "model":
        owners = dict.fromkeys(name.rpartition(".")[0] for name, _ in model.named_parameters() if read_by_text(name))
        offload_layers(nn.ModuleList(model.get_submodule(name) for name in owners), device, disk=disk)


def _place_of(name: str, options: LoadOptions) -> torch.device | str:
    """Where a weight is when it does not run."""
    waits = options.offload == "layer" or (options.offload == "model" and read_by_text(name))
    return "cpu" if waits else options.device


class TextHalf:
    """The weights that only text runs through.

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
