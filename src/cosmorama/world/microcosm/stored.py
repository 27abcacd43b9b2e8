"""Networks that lie in a folder as diffusers lays them out: `config.json`, what they are built with, and safetensors.

diffusers' own base classes do the same and much more: importing them takes three times as long as all that Microcosm
needs, and every worker and command line waits for it.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from safetensors.torch import load_file, save_file
from torch import nn

FILE = "diffusion_pytorch_model.safetensors"


class Config(dict[str, Any]):
    """What a network was built with; as a mapping, and by attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Stored(nn.Module):
    """A network that knows what it was built with.

    Attributes:
        config: The arguments of its constructor.
    """

    config: Config

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        build, signature = cls.__init__, inspect.signature(cls.__init__)

        @functools.wraps(build)
        def recorded(self: Any, *values: Any, **named: Any) -> None:
            given = signature.bind(self, *values, **named)
            given.apply_defaults()
            build(self, *values, **named)
            self.config = Config(list(given.arguments.items())[1:])

        cls.__init__ = recorded  # type: ignore[method-assign]

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> Self:
        """A new network, from the values of a `config.json`; those that are none of its arguments do not count."""
        known = inspect.signature(cls.__init__).parameters
        return cls(**{name: value for name, value in values.items() if name in known})

    @classmethod
    def from_pretrained(cls, folder: Path) -> Self:
        """The network in a folder."""
        net = cls.from_config(json.loads((folder / "config.json").read_text()))
        net.load_state_dict(load_file(folder / FILE))
        return net.eval()

    def save_pretrained(self, folder: Path, tensors: Mapping[str, Any] | None = None) -> None:
        """Write the network, or `tensors` in the place of its own, into a folder that may be new."""
        folder.mkdir(parents=True, exist_ok=True)
        values = {"_class_name": type(self).__name__, **self.config}
        (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")
        tensors = self.state_dict() if tensors is None else tensors
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / FILE, {"format": "pt"})
        (folder / FILE).chmod(0o644)
