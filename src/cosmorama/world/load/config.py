"""What the config of a part asks for, looked at before anything is built by it. Needs no torch.

A config is a few words long, and one number in it may ask for any amount of memory and time. What the files hold says
how much there can be: a network has no more layers than tensors, and no side that none of its tensors has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import inf
from pathlib import Path
from typing import Any

from cosmorama.errors import ModelNotFoundError
from cosmorama.world.load.read import Stored, read_json

_COUNTED = re.compile(r"(layers|blocks|depths?)(_per_block)?(\[\d+\])*$")
"""Members that say how often something is there; each time it has a tensor."""
_MEASURED = re.compile(
    r"((^|[._])(num|n)_\w*(layers|blocks|heads|groups)|layers_per_block|(head|hidden|base|z)_dim|(hidden|intermediate|vocab)_size"
    r"|_channels|(^|\.)(layers|heads|width|depth))(\[\d+\])*$"
)
"""Members that are whole numbers where they are anything."""
_NO_SIZE = re.compile(r"(theta|_base|max_window_layers)(\[\d+\])*$")
"""Members that may be large and take nothing: what frequencies are powers of, a layer that may be past the last."""
_ABOVE_0 = re.compile(r"(^|\.)(rope_theta|base_fps|timestep_scale|rope_scale\[\d\])$")
"""Members that positions and timesteps are divided by, or their powers: with 0 every clip is noise."""
_MOST_LAYERS, _LONGEST_LIST, _WIDEST = 1000, 4096, 2**21
"""What every config may ask for, whatever its files hold: Mistral-Nemo has 1,024,000 positions."""
_ABOUT_WEIGHTS = ("quantization_config", "compression_config", "dtype", "torch_dtype")
"""Members of a part's config that speak of how its weights are stored, not of the module."""


def read_scheduler(folder: Path) -> dict[str, Any]:
    """The config of a checkpoint's scheduler, in the folder of that part.

    Raises:
        ModelNotFoundError: it is not there, cannot be read, or asks for any amount of memory or time.
    """
    file = folder / "scheduler_config.json"
    config = read_json(file)
    check_config(file, config, {})
    return config


def check_config(file: Path, config: Mapping[str, Any], stored: Mapping[str, Stored]) -> None:
    """Refuse what no network could be built by, or only with any amount of memory or time.

    Args:
        file: The config, for the message.
        config: What is in it.
        stored: The tensors of the part's files.

    Raises:
        ModelNotFoundError: names the file, the member, its value, and what the files hold.
    """
    widest = max((side for tensor in stored.values() for side in tensor.shape), default=0)
    for name, value in _members(config):
        counted = bool(_COUNTED.search(name))
        if _MEASURED.search(name) and (isinstance(value, str | dict | float) or (isinstance(value, int) and value < 0)):
            raise ModelNotFoundError(f"{file}: {name} is {value!r}; it must be a whole number, 0 or more")
        if _ABOVE_0.search(name) and isinstance(value, int | float) and not 0 < value < inf:
            raise ModelNotFoundError(f"{file}: {name} is {value!r}; it must be a number above 0")
        if isinstance(value, list) and len(value) > max(_LONGEST_LIST, len(stored)):
            raise ModelNotFoundError(f"{file}: {name} is a list of {len(value):,}; {_told(stored, widest)}")
        if isinstance(value, int) and not _NO_SIZE.search(name):
            most = max(_MOST_LAYERS, len(stored)) if counted else max(_WIDEST, widest)
            if abs(value) > most:
                raise ModelNotFoundError(f"{file}: {name} is {value:,}; {_told(stored, widest)}")
    _check_statistics(file, config)


def check_fit(part: Path, config: Mapping[str, Any], why: str, **needed: object) -> None:
    """Refuse a part that does not fit another: its first step would end in what torch says of shapes.

    Args:
        part: Its folder.
        config: What is in its config, with the defaults of its class.
        why: What the other part is like.
        needed: What members must be.

    Raises:
        ModelNotFoundError: names the file, the member, its value and what it must be.
    """
    for name, value in needed.items():
        found = list(config[name]) if isinstance(config[name], tuple) else config[name]
        if found != value:
            raise ModelNotFoundError(f"{part / 'config.json'}: {name} is {found!r}; it must be {value!r}, since {why}")


def beyond(config: Mapping[str, Any], stored: Mapping[str, Stored]) -> str:
    """The numbers of a config that nothing in the files is as large as, the largest first, and what the files hold."""
    widest = max((side for tensor in stored.values() for side in tensor.shape), default=0)
    found = {
        name: value
        for name, value in _members(config)
        if isinstance(value, int)
        and not _NO_SIZE.search(name)
        and value > (len(stored) if _COUNTED.search(name) else widest)
    }
    named = sorted(found.items(), key=lambda item: -item[1])[:3]
    said = "".join(f"{name} is {value:,}; " for name, value in named)
    return said + _told(stored, widest)


def without_quantization(config: dict[str, Any]) -> dict[str, Any]:
    """A part's config without what it says of how its weights are stored, which the libraries would act upon."""
    return {name: value for name, value in config.items() if name not in _ABOUT_WEIGHTS}


def _told(stored: Mapping[str, Stored], widest: int) -> str:
    return (
        f"its weights are {len(stored)} tensors with sides up to {widest:,}"
        if stored
        else f"at most {_WIDEST:,} is read"
    )


def _members(config: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Every member with its path: `text_config.hidden_size`, `layers_per_block[1]`."""
    for key, value in config.items():
        if key not in _ABOUT_WEIGHTS:
            yield from _inside(f"{before}{key}", value)


def _inside(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, bool):
        return
    if isinstance(value, dict) and value:
        yield from _members(value, f"{name}.")
        return
    yield name, value
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from _inside(f"{name}[{number}]", item)


def _check_statistics(file: Path, config: Mapping[str, Any]) -> None:
    """Refuse means and deviations of latents that would make every clip grey, noise or nothing at all."""
    lengths = {}
    for name in ("latents_mean", "latents_std"):
        values = config.get(name)
        if values is None:
            continue
        least = -inf if name == "latents_mean" else 0.0
        if not isinstance(values, list) or not all(isinstance(n, int | float) and least < n < inf for n in values):
            above = " above 0" if least == 0 else ""
            raise ModelNotFoundError(f"{file}: {name} must be a list of finite numbers{above}")
        lengths[name] = len(values)
    channels = config.get("z_dim") or config.get("latent_channels")
    for name, length in lengths.items():
        if length != lengths.get("latents_std") or (isinstance(channels, int) and length % channels):
            raise ModelNotFoundError(
                f"{file}: {name} has {length} numbers; it must have as many as the other statistics, "
                f"for each of {channels or 'the'} channels"
            )
