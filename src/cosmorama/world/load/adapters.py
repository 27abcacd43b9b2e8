"""LoRA adapters: small additions to a denoiser's weights, loaded at the start and chosen by each request.

The layers that adapters add are diffusers' and peft's. Requests with different adapters are interleaved step by step on
one set of weights, so which of them act is set anew before each unit of work; where none is asked for, the layers are
bypassed and the numbers are the plain model's, bit for bit.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffusers.hooks.group_offloading import _is_group_offload_enabled
from torch import nn

from cosmorama.errors import ModelNotFoundError
from cosmorama.request import Adapter, Capabilities
from cosmorama.world.base import Inputs, ReadText, Sampling, TextEmbedding, World


class AdaptedWorld:
    """A world model with adapters on it."""

    def __init__(self, world: World, adapters: Mapping[str, Path]) -> None:
        """Load adapters onto a model.

        Args:
            world: The model; its denoiser is changed.
            adapters: Safetensors files, or folders that hold one, by the names that requests use.

        Raises:
            ModelNotFoundError: the model takes no adapters, or one of these does not fit it.
        """
        self.world = world
        model = _denoiser(world)
        if _is_group_offload_enabled(model):
            raise ModelNotFoundError("adapters cannot be loaded with this offload: their layers would not be offloaded")
        for name, path in adapters.items():
            _load(world, model, name, path)
        self._layers = _layers(model)
        self._selected: tuple[Adapter, ...] | None = None
        self._capabilities = replace(world.capabilities, adapters=tuple(adapters))
        self.select(())

    @property
    def capabilities(self) -> Capabilities:
        """The model's, with the names of the adapters."""
        return self._capabilities

    def select(self, adapters: tuple[Adapter, ...]) -> None:
        """Let these adapters act from now on, each at its scale, and no others."""
        if adapters == self._selected:
            return
        scales: dict[str, float] = {}
        for adapter in adapters:
            scales[adapter.name] = scales.get(adapter.name, 0.0) + adapter.scale
        acting = {name: scale for name, scale in scales.items() if scale != 0}
        for layer in self._layers:
            layer.enable_adapters(bool(acting))
            if acting:
                layer.set_adapter(list(acting), inference_mode=True)
            for name, scale in acting.items():
                layer.set_scale(name, scale)
        self._selected = adapters

    def encode_text(self, prompt: str) -> TextEmbedding:
        """Read a prompt."""
        return self.world.encode_text(prompt)

    def begin(self, inputs: Inputs, read: ReadText) -> Sampling:
        """Read the conditions of a request.

        Some models read text with the weights that adapters act on: with adapters, what others read is not used.
        """
        return self.world.begin(inputs, self.world.encode_text if inputs.request.adapters else read)


def _denoiser(world: Any) -> Any:
    """The network of a model that adapters go to."""
    holders = (world, getattr(world, "parts", None), getattr(world, "pipeline", None))
    model = next((found for holder in holders if (found := getattr(holder, "transformer", None)) is not None), None)
    if not hasattr(model, "load_lora_adapter"):
        raise ModelNotFoundError(f"{world.capabilities.model} takes no adapters: diffusers cannot load any onto it")
    return model


def _load(world: Any, model: Any, name: str, path: Path) -> None:
    try:
        import peft  # noqa: F401 - diffusers builds the layers with it
    except ModuleNotFoundError as error:
        raise ModelNotFoundError("adapters need peft: pip install 'cosmorama[cosmos]'") from error
    file = _file(name, path)
    where: dict[str, Any] = {"weight_name": file.name, "use_safetensors": True, "local_files_only": True}
    before = len(_layers(model))
    try:
        with warnings.catch_warnings():
            # On int8 weights peft says what merging would need; nothing is merged here.
            warnings.filterwarnings("ignore", message="TorchaoLoraLinear was instantiated without")
            _load_layers(world, model, name, file, where)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ModelNotFoundError(f"the adapter {name} does not fit {world.capabilities.model}: {error}") from error
    if name not in getattr(model, "peft_config", {}) or (before == 0 and not _layers(model)):
        raise ModelNotFoundError(f"the adapter {name} has no weights for {world.capabilities.model}: {file}")
    model.eval().requires_grad_(False)


def _load_layers(world: Any, model: Any, name: str, file: Path, where: dict[str, Any]) -> None:
    if hasattr(getattr(world, "pipeline", None), "load_lora_weights"):
        # A pipeline knows the formats that adapters for its model are trained in.
        world.pipeline.load_lora_weights(str(file.parent), adapter_name=name, **where)
    else:
        prefix = "transformer" if _prefixed(file) else None
        model.load_lora_adapter(str(file.parent), prefix=prefix, adapter_name=name, **where)


def _file(name: str, path: Path) -> Path:
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if len(files) != 1 or files[0].suffix != ".safetensors":
        raise ModelNotFoundError(f"the adapter {name} must be one .safetensors file, or a folder with one: {path}")
    return files[0]


def _prefixed(file: Path) -> bool:
    from safetensors import safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            return any(key.startswith("transformer.") for key in opened.keys())  # noqa: SIM118 - not a mapping
    except Exception as error:  # safetensors' own error type is not exported everywhere
        raise ModelNotFoundError(f"{file} cannot be read: {error}") from error


def _layers(model: nn.Module) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
