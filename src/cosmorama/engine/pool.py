"""Several models behind one server, each in a worker of its own: loaded when asked for, unloaded when idle.

A `ModelPool` is used as a `Supervisor` is: that one is the pool of a server with a single model.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cosmorama.engine.outcome import Outcome
from cosmorama.engine.scheduler import Priority
from cosmorama.engine.supervisor import Supervisor
from cosmorama.engine.workers import PreviewCallback, named
from cosmorama.errors import ModelNotFoundError, NotReadyError
from cosmorama.progress import ProgressCallback
from cosmorama.request import Capabilities, GenerationRequest
from cosmorama.settings import Settings
from cosmorama.world.registry import stored_bytes

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
SETTLE_S = 2.0
"""For how long a model is left to those who asked for it, before another one may take its place."""
FIRST_LOAD_WAIT_S = 30.0
"""For how long a request waits for a model that nobody has asked for yet, before it is told to come again."""


@dataclass(slots=True, eq=False)
class _Member:
    """One model. `bytes` is what it takes in memory, as far as that is known."""

    name: str
    source: str
    bytes: int
    supervisor: Supervisor | None = None
    capabilities: Capabilities | None = None
    running: int = 0
    used_at: float = 0.0
    loaded: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def ready(self) -> bool:
        """Whether it can generate now."""
        return self.supervisor is not None and self.supervisor.ready

    @property
    def spare(self) -> bool:
        """Whether it may be unloaded: not while it loads or works, nor when it was only just loaded for work."""
        if self.supervisor is None or self.running:
            return False
        if not self.supervisor.ready:
            return self.supervisor.restarts > 0  # it cannot be loaded, or dies
        return time.monotonic() - self.used_at > SETTLE_S


class ModelPool:
    """The models of `settings.models`. All methods are for one event loop.

    Attributes:
        on_ready: Called when a worker has loaded its model.
    """

    def __init__(self, settings: Settings) -> None:
        self.on_ready: Callable[[], None] = lambda: None
        self._settings = settings
        self._members = {
            name: _Member(name, source, stored_bytes(source, settings.variant, settings.cache_path))
            for name, source in settings.models.items()
        }
        self._default = next(iter(self._members.values()))
        self._wanted: set[str] = set()
        self._woken = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._past_restarts = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The models by name, the default one first."""
        return tuple(self._members)

    @property
    def ready(self) -> bool:
        """Whether generations are accepted: the default model is loaded, or was and is only put away."""
        member = self._default
        return member.ready if member.supervisor is not None else member.capabilities is not None

    @property
    def reason(self) -> str:
        """In words, why not."""
        return "the model is loading" if self._default.supervisor is None else self._default.supervisor.reason

    @property
    def capabilities(self) -> Capabilities | None:
        """What the default model takes, once it was loaded."""
        return self._default.capabilities

    @property
    def active(self) -> int:
        """Generations being worked on, by all of them."""
        return sum(supervisor.active for supervisor in self._supervisors)

    @property
    def restarts(self) -> int:
        """How often a worker had to be started again."""
        return self._past_restarts + sum(supervisor.restarts for supervisor in self._supervisors)

    @property
    def worker_pid(self) -> int | None:
        """Process id of the default model's worker, if there is one now."""
        return None if self._default.supervisor is None else self._default.supervisor.worker_pid

    @property
    def _supervisors(self) -> list[Supervisor]:
        return [member.supervisor for member in self._members.values() if member.supervisor is not None]

    def find(self, model: str | None) -> str:
        """The name of the model that a request means; None: the default one.

        Raises:
            ModelNotFoundError: there is none; lists those that there are.
        """
        if model is None:
            return self._default.name
        known = {member.source: member.name for member in self._members.values()}
        known |= {member.name: member.name for member in self._members.values()}
        if (found := named(model, known, self._settings.model_aliases)) is not None:
            return found
        raise ModelNotFoundError(f"there is no model {model!r} here; there are: {', '.join(self._members)}")

    async def capabilities_of(self, name: str) -> Capabilities:
        """What a model takes. One that was never loaded is loaded for the answer.

        Raises:
            NotReadyError: it is not loaded within half a minute; or cannot be, and why.
        """
        member = self._members[name]
        if member.capabilities is None:
            self.takes(name)
            with suppress(TimeoutError):
                async with asyncio.timeout(FIRST_LOAD_WAIT_S):
                    await member.loaded.wait()
        if member.capabilities is None:
            reason = "it waits for memory" if member.supervisor is None else member.supervisor.reason
            raise NotReadyError(f"the model {name} is not loaded: {reason}")
        return member.capabilities

    def takes(self, name: str) -> bool:
        """Whether the model can be given a generation now; if not, it will be loaded as soon as there is room."""
        member = self._members[name]
        if member.ready:
            return True
        if member.supervisor is None:
            self._wanted.add(name)
            self._woken.set()
        return False

    async def start(self) -> None:
        """Begin to load the default model."""
        self._keeper = asyncio.create_task(self._keep())
        self.takes(self._default.name)

    async def stop(self) -> None:
        """Stop every worker."""
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
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
        """Generate a clip with the model that the request names; see `Supervisor.generate`.

        Raises:
            NotReadyError: that model is not loaded now.
            CosmoramaError: as there.
        """
        member = self._members[self.find(request.model)]
        if member.supervisor is None:
            raise NotReadyError(f"the model {member.name} is not loaded now")
        member.running += 1
        try:
            return await member.supervisor.generate(
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
            member.running -= 1
            member.used_at = time.monotonic()

    async def released(self, name: str) -> None:
        """Return once no worker has the generation any more."""
        await asyncio.gather(*(supervisor.released(name) for supervisor in self._supervisors))

    def watch(self, name: str, watched: bool) -> None:
        """Begin or end making previews of a generation."""
        for supervisor in self._supervisors:
            supervisor.watch(name, watched)

    async def _keep(self) -> None:
        """Load what is wanted as room comes, and unload what nobody uses."""
        while True:
            self._woken.clear()
            try:
                for name in list(self._wanted):
                    if await self._make_room(self._members[name]):
                        self._wanted.discard(name)
                        await self._load(self._members[name])
                await self._unload_idle()
            except Exception:
                log.exception("the models cannot be looked after")
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._woken.wait()

    async def _load(self, member: _Member) -> None:
        log.info("loading the model %s", member.name)
        supervisor = Supervisor(self._settings.model_copy(update={"model": member.source, "name": None}))
        supervisor.on_ready = lambda: self._on_ready(member, supervisor)
        member.supervisor, member.used_at = supervisor, time.monotonic()
        await supervisor.start()

    def _on_ready(self, member: _Member, supervisor: Supervisor) -> None:
        member.capabilities = supervisor.capabilities
        member.bytes = max(member.bytes, _resident_bytes(supervisor.worker_pid))
        member.used_at = time.monotonic()
        member.loaded.set()
        self.on_ready()

    async def _make_room(self, member: _Member) -> bool:
        """Unload what is in the way, the least recently used first; False if that is all in use."""
        budget = self._settings.model_memory
        while budget is not None:
            others = [other for other in self._members.values() if other.supervisor is not None]
            if not others or sum(other.bytes for other in others) + member.bytes <= budget:
                break
            idle = [other for other in others if other.spare]
            if not idle:
                return False
            await self._unload(min(idle, key=lambda other: other.used_at))
        return True

    async def _unload_idle(self) -> None:
        limit_s = self._settings.model_idle_s
        for member in self._members.values():
            idle = member.ready and not member.running
            if limit_s is not None and idle and time.monotonic() - member.used_at > limit_s:
                await self._unload(member)

    async def _unload(self, member: _Member) -> None:
        supervisor = member.supervisor
        if supervisor is None:
            return
        log.info("unloading the model %s", member.name)
        # Nothing can be given to it from here on, whatever happens while it ends.
        member.supervisor = None
        self._past_restarts += supervisor.restarts
        await supervisor.stop()


def _resident_bytes(pid: int | None) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):  # ended meanwhile, or not Linux
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
