"""Which world models there are, and how a name or a folder becomes one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cosmorama.errors import ModelNotFoundError

if TYPE_CHECKING:
    from cosmorama.world.base import World


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model that comes with the package."""

    name: str
    folder: Path
    description: str


MICROCOSM = KnownModel(
    "microcosm",
    Path(__file__).parent / "microcosm" / "weights",
    "miniature world model of simulated physics scenes, trained from scratch; runs on two CPU cores",
)


def known_models() -> tuple[KnownModel, ...]:
    """The models that can be loaded by name."""
    return (MICROCOSM,)


def load_world(name_or_path: str) -> World:
    """Load a world model by its name, or from the folder of a checkpoint laid out like Microcosm's.

    Raises:
        ModelNotFoundError: neither a known name nor a checkpoint folder; names what is missing.
    """
    folder = next((model.folder for model in known_models() if model.name == name_or_path), Path(name_or_path))
    if not folder.is_dir():
        names = ", ".join(model.name for model in known_models())
        raise ModelNotFoundError(f"there is no model {name_or_path!r}: give a checkpoint folder or one of: {names}")
    missing = [part for part in _MICROCOSM_LAYOUT if not (folder / part).exists()]
    if missing:
        raise ModelNotFoundError(f"{folder} is not a complete checkpoint: missing {', '.join(missing)}")
    from cosmorama.world.microcosm.loader import load_microcosm

    return load_microcosm(folder)


_MICROCOSM_LAYOUT = ("world.json", "transformer/config.json", "vae/config.json", "text_encoder/config.json")
