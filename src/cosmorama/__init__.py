"""Cosmorama: an open, self-hosted inference server for world foundation models.

    >>> import cosmorama
    >>> clip = cosmorama.load("microcosm").generate(prompt="a red ball rolls to the right", seed=1)
    >>> clip.save("ball.mp4")

Importing the package is cheap: torch is imported when the first model is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cosmorama.errors import CosmoramaError, InvalidRequestError, MediaError, ModelNotFoundError
from cosmorama.request import Capabilities, GenerationRequest, Output

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


def load(model: str = "microcosm") -> Model:
    """Load a world model into this process.

    Args:
        model: A name that `cosmorama models` lists, or the folder of a checkpoint.

    Raises:
        ModelNotFoundError: no such model.
    """
    from cosmorama.local import Model
    from cosmorama.world.registry import load_world

    return Model(load_world(model))


def __getattr__(name: str) -> Any:
    # The clients bring httpx along, which a program that loads a model has no use for.
    if name in ("AsyncClient", "Client"):
        from cosmorama import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
