"""Cosmorama: an open, self-hosted inference server for world foundation models.

    >>> import cosmorama
    >>> clip = cosmorama.load("microcosm").generate(prompt="a red ball rolls to the right", seed=1)
    >>> clip.save("ball.mp4")

Importing the package is cheap: torch is imported when the first model is loaded.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from cosmorama.errors import CosmoramaError, InvalidRequestError, MediaError, ModelNotFoundError, Problem
from cosmorama.request import Capabilities, GenerationRequest, Output
from cosmorama.world.load.options import DType, Offload, Quantize
from cosmorama.world.load.runtime import torch_environment

if TYPE_CHECKING:
    from cosmorama.client import AsyncClient, Client
    from cosmorama.local import Model

__version__ = "0.1.0"
__all__ = [
    "AsyncClient",
    "Capabilities",
    "Client",
    "CosmoramaError",
    "GenerationRequest",
    "InvalidRequestError",
    "MediaError",
    "ModelNotFoundError",
    "Output",
    "__version__",
    "load",
]


# At import they warn of their own optional parts, which says nothing to who wants a clip.
_TALKATIVE = ("torchao", "torch.utils._pytree", "diffusers.quantizers")


def load(
    model: str = "microcosm",
    *,
    dtype: str | None = None,
    device: str | None = None,
    offload: Offload = "none",
    quantize: Quantize = "none",
    variant: str | None = None,
    controls: tuple[str, ...] = (),
    adapters: Mapping[str, str | Path] | None = None,
    threads: int | None = None,
) -> Model:
    """Load a world model into this process.

    Args:
        model: A name that `cosmorama models` lists, the folder of a checkpoint, or owner/name on the model hub.
        dtype: Of the weights, for example `bfloat16`; None: as they are stored. Microcosm's are float32.
        device: `cpu`, `cuda` or `cuda:1`; None: a GPU where there is one. Microcosm runs on the CPU.
        offload: What waits in the CPU's memory while it does not run: nothing, the text encoder (`model`), or every
            layer of it and of the denoiser (`layer`).
        quantize: What the matrices of the denoiser's blocks are held as instead of the dtype.
        variant: Which copy of the weights where there are several, for example `fp16`.
        controls: Which kinds of control are loaded with the model, where they are parts of their own.
        adapters: LoRA adapters by the name that requests choose them by: files of safetensors.
        threads: CPU threads of torch, for the whole process; None: as they are, in a container no more than its quota.

    Raises:
        ModelNotFoundError: no such model, or it cannot be loaded so.
        InvalidRequestError: a value that is not accepted.
        NotEnoughMemoryError: its weights do not fit.
    """
    accepted: dict[str, tuple[str | None, tuple[str | None, ...]]] = {
        "dtype": (dtype, (None, *get_args(DType))),
        "offload": (offload, get_args(Offload)),
        "quantize": (quantize, get_args(Quantize)),
    }
    problems = [
        Problem(name, value, " or ".join(choice for choice in choices if choice))
        for name, (value, choices) in accepted.items()
        if value not in choices
    ]
    if device is not None and not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        problems.append(Problem("device", device, "cpu, cuda or cuda:N"))
    problems += [
        Problem("adapters", str(file), "a file that exists")
        for file in (adapters or {}).values()
        if not Path(file).exists()
    ]
    if problems:
        raise InvalidRequestError(*problems)
    for library in _TALKATIVE:
        if (logger := logging.getLogger(library)).level == logging.NOTSET:
            logger.setLevel(logging.ERROR)
    from cosmorama.world.registry import find

    find(model)  # before anything large is imported
    os.environ.update(torch_environment(os.environ))
    from cosmorama.local import load_model

    return load_model(
        model,
        {name: Path(file) for name, file in (adapters or {}).items()},
        threads,
        dtype=dtype,
        device=device,
        offload=offload,
        quantize=quantize,
        variant=variant,
        controls=controls,
    )


def __getattr__(name: str) -> Any:
    # The clients bring httpx along, which a program that loads a model has no use for.
    if name in ("AsyncClient", "Client"):
        from cosmorama import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
