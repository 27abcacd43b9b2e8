"""The models of a server and the workers that have them: one model or several, each in one worker or more.

Of several models each is loaded when asked for and unloaded when idle. Of one model there may be replicas: on a host
with N GPUs one on each, behind the same queue.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cosmorama.engine.supervisor import Supervisor, Worker
from cosmorama.errors import ModelNotFoundError, NotReadyError
from cosmorama.request import Capabilities
from cosmorama.settings import Settings
from cosmorama.world.registry import stored_bytes

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
SETTLE_S = 2.0
"""For how long a model is left to those who asked for it, before another one may take its place."""
_LONGEST_NAME = 200
"""Characters of an unknown model's name that an error repeats."""
FIRST_LOAD_WAIT_S = 30.0
"""For how long a request waits for a model that nobody has asked for yet, before it is told to come again."""


@dataclass(slots=True, eq=False)
class ServedModel:
    """One model of a pool.

    Attributes:
        bytes: What it takes in memory, as far as that is known.
        workers: Those that have it or load it; none while it is put away.
        last: What it took when it was loaded last.
    """

    name: str
    source: str
    bytes: int = 0
    workers: list[Worker] = field(default_factory=list)
    last: Capabilities | None = None
    running: int = 0
    used_at: float = 0.0
    loaded: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def capabilities(self) -> Capabilities | None:
        """What it takes, once it was loaded."""
        return next((w.capabilities for w in self.workers if w.capabilities is not None), self.last)

    @property
    def ready(self) -> bool:
        """Whether one of its workers can generate now."""
        return any(worker.ready for worker in self.workers)

    @property
    def spare(self) -> bool:
        """Whether it may be unloaded: not while it loads or works, nor when it was only just loaded for work."""
        if not self.workers or self.running:
            return False
        if not self.ready:
            return any(worker.restarts > 0 for worker in self.workers)  # it cannot be loaded, or dies
        return time.monotonic() - self.used_at > SETTLE_S


