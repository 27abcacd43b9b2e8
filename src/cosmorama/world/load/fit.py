"""What a checkpoint needs of memory (RAM, VRAM) and what there is.

Weights are counted from the headers of the files, exactly. What a clip needs beside them is only estimated: it depends
on kernels and on what the allocator keeps.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import torch

from cosmorama.errors import NotEnoughMemoryError
from cosmorama.world.load.files import has_weights, is_cosmos, parts_of, read_index
from cosmorama.world.load.names import is_quantized_matrix, quantized_bytes, read_by_text
from cosmorama.world.load.offload import waits
from cosmorama.world.load.options import LoadOptions, Offload, Quantize
from cosmorama.world.load.weights import Weights, known_unused

log = logging.getLogger(__name__)

_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_USED = (Path("/sys/fs/cgroup/memory.current"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"))
_ALIVE_PER_TOKEN = 14
"""Vectors of the denoiser's width that are alive at once in a block, per token: the stream, what is normalized,
queries, keys, values, what is attended, and four times the width within the feed-forward layer, twice."""


def check_weights_fit(folder: Path, options: LoadOptions) -> None:
    """Refuse to load what cannot fit, before it is read, and log what it will need.

    Raises:
        NotEnoughMemoryError: says what is needed, what there is, and what to change.
    """
    dtype, device, offload, quantize = options.dtype, torch.device(options.device), options.offload, options.quantize
    parts, variant = parts_of(folder), options.variant
    if dtype is None and not is_cosmos(read_index(folder)):
        dtype = torch.float32  # what other pipelines are loaded in
    stored = {part: Weights(part, variant) for part in parts if has_weights(part, variant)}
    away = sum(bytes_of(weights, dtype, _waiting(part, weights, offload), quantize) for part, weights in stored.items())
    needed = {device: sum(bytes_of(weights, dtype, quantize=quantize) for weights in stored.values()) - away}
    if away:
        cpu = torch.device("cpu")
        needed[cpu] = needed.get(cpu, 0) + away
    activations = activation_bytes(folder, dtype)
    for place, size in needed.items():
        free = available_bytes(place)
        more = f", and about {_gb(activations)} for a clip of the default size" if place == device else ""
        log.info("%s: weights take %s%s; %s are free on %s", folder.name, _gb(size), more, _gb(free), place)
        if size > free:
            advice = "a dtype of half the size (COSMORAMA_DTYPE=bfloat16)"
            if quantize == "none" and any(bytes_of(part, quantize="int8") < bytes_of(part) for part in stored.values()):
                advice += " or COSMORAMA_QUANTIZE=int8"
            if place.type != "cpu":
                advice += " or COSMORAMA_OFFLOAD=model, then layer,"
            raise NotEnoughMemoryError(
                f"the weights of {folder.name} take {_gb(size)} and {_gb(free)} are free on {place}: {advice} may help"
            )


def bytes_of(
    weights: Weights,
    dtype: torch.dtype | None = None,
    wanted: Callable[[str], bool] = lambda name: True,
    quantize: Quantize = "none",
) -> int:
    """Bytes of the weights of a part, as they will be in memory; of those with wanted names."""
    network = str(weights.config.get("_class_name") or weights.config.get("architectures"))
    if "Qwen2_5_VL" in network and is_cosmos(read_index(weights.folder.parent)):
        network = "Qwen2_5_VLTextModel"  # the half that is read there
    kind, quantized = dtype or weights.dtype, network if quantize != "none" else ""
    return sum(
        quantized_bytes(shape)
        if is_quantized_matrix(quantized, name, shape := weights.shape(name))
        else weights.nbytes(name, kind)
        for name in weights
        if wanted(name) and not known_unused(network, name)
    )


def activation_bytes(folder: Path, dtype: torch.dtype | None = None) -> int:
    """A rough estimate of what the denoiser has alive beside its weights.

    Of 93 frames of 1280x704 at the compression of the Wan 2.1 autoencoder and 2x2 patches, the usual clip of the Cosmos
    models; a dtype of None is taken for two bytes.
    """
    try:
        config = json.loads((folder / "transformer" / "config.json").read_text())
    except (OSError, ValueError):
        return 0
    width = config.get("hidden_size") or config.get("num_attention_heads", 0) * config.get("attention_head_dim", 0)
    return int(24 * 44 * 80 * width * _ALIVE_PER_TOKEN * (2 if dtype is None else dtype.itemsize))


def available_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated: of the GPU, or of this machine and the container that limits it."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    free = int(psutil.virtual_memory().available)
    for limit, used in zip(_LIMITS, _USED, strict=True):
        try:
            free = min(free, max(0, int(limit.read_text()) - int(used.read_text())))
        except (OSError, ValueError):  # no such limit, or "max"
            continue
    return free


def _waiting(part: Path, weights: Weights, offload: Offload) -> Callable[[str], bool]:
    """Which weights of a part of a checkpoint wait in the CPU's memory, by their names."""
    if waits(part.name, offload):
        return lambda name: True
    if offload == "model" and part.name == "transformer" and "Cosmos3" in str(weights.config.get("_class_name")):
        return read_by_text
    return lambda name: False


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
