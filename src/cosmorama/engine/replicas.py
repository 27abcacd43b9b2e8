"""Several workers with the same model behind one queue (replicas, data parallel): on a host with N GPUs one on each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from cosmorama.engine.outcome import Outcome
from cosmorama.engine.scheduler import Priority
from cosmorama.engine.supervisor import Supervisor
from cosmorama.engine.workers import PreviewCallback
from cosmorama.errors import NotReadyError
from cosmorama.progress import ProgressCallback
from cosmorama.request import Capabilities, GenerationRequest
from cosmorama.settings import Settings


class Replicas:
    """`settings.replicas` workers. All methods are for one event loop.

    A generation goes to the worker that is ready and has the fewest. A worker that dies loses its own only.

    Attributes:
        on_ready: Called whenever a worker has loaded the model.
    """

    def __init__(self, settings: Settings) -> None:
        self.on_ready: Callable[[], None] = lambda: None
        each = settings.parallel_processes if settings.parallel != "none" else 1
        kind, _, first = settings.device.partition(":")
        self._supervisors = [
            Supervisor(settings.model_copy(update={"replicas": 1, "device": _device(kind, int(first or 0) + n * each)}))
            for n in range(settings.replicas)
        ]
        for supervisor in self._supervisors:
            supervisor.on_ready = self._ready
        self._holders: dict[str, Supervisor] = {}

    @property
    def ready(self) -> bool:
        """Whether a generation can be accepted: by one of them at least."""
        return any(supervisor.ready for supervisor in self._supervisors)

    @property
    def reason(self) -> str:
        """In words, why not."""
        return self._supervisors[0].reason

    @property
    def capabilities(self) -> Capabilities | None:
        """What the model takes, once one of them has loaded it."""
        return next((s.capabilities for s in self._supervisors if s.capabilities is not None), None)

    @property
    def active(self) -> int:
        """Generations being worked on, by all of them."""
        return sum(supervisor.active for supervisor in self._supervisors)

    @property
    def restarts(self) -> int:
        """How often a worker had to be started again."""
        return sum(supervisor.restarts for supervisor in self._supervisors)

    @property
    def worker_pid(self) -> int | None:
        """Process id of the first worker, if there is one now."""
        return self._supervisors[0].worker_pid

    @property
    def worker_pids(self) -> tuple[int | None, ...]:
        """Process ids of all of them."""
        return tuple(supervisor.worker_pid for supervisor in self._supervisors)

    @property
    def names(self) -> tuple[str, ...]:
        """The one model by its name."""
        return self._first.names

    @property
    def _first(self) -> Supervisor:
        return next((s for s in self._supervisors if s.capabilities is not None), self._supervisors[0])

    def find(self, model: str | None) -> str:
        """The name of the model that a request means; see `Supervisor.find`."""
        return self._first.find(model)

    async def capabilities_of(self, name: str) -> Capabilities:
        """What the model takes.

        Raises:
            NotReadyError: it is not loaded now.
        """
        return await (self._free() or self._supervisors[0]).capabilities_of(name)

    def takes(self, name: str) -> bool:
        """Whether the model can be given a generation now."""
        return self.ready

    async def start(self) -> None:
        """Start all of them; returns before the model is loaded."""
        for supervisor in self._supervisors:
            await supervisor.start()

    async def stop(self) -> None:
        """Stop all of them."""
        await asyncio.gather(*(supervisor.stop() for supervisor in self._supervisors))

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
        """Generate a clip with the worker that has the least to do; see `Supervisor.generate`.

        Raises:
            NotReadyError: none is ready.
            CosmoramaError: as there.
        """
        supervisor = self._free()
        if supervisor is None:
            raise NotReadyError(self.reason)
        if name is not None:
            self._holders[name] = supervisor
        try:
            return await supervisor.generate(
                request,
                output=output,
                name=name,
                priority=priority,
                age_s=age_s,
                owner=owner,
                on_progress=on_progress,
                on_preview=on_preview,
            )
        finally:
            if name is not None:
                self._holders.pop(name, None)

    async def released(self, name: str) -> None:
        """Return once no worker has the generation any more."""
        for supervisor in self._supervisors:
            await supervisor.released(name)

    def watch(self, name: str, watched: bool) -> None:
        """Begin or end making previews of a generation."""
        if (supervisor := self._holders.get(name)) is not None:
            supervisor.watch(name, watched)

    def _free(self) -> Supervisor | None:
        return min((s for s in self._supervisors if s.ready), key=lambda s: s.held, default=None)

    def _ready(self) -> None:
        self.on_ready()


def _device(kind: str, number: int) -> str:
    return kind if kind == "cpu" else f"{kind}:{number}"