class ModelPool:
    """The models of `settings.models`, or `settings.replicas` workers with `settings.model`.

    All methods are for one event loop.

    Attributes:
        on_ready: Called when a worker has loaded its model.
    """

    def __init__(self, settings: Settings, worker: Callable[[Settings], Worker] = Supervisor) -> None:
        self.on_ready: Callable[[], None] = lambda: None
        self._settings, self._make = settings, worker
        self._models = {name: ServedModel(name, source) for name, source in self._sources().items()}
        if settings.model_memory is not None:
            for member in self._models.values():
                member.bytes = stored_bytes(member.source, settings.variant, settings.cache_path)
        if self._default is not None:
            self._default.workers = self._workers_of(self._default)
        self._wanted: set[str] = set()
        self._woken = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._past_restarts = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The models by name, the default one first."""
        return tuple(self._models)

    @property
    def workers(self) -> tuple[Worker, ...]:
        """Those that there are now, of all models."""
        return tuple(worker for member in self._models.values() for worker in member.workers)

    @property
    def places(self) -> int:
        """Generations that are worked on at a time, by all workers together."""
        return self._settings.places

    @property
    def ready(self) -> bool:
        """Whether generations are accepted: the default model is loaded, or was and is only put away."""
        member = self._default
        return member is not None and (member.ready if member.workers else member.last is not None)

    @property
    def reason(self) -> str:
        """In words, why not."""
        workers = [] if self._default is None else self._default.workers
        return workers[0].reason if workers else "the model is loading"

    @property
    def active(self) -> int:
        """Generations being worked on."""
        return sum(worker.active for worker in self.workers)

    @property
    def restarts(self) -> int:
        """How often a worker had to be started again."""
        return self._past_restarts + sum(worker.restarts for worker in self.workers)

    @property
    def worker_pid(self) -> int | None:
        """Process id of the default model's first worker, if there is one now."""
        return self._default.workers[0].worker_pid if self._default is not None and self._default.workers else None

    def find(self, model: str | None) -> str:
        """The name of the model that a request means; None: the default one.

        Raises:
            ModelNotFoundError: there is none; lists those that there are.
            NotReadyError: that is not known yet.
        """
        if self._default is None:
            raise NotReadyError(self.reason)
        if model is None:
            return self._default.name
        known = {member.source: member.name for member in self._models.values()}
        known |= {member.name: member.name for member in self._models.values()}
        if (found := named(model, known, self._settings.model_aliases)) is not None:
            return found
        if self._names_itself and self._default.capabilities is None:
            raise NotReadyError(self.reason)
        are = "there is" if len(known) == 1 else "there are"
        raise ModelNotFoundError(f"there is no model {model[:_LONGEST_NAME]!r} here; {are}: {', '.join(self._models)}")

    async def capabilities_of(self, name: str) -> Capabilities:
        """What a model takes, also while it is put away or a worker that died is replaced.

        One that was never loaded is loaded for the answer.

        Raises:
            NotReadyError: it is not loaded within half a minute; or cannot be, and why.
        """
        member = self._models[name]
        if member is not self._default and member.capabilities is None:
            self.takes(name)
            with suppress(TimeoutError):
                async with asyncio.timeout(FIRST_LOAD_WAIT_S):
                    await member.loaded.wait()
        if member.capabilities is None:
            if member is self._default:
                raise NotReadyError(self.reason)
            reason = member.workers[0].reason if member.workers else "it waits for memory"
            raise NotReadyError(f"the model {name} is not loaded: {reason}")
        return member.capabilities

    def loaded(self) -> dict[str, Capabilities]:
        """What the models take that were loaded once in this life of the server, by source."""
        known = {m.source: w.capabilities for m in self._models.values() for w in m.workers}
        return {source: capabilities for source, capabilities in known.items() if capabilities is not None}

    def remember(self, known: Mapping[str, Capabilities]) -> None:
        """Take in what models took in an earlier life of the server, by source: jobs are accepted by it meanwhile."""
        for member in list(self._models.values()):
            if member.capabilities is None and member.source in known:
                self._learn(member, known[member.source])

    def takes(self, name: str) -> bool:
        """Whether the model can be given a generation now; if not, it will be loaded as soon as there is room."""
        member = self._models[name]
        if member.ready:
            return True
        if not member.workers:
            self._wanted.add(name)
            self._woken.set()
        return False

    async def start(self) -> None:
        """Begin to load the default model; returns before that is done."""
        if self._default is not None:
            await self._begin(self._default)
        if self._settings.models:
            self._keeper = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """Stop every worker."""
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
        await asyncio.gather(*(worker.stop() for worker in self.workers))

    @contextmanager
    def worker(self, model: str | None) -> Iterator[Worker]:
        """Whoever is to make a clip with a model, which stays loaded meanwhile: the ready one with the least to do.

        Raises:
            NotReadyError: that model is not loaded now.
        """
        member = self._models[self.find(model)]
        worker = min((w for w in member.workers if w.ready), key=lambda w: w.held, default=None)
        if worker is None:
            raise NotReadyError(f"the model {member.name} is not loaded now")
        member.running += 1
        try:
            yield worker
        finally:
            member.running -= 1
            member.used_at = time.monotonic()

    async def released(self, name: str) -> None:
        """Return once no worker has the generation any more: it was finished, given up on request, or its worker died.

        Only then may anybody else touch the files that it writes.
        """
        await asyncio.gather(*(worker.released(name) for worker in self.workers))

    def watch(self, name: str, watched: bool) -> None:
        """Begin or end making previews of a generation."""
        for worker in self.workers:
            worker.watch(name, watched)

    @property
    def _default(self) -> ServedModel | None:
        return next(iter(self._models.values()), None)

    @property
    def _names_itself(self) -> bool:
        """Whether a model's own name, known when it is loaded, is what clients call it."""
        return not self._settings.models and self._settings.name is None

    def _sources(self) -> Mapping[str, str]:
        """The models by name, and where each is from."""
        settings = self._settings
        return settings.models or {settings.name or settings.model: settings.model}

    def _workers_of(self, member: ServedModel) -> list[Worker]:
        """One worker for each replica, with the GPUs after those of the one before."""
        settings = self._settings.model_copy(update={"model": member.source, "models": {}, "name": member.name})
        if (replicas := self._settings.replicas) == 1 or settings.role == "fleet":
            return [self._make(settings)]
        each = settings.parallel_processes if settings.parallel != "none" else 1
        kind, _, first = settings.device.partition(":")
        devices = ["cpu" if kind == "cpu" else f"{kind}:{int(first or 0) + n * each}" for n in range(replicas)]
        return [self._make(settings.model_copy(update={"device": device, "replicas": 1})) for device in devices]

    async def _keep(self) -> None:
        """Load what is wanted as room comes, and unload what nobody uses."""
        while True:
            self._woken.clear()
            try:
                for name in list(self._wanted):
                    if await self._make_room(self._models[name]):
                        self._wanted.discard(name)
                        self._models[name].workers = self._workers_of(self._models[name])
                        await self._begin(self._models[name])
                await self._unload_idle()
            except Exception:
                log.exception("the models cannot be looked after")
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._woken.wait()

    async def _begin(self, member: ServedModel) -> None:
        log.info("loading the model %s", member.name)
        member.used_at = time.monotonic()
        for worker in member.workers:
            worker.on_ready = partial(self._on_ready, member, worker)
            await worker.start()

    def _on_ready(self, member: ServedModel, worker: Worker) -> None:
        if worker.capabilities is not None:
            self._learn(member, worker.capabilities)
        if self._settings.model_memory is not None:
            member.bytes = max(member.bytes, _resident_bytes(worker.worker_pid))
        member.used_at = time.monotonic()
        member.loaded.set()
        self.on_ready()

    def _learn(self, member: ServedModel, capabilities: Capabilities) -> None:
        member.last = capabilities
        if self._names_itself:
            self._models = {capabilities.model: member}
            member.name = capabilities.model

    async def _make_room(self, member: ServedModel) -> bool:
        """Unload what is in the way, the least recently used first; False if that is all in use."""
        budget = self._settings.model_memory
        while budget is not None:
            others = [other for other in self._models.values() if other.workers]
            if not others or sum(other.bytes for other in others) + member.bytes <= budget:
                break
            idle = [other for other in others if other.spare]
            if not idle:
                return False
            await self._unload(min(idle, key=lambda other: other.used_at))
        return True

    async def _unload_idle(self) -> None:
        limit_s = self._settings.model_idle_s
        for member in self._models.values():
            idle = member.ready and not member.running
            if limit_s is not None and idle and time.monotonic() - member.used_at > limit_s:
                await self._unload(member)

    async def _unload(self, member: ServedModel) -> None:
        log.info("unloading the model %s", member.name)
        # Nothing can be given to them from here on, whatever happens while they end.
        workers, member.workers = member.workers, []
        self._past_restarts += sum(worker.restarts for worker in workers)
        await asyncio.gather(*(worker.stop() for worker in workers))


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


def _resident_bytes(pid: int | None) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):  # ended meanwhile, or not Linux
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
