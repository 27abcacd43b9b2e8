"""A checkpoint folder in diffusers' layout: what must be in it, and how its parts become modules.

Weights are read from safetensors only: a pickle may run code when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from cosmorama.errors import ModelNotFoundError
from cosmorama.world.kernels.cpu_linear import use_onednn
from cosmorama.world.load.offload import place
from cosmorama.world.load.options import LoadOptions
from cosmorama.world.load.quantize import quantize_blocks

PIPELINE = "model_index.json"
_TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "vocab.json")


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a checkpoint.

    Raises:
        ModelNotFoundError: there is no such file, or it is something else.
    """
    try:
        values = json.loads(file.read_text())
    except FileNotFoundError:
        raise ModelNotFoundError(f"{file.parent} is not a complete checkpoint: missing {file.name}") from None
    except ValueError as error:
        raise ModelNotFoundError(f"{file} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ModelNotFoundError(f"{file} cannot be read: it holds no JSON object")
    return values


def check_parts(folder: Path, modules: tuple[str, ...], tokenizer: str, scheduler: str = "scheduler") -> None:
    """Look for every file that loading will need: configs, safetensors with all their shards, a tokenizer.

    Raises:
        ModelNotFoundError: naming everything that is missing.
    """
    missing = [file for part in modules for file in _missing_of_module(folder, part)]
    if not (folder / scheduler / "scheduler_config.json").is_file():
        missing.append(f"{scheduler}/scheduler_config.json")
    if not any((folder / tokenizer / name).is_file() for name in _TOKENIZER_FILES):
        missing.append(f"{tokenizer}/{_TOKENIZER_FILES[0]}")
    if missing:
        raise ModelNotFoundError(f"{folder} is not a complete checkpoint: missing {', '.join(missing)}")


def _missing_of_module(folder: Path, part: str) -> Iterator[str]:
    if not (folder / part / "config.json").is_file():
        yield f"{part}/config.json"
    indexes = sorted((folder / part).glob("*.safetensors.index.json"))
    shards = {shard for index in indexes for shard in read_json(index).get("weight_map", {}).values()}
    yield from (f"{part}/{shard}" for shard in sorted(shards) if not (folder / part / shard).is_file())
    if not shards and not any((folder / part).glob("*.safetensors")):
        pickled = sorted(file.name for pattern in ("*.bin", "*.pt") for file in (folder / part).glob(pattern))
        yield f"{part}/*.safetensors" + (f" (there is {pickled[0]}, but pickles are not read)" if pickled else "")


def load_module(kind: Any, folder: Path, options: LoadOptions) -> Any:
    """One part of a checkpoint, ready to evaluate.

    Args:
        kind: A model class of diffusers or transformers.
        folder: Of this part.
        options: Where it goes.

    Raises:
        ModelNotFoundError: its weights do not fit its config, or cannot be held as the options say.
    """
    dtype = options.dtype or _stored_dtype(folder)
    try:
        module, found = kind.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True, dtype=dtype
        )
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise ModelNotFoundError(f"{folder} cannot be loaded: {error}") from error
    absent = sorted(str(key) for key in _absent(found))
    if absent:
        raise ModelNotFoundError(f"{folder} is not a complete checkpoint: no weights for {', '.join(absent[:3])}")
    module.eval().requires_grad_(False)
    if options.quantize != "none":
        quantize_blocks(module, lambda name: options.device if options.offload == "none" else "cpu")
    if options.savings.onednn_products and str(options.device) == "cpu":
        use_onednn(module)
    return place(module, options.device, options.offload)


def _absent(found: Mapping[str, Any]) -> list[Any]:
    return [*found.get("missing_keys", ()), *found.get("mismatched_keys", ())]


def _stored_dtype(folder: Path) -> torch.dtype:
    """The floating-point type of the largest tensor in a part's first file."""
    from safetensors import safe_open

    with safe_open(sorted(folder.glob("*.safetensors"))[0], framework="pt") as opened:
        largest = max(opened.keys(), key=lambda name: _count(opened.get_slice(name).get_shape()))
        stored: torch.dtype = opened.get_tensor(largest).dtype
    return stored


def _count(shape: list[int]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count
