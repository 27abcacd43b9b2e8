"""What the rest of a server needs of whoever makes its clips: one worker (`Supervisor`) or several (`ModelPool`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from cosmorama.engine.outcome import Outcome
from cosmorama.engine.scheduler import Priority
from cosmorama.progress import ProgressCallback
from cosmorama.request import Capabilities, GenerationRequest

PreviewCallback = Callable[[bytes], None]


def named(asked: str, known: Mapping[str, str], aliases: Mapping[str, str]) -> str | None:
    """The model that a client means: by a name, an alias, or the last part of an id as on the Hugging Face hub.

    Args:
        asked: What the client says.
        known: Names and sources of models, to their names.
        aliases: Other names to names; `*` stands for every name that is none.
    """
    for name in (asked, aliases.get(asked, asked)):
        if name in known:
            return known[name]
    parts = {_last_part(each): name for each, name in known.items()}
    if (found := parts.get(_last_part(asked))) is not None:
        return found
    return known.get(aliases.get("*", ""))


def _last_part(name: str) -> str:
    return name.partition("@")[0].rstrip("/").rpartition("/")[2].lower()


class Workers(Protocol):
    """The models of a server. All methods are for one event loop.

    Attributes:
        on_ready: Called when a worker has loaded its model.
    """

    on_ready: Callable[[], None]

    @property
    def names(self) -> tuple[str, ...]:
        """The models by name, the default one first."""
        ...

    @property
    def ready(self) -> bool:
        """Whether generations are accepted."""
        ...

    @property
    def reason(self) -> str:
        """In words, why not."""
        ...

    @property
    def capabilities(self) -> Capabilities | None:
        """What the default model takes, once it was loaded."""
        ...

    @property
    def active(self) -> int:
        """Generations being worked on."""
        ...

    @property
    def restarts(self) -> int:
        """How often a worker had to be started again."""
        ...

    @property
    def worker_pid(self) -> int | None:
        """Process id of the default model's worker, if there is one now."""
        ...

    def find(self, model: str | None) -> str:
        """The name of the model that a request means; None: the default one.

        Raises:
            ModelNotFoundError: there is none; lists those that there are.
        """
        ...

    async def capabilities_of(self, name: str) -> Capabilities:
        """What a model takes.

        Raises:
            NotReadyError: it is not loaded, and why.
        """
        ...

    def takes(self, name: str) -> bool:
        """Whether the model can be given a generation now; where it can be loaded for one, it will be."""
        ...

    async def start(self) -> None:
        """Begin to load; returns before that is done."""
        ...

    async def stop(self) -> None:
        """End every worker."""
        ...

    async def generate(
        self,
        request: GenerationRequest,
        *,
        output: Path,
        name: str | None = None,
        priority: Priority = "normal",
        age_s: float = 0.0,
        owner: str = "",
        on_progress: ProgressCallback | None = None,
        on_preview: PreviewCallback | None = None,
    ) -> Outcome:
        """Generate a clip, see `Supervisor.generate`."""
        ...

    async def released(self, name: str) -> None:
        """Return once no worker has the generation any more: it was finished, given up on request, or its worker died.

        Only then may anybody else touch the files that it writes.
        """
        ...

    def watch(self, name: str, watched: bool) -> None:
        """Begin or end making previews of a generation."""
        ...
