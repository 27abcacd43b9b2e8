"""A supervisor whose generations are files of a few bytes, made in steps that the test allows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cosmorama.engine.outcome import Outcome
from cosmorama.engine.pool import ModelPool
from cosmorama.engine.supervisor import PreviewCallback, Supervisor
from cosmorama.errors import WorkerDiedError
from cosmorama.progress import Progress, ProgressCallback
from cosmorama.request import Capabilities, ResolvedRequest
from cosmorama.settings import Settings

STEP_S = 0.01
REQUEST = ResolvedRequest(prompt="a red ball", seed=3, steps=3, frames=9)


def pool_of(supervisor: FakeSupervisor) -> ModelPool:
    """A pool whose one worker this is."""
    return ModelPool(supervisor.settings, lambda _: supervisor)


class FakeSupervisor(Supervisor):
    """Attributes: `started` and `cancelled` name generations; `seen` holds the requests as the worker gets them."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.settings = settings
        self.ready = True
        self.capabilities = Capabilities(model="fake")
        self.started: list[str] = []
        self.cancelled: list[str] = []
        self.seen: list[ResolvedRequest] = []
        self.watched: dict[str, bool] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.die: bool | None = None
        """Not None: the next generation's worker dies, and the generation is (not) suspect."""
        self.fail: Exception | None = None
        self.on_step: Callable[[], None] = lambda: None

    async def generate(self, request: ResolvedRequest, *, output: Path, **options: Any) -> Outcome:
        name: str = options["name"]
        on_progress: ProgressCallback = options["on_progress"]
        on_preview: PreviewCallback = options["on_preview"]
        self.started.append(name)
        self.seen.append(request)
        output.write_bytes(b"half")
        try:
            on_progress(Progress("prepare"))
            for step in range(request.steps + 1):
                on_progress(Progress("denoise", step, request.steps, remaining_s=(request.steps - step) * STEP_S))
                if self.watched.get(name):
                    on_preview(b"jpeg %d" % step)
                self.on_step()
                await asyncio.sleep(STEP_S)
                await self.gate.wait()
                if self.die is not None:
                    suspect, self.die = self.die, None
                    raise WorkerDiedError("the worker process died (killed by signal 9)", suspect=suspect)
                if self.fail is not None:
                    raise self.fail
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise
        output.write_bytes(b"a whole clip of " + (request.prompt or "").encode() + b" " * 100)
        assert request.seed is not None
        return Outcome(
            path=output,
            seed=request.seed,
            prompt=request.prompt or "",
            width=request.width,
            height=request.height,
            frames=request.frames,
            fps=request.fps,
            timings={"denoise": request.steps * STEP_S},
        )

    def watch(self, name: str, watched: bool) -> None:
        self.watched[name] = watched

    async def start(self) -> None:
        self.on_ready()

    async def stop(self) -> None:
        pass
