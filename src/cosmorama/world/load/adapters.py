"""LoRA adapters: small additions to a denoiser's weights, loaded at the start and chosen by each request.

The layers that adapters add are diffusers' and peft's. Requests with different adapters are interleaved step by step on
one set of weights, so which of them act is set anew before each unit of work; where none is asked for, the layers are
bypassed and the numbers are the plain model's, bit for bit.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from diffusers.hooks.group_offloading import _is_group_offload_enabled
from torch import Tensor, nn

from cosmorama.errors import ModelNotFoundError
from cosmorama.request import Adapter, AdapterPreset, Capabilities
from cosmorama.world.base import Inputs, ReadText, Sampling, TextEmbedding, World
from cosmorama.world.load.read import first_line, read_header, read_json
from cosmorama.world.load.spellings import Addition, Convert, file_of, read_adapter


class AdaptedWorld(World):
    """A world model with adapters on it."""

    def __init__(self, world: World, adapters: Mapping[str, Path]) -> None:
        """Load adapters onto a model.

        Args:
            world: The model; its denoiser is changed.
            adapters: Safetensors files, or folders that hold one, by the names that requests use.

        Raises:
            ModelNotFoundError: the model takes no adapters, or one of these does not fit it.
        """
        self.world, self.device = world, world.device
        model = _denoiser(world)
        if _is_group_offload_enabled(model):
            raise ModelNotFoundError("adapters cannot be loaded with this offload: their layers would not be offloaded")
        shapes = {
            layer: (module.out_features, module.in_features)
            for layer, module in model.named_modules()
            if isinstance(module, nn.Linear)
        }
        # What requests call them may be anything; torch has rules for the names of its modules.
        self._inner = {name: f"adapter_{number}" for number, name in enumerate(adapters)}
        touched = {
            name: _load(world, model, name, self._inner[name], read_adapter(name, path, shapes, _converter(world)))
            for name, path in adapters.items()
        }
        self._layers = _layers(model)
        self._selected: tuple[Adapter, ...] | None = None
        # With the names of the adapters.
        presets = {name: _preset(name, path, world.capabilities) for name, path in adapters.items()}
        self.capabilities = replace(
            world.capabilities,
            adapters=tuple(adapters),
            adapter_layers=touched,
            adapter_presets={name: preset for name, preset in presets.items() if preset is not None},
        )
        self.select(())

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        return self.world.networks

    def select(self, adapters: tuple[Adapter, ...]) -> None:
        """Let these adapters act from now on, each at its scale, and no others."""
        if adapters == self._selected:
            return
        scales: dict[str, float] = {}
        for adapter in adapters:
            inner = self._inner[adapter.name]
            scales[inner] = scales.get(inner, 0.0) + adapter.scale
        acting = {name: scale for name, scale in scales.items() if scale != 0}
        for layer in self._layers:
            layer.enable_adapters(bool(acting))
            if acting:
                layer.set_adapter(list(acting), inference_mode=True)
            for name, scale in acting.items():
                layer.set_scale(name, scale)
        self._selected = adapters

    def encode_text(self, prompt: str) -> TextEmbedding:
        return self.world.encode_text(prompt)

    def begin(self, inputs: Inputs, read: ReadText) -> Sampling:
        """Read the conditions of a request.

        Some models read text with the weights that adapters act on: with adapters, what others read is not used.
        """
        return self.world.begin(inputs, self.world.encode_text if inputs.request.adapters else read)


def check_adapters(adapters: Mapping[str, Path]) -> None:
    """Find what is wrong with adapters whatever the model, so that none is loaded for them.

    Raises:
        ModelNotFoundError: one is none or is damaged, or the package that their layers are built with is missing.
    """
    if adapters and find_spec("peft") is None:
        raise ModelNotFoundError("adapters need peft: pip install '.[cosmos]'")
    for name, path in adapters.items():
        read_header(file_of(name, path))


def _preset(name: str, path: Path, capabilities: Capabilities) -> AdapterPreset | None:
    """What lies beside an adapter: `preset.json` in its folder, or `NAME.preset.json` beside `NAME.safetensors`.

    Raises:
        ModelNotFoundError: it asks for what is not known, or what the model does not take.
    """
    file = path / "preset.json" if path.is_dir() else path.with_suffix(".preset.json")
    if not file.is_file():
        return None
    values = read_json(file)
    accepted: dict[str, Any] = {
        "steps": capabilities.steps,
        "guidance_scale": capabilities.guidance_scale,
        "flow_shift": capabilities.flow_shift or (),
        "solver": capabilities.solvers,
    }
    for field, value in values.items():
        numeric = isinstance(value, int if field == "steps" else int | float) and not isinstance(value, bool)
        if field not in accepted or not (numeric or field == "solver") or value not in accepted[field]:
            told = f"it has {', '.join(accepted)}"
            if field in accepted:
                told = f"{capabilities.model} takes {accepted[field] or 'none'}"
            raise ModelNotFoundError(f"{file}, the preset of the adapter {name}: {field} is {value!r}; {told}")
    return AdapterPreset(**values)


def _denoiser(world: Any) -> Any:
    """The network of a model that adapters go to."""
    holders = (world, getattr(world, "pipeline", None))
    model = next((found for holder in holders if (found := getattr(holder, "transformer", None)) is not None), None)
    if getattr(holders[1], "transformer_2", None) is not None:
        raise ModelNotFoundError(
            f"{world.capabilities.model} takes no adapters: it has two denoisers, and an adapter is for one of them"
        )
    if not hasattr(model, "load_lora_adapter"):
        raise ModelNotFoundError(f"{world.capabilities.model} takes no adapters: diffusers cannot load any onto it")
    return model


def _converter(world: Any) -> Convert | None:
    """What a pipeline of diffusers does to adapters as others train them for its model."""
    read = getattr(type(getattr(world, "pipeline", None)), "lora_state_dict", None)
    if read is None:
        return None

    def convert(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        found = read(weights)
        return dict(found[0] if isinstance(found, tuple) else found)

    return convert


def _load(world: World, model: Any, name: str, inner: str, additions: Mapping[str, Addition]) -> int:
    """Put an adapter on a network.

    Returns:
        How many layers it acts on.
    """
    weights: dict[str, Tensor] = {}
    for layer, addition in additions.items():
        weights[f"{layer}.lora_A.weight"], weights[f"{layer}.lora_B.weight"] = addition.down, addition.up
        if addition.magnitude is not None:
            weights[f"{layer}.lora_magnitude_vector.weight"] = addition.magnitude
    try:
        with warnings.catch_warnings():
            # On int8 weights peft says what merging would need, and of a second adapter that there is a first one.
            warnings.simplefilter("ignore", UserWarning)
            model.load_lora_adapter(weights, prefix=None, adapter_name=inner)
    except Exception as error:  # whatever diffusers and peft have against it
        raise ModelNotFoundError(
            f"the adapter {name} cannot be put on {world.capabilities.model}: {first_line(error)}"
        ) from error
    for layer, addition in additions.items():
        module = model.get_submodule(layer)
        placed = getattr(module, "lora_B", {})
        if inner not in placed or not torch.equal(
            placed[inner].weight.cpu(), addition.up.to(placed[inner].weight.dtype)
        ):
            raise ModelNotFoundError(f"the adapter {name} did not reach {layer} of {world.capabilities.model}")
    model.eval().requires_grad_(False)
    return len(additions)


def _layers(model: nn.Module) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
