"""What a replica tells of a generation, without a cluster: to whom watches it all, else little, and nothing when its
server is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cosmorama.engine.outcome import Outcome
from cosmorama.engine.worker import Advanced, Finished, Previewed
from cosmorama.progress import Progress
from cosmorama.request import GenerationRequest
from cosmorama.settings import Settings

pytest.importorskip("ray", reason="Ray is not installed (pip install '.[ray]')")

from ray.exceptions import RayActorError

from cosmorama.engine import replica as module
from cosmorama.engine.replica import Replica, Wishes, fingerprint, of_a_replica


class Quick:
    """A supervisor whose worker takes no time: 35 steps, previews while somebody watches, then it decodes."""

    ready = True

    def __init__(self) -> None:
        self.watched = False
        self.goes_on = asyncio.Event()

    def watch(self, name: str, watched: bool) -> None:
        self.watched = watched
        self.goes_on.set()

    async def released(self, name: str) -> None: ...

    async def generate(
        self,
        request: GenerationRequest,
        *,
        output: Path,
        on_progress: Callable[[Progress], None],
        on_preview: Callable[[bytes], None],
        **_: Any,
    ) -> Outcome:
        await self.goes_on.wait()
        for step in range(35):
            on_progress(Progress("denoise", step, 35))
            if self.watched and step % 5 == 0:
                on_preview(b"jpeg")
        on_progress(Progress("decode", 0, 1))
        output.write_bytes(b"clip")
        return Outcome(output, seed=1, prompt="p", width=64, height=64, frames=1, fps=24, timings={})


class Remote:
    """A method as Ray's actors have it."""

    def __init__(self, method: Callable[..., Awaitable[Any]]) -> None:
        self.remote = lambda *arguments: asyncio.ensure_future(method(*arguments))  # type: ignore[arg-type]


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch) -> Replica:
    context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="r"))
    monkeypatch.setattr(module.serve, "get_replica_context", lambda: context)
    found = Replica.__new__(Replica)
    found._supervisor, found._watched = Quick(), set()  # type: ignore[assignment]
    return found


async def told(replica: Replica, wishes: Wishes, *, waits: bool) -> list[Any]:
    if not waits:
        replica._supervisor.goes_on.set()  # type: ignore[attr-defined]
    actor = SimpleNamespace(other=Remote(wishes.other))
    request = GenerationRequest(prompt="a red ball")
    return [event async for event in replica.generate(request, "n", "normal", 0, "", actor)]


def test_what_nobody_watches_is_told_with_each_stage(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TELL_EVERY_S", 3600.0)

    async def run() -> list[Any]:
        return await told(replica, Wishes(), waits=False)

    events = asyncio.run(run())
    assert [event.progress.stage for event in events if isinstance(event, Advanced)] == ["denoise", "decode"]
    assert not any(isinstance(event, Previewed) for event in events)
    assert b"clip" in events
    assert isinstance(events[-1], Finished)


def test_what_somebody_watches_is_told_at_every_step(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TELL_EVERY_S", 3600.0)

    async def run() -> list[Any]:
        wishes = Wishes()
        await wishes.watch("n", True)
        return await told(replica, wishes, waits=True)

    events = asyncio.run(run())
    assert sum(isinstance(event, Advanced) for event in events) == 36
    assert sum(isinstance(event, Previewed) for event in events) == 7


def test_a_wish_that_ends_is_heard_too() -> None:
    async def run() -> None:
        wishes = Wishes()
        asking = asyncio.create_task(wishes.other("n", False))
        await asyncio.sleep(0)
        await wishes.watch("other", True)
        assert not asking.done()
        await wishes.watch("n", True)
        assert await asking
        await wishes.watch("n", False)
        assert not await wishes.other("n", True)

    asyncio.run(run())


def test_a_generation_ends_with_the_server_that_wanted_it(replica: Replica) -> None:
    class Gone(Wishes):
        async def other(self, name: str, watched: bool) -> bool:
            raise RayActorError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(told(replica, Gone(), waits=True))


def test_servers_that_differ_in_what_is_theirs_want_the_same_replicas() -> None:
    def wanted(**settings: Any) -> str:
        return fingerprint(of_a_replica(Settings(model="microcosm", **settings)))

    same = wanted()
    assert wanted(port=8001, lease_s=3, replicas=4, database_url="sqlite:///x", api_keys=("me:secret",)) == same
    assert wanted(max_active=3) != same
    assert wanted(captioning_api_key="one") != wanted(captioning_api_key="two")
