"""What Ray runs for `cosmorama fleet`: replicas of a model, and the actor that they ask whether somebody watches."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from ray import serve
from ray.exceptions import RayError

from cosmorama import __version__, logs
from cosmorama.engine.scheduler import Priority
from cosmorama.engine.supervisor import Supervisor
from cosmorama.engine.worker import Advanced, Finished, Previewed
from cosmorama.errors import CosmoramaError
from cosmorama.progress import Progress
from cosmorama.request import Capabilities, GenerationRequest
from cosmorama.settings import Settings

log = logging.getLogger(__name__)

TELL_EVERY_S = 1.0
"""Of a generation that nobody watches: as often as the job store is told."""
CHUNK_BYTES = 1 << 20
"""A clip crosses in pieces of this size."""
_UNHEALTHY_AFTER = 3
"""A replica is placed anew when so many of its worker processes in a row died."""
_SERVERS = (
    *("host", "port", "otel", "api_keys", "allowed_hosts", "cors_origins", "drain_s", "role"),
    *("models", "model_aliases", "model_memory", "model_idle_s", "replicas", "min_replicas", "replica_idle_s"),
    *("max_queue", "request_timeout_s", "upstream_request_timeout_us", "state_dir", "database_url", "artifacts"),
    *("retention_s", "max_artifact_bytes", "lease_s", "max_jobs_per_key", "webhook_secret"),
)
"""Settings of the server, not of a replica: some are secret, and a replica's lie in Ray's control store. A server that
differs in these alone finds the replicas as it wants them."""


class Wishes:
    """Which generations of a server somebody watches: an actor beside it, which replicas ask, each for its own."""

    def __init__(self) -> None:
        self._watched: set[str] = set()
        self._asked: dict[str, asyncio.Event] = {}

    async def watch(self, name: str, watched: bool) -> None:
        """Begin or end watching a generation."""
        (self._watched.add if watched else self._watched.discard)(name)
        self._asked.pop(name, asyncio.Event()).set()

    async def other(self, name: str, watched: bool) -> bool:
        """Return once a generation is watched where it was not, or not any more."""
        while (name in self._watched) == watched:
            await self._asked.setdefault(name, asyncio.Event()).wait()
        return not watched


class Replica:
    """What Ray runs, one for each GPU or each GPUs that share a model: a supervisor behind streaming calls."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Serve awaits it
        """Load the model.

        Raises:
            RuntimeError: it cannot be loaded, and why.
        """
        logs.configure(settings, "replica")
        self._supervisor = Supervisor(settings)
        self._watched: set[str] = set()
        await self._supervisor.start()
        await self._ready(restarts=0)

    async def capabilities(self) -> Capabilities | None:
        """What the model takes."""
        return self._supervisor.capabilities

    async def check(self, text: str, called: str) -> CosmoramaError | None:
        """What the guardrails say of a text that no generation has; None: it passes."""
        await self._ready()
        try:
            await self._supervisor.check(text, called)
        except CosmoramaError as error:
            return error
        return None

    async def check_health(self) -> None:
        """Asked by Serve.

        Raises:
            RuntimeError: the worker process died again and again.
        """
        if not self._supervisor.ready and self._supervisor.failures >= _UNHEALTHY_AFTER:
            raise RuntimeError(self._supervisor.reason)

    async def generate(
        self, request: GenerationRequest, name: str, priority: Priority, age_s: float, owner: str, wishes: Any
    ) -> AsyncIterator[str | Advanced | Previewed | bytes | Finished]:
        """Make a clip: who makes it, how far it is, its bytes, how it ended. Whoever stops listening cancels it.

        How far it is comes at every unit of work while it is watched, else once a second and with each stage.
        """
        yield serve.get_replica_context().replica_id.unique_id
        await self._ready()
        news: asyncio.Queue[Advanced | Previewed | None] = asyncio.Queue()
        told, told_at = Progress("queued"), 0.0

        def advanced(progress: Progress) -> None:
            nonlocal told, told_at
            now = time.monotonic()
            if name in self._watched or progress.stage != told.stage or now >= told_at + TELL_EVERY_S:
                told, told_at = progress, now
                news.put_nowait(Advanced(name, progress))

        with tempfile.TemporaryDirectory(prefix="cosmorama-") as folder:
            making = asyncio.create_task(
                self._supervisor.generate(
                    request,
                    output=Path(folder) / "clip",
                    name=name,
                    priority=priority,
                    age_s=age_s,
                    owner=owner,
                    on_progress=advanced,
                    on_preview=lambda jpeg: news.put_nowait(Previewed(name, jpeg)),
                )
            )
            making.add_done_callback(lambda _: news.put_nowait(None))
            heeding = asyncio.create_task(self._heed(name, wishes, making))
            try:
                while (event := await news.get()) is not None:
                    yield event
                try:
                    outcome = making.result()
                except CosmoramaError as error:
                    yield Finished(name, error)
                else:
                    with outcome.path.open("rb") as clip:
                        while chunk := clip.read(CHUNK_BYTES):
                            yield chunk
                    yield Finished(name, outcome)
            finally:
                making.cancel()
                heeding.cancel()
                self._watched.discard(name)
                await self._supervisor.released(name)

    async def _heed(self, name: str, wishes: Any, making: asyncio.Future[Any]) -> None:
        """Watch a generation for as long as somebody wishes it, and end it when its server is gone."""
        watched = False
        try:
            while True:
                watched = await wishes.other.remote(name, watched)
                (self._watched.add if watched else self._watched.discard)(name)
                self._supervisor.watch(name, watched)
        except RayError as error:
            log.warning("the server that wanted a clip is gone: %s", error)
            making.cancel()

    async def _ready(self, restarts: int | None = None) -> None:
        """Wait until the model is loaded, where `restarts` is given for so many attempts only."""
        while not self._supervisor.ready:
            if restarts is not None and self._supervisor.restarts > restarts:
                await self._supervisor.stop()
                raise RuntimeError(self._supervisor.reason)
            await asyncio.sleep(0.05)


def of_a_replica(settings: Settings) -> Settings:
    """A server's settings without what is not a replica's. Which GPU is Ray's to say: a replica sees only its own."""
    defaults = {name: Settings.model_fields[name].get_default(call_default_factory=True) for name in _SERVERS}
    return settings.model_copy(update=defaults | {"device": settings.device.partition(":")[0]})


def fingerprint(settings: Settings) -> str:
    """The same for the same release and settings of a replica, secrets too."""
    said = {
        name: value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        for name, value in sorted(dict(settings).items())
        if name not in _SERVERS
    }
    return hashlib.sha256(json.dumps([__version__, said]).encode()).hexdigest()[:16]
