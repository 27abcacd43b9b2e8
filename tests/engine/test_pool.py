"""Which models are loaded when."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cosmorama.engine import pool as pools
from cosmorama.engine.outcome import Outcome
from cosmorama.engine.pool import ModelPool
from cosmorama.engine.supervisor import Supervisor
from cosmorama.errors import ModelNotFoundError, NotReadyError
from cosmorama.request import Capabilities, ResolvedRequest
from cosmorama.settings import Settings

WEIGHTS_BYTES = 1000
"""Of every model here."""


class Stub(Supervisor):
    """Loaded at once; a generation lasts until `gate` is set."""

    loaded: ClassVar[list[str]] = []
    gate: ClassVar[asyncio.Event]

    async def start(self) -> None:
        name = Path(self._settings.model).name
        self.ready, self.capabilities = True, Capabilities(model=name)
        Stub.loaded.append(name)
        self.on_ready()

    async def stop(self) -> None:
        self.ready = False
        Stub.loaded.remove(Path(self._settings.model).name)

    async def generate(self, request: ResolvedRequest, *, output: Path, **options: Any) -> Outcome:
        await Stub.gate.wait()
        return Outcome(output, 1, "", 1, 1, 1, 1, {})


def with_pool(
    folder: Path, monkeypatch: pytest.MonkeyPatch, test: Callable[[ModelPool], Awaitable[None]], **settings: Any
) -> None:
    monkeypatch.setattr(pools, "SETTLE_S", 0.0)
    monkeypatch.setattr(pools, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(pools, "FIRST_LOAD_WAIT_S", 5.0)
    for name in ("a", "b", "c"):
        (folder / name).mkdir()
    monkeypatch.setattr(pools, "stored_bytes", lambda *_: WEIGHTS_BYTES)

    async def main() -> None:
        Stub.loaded, Stub.gate = [], asyncio.Event()
        pool = ModelPool(Settings(models={name: str(folder / name) for name in ("a", "b", "c")}, **settings), Stub)
        await pool.start()
        try:
            await pool.capabilities_of("a")
            await asyncio.wait_for(test(pool), 20)
        finally:
            Stub.gate.set()
            await pool.stop()
        assert Stub.loaded == []

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def generate(pool: ModelPool, model: str) -> asyncio.Task[Outcome]:
    async def made() -> Outcome:
        with pool.worker(model) as worker:
            return await worker.generate(ResolvedRequest(prompt="a"), output=Path("none"))

    return asyncio.create_task(made())


def test_the_least_recently_used_idle_model_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(pool: ModelPool) -> None:
        assert (await pool.capabilities_of("b")).model == "b"
        assert Stub.loaded == ["a", "b"]
        working = generate(pool, "a")
        await asyncio.sleep(0.01)
        assert (await pool.capabilities_of("c")).model == "c"
        assert Stub.loaded == ["a", "c"]  # a was used longer ago, but works
        assert (await pool.capabilities_of("b")).model == "b"  # known, and not loaded to be told
        assert Stub.loaded == ["a", "c"]
        with pytest.raises(NotReadyError, match="b"):
            await generate(pool, "b")
        Stub.gate.set()
        await working
        assert pool.ready

    with_pool(tmp_path, monkeypatch, test, model_memory=2 * WEIGHTS_BYTES)


def test_a_model_waits_while_all_others_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(pool: ModelPool) -> None:
        working = generate(pool, "a")
        await asyncio.sleep(0.01)
        assert not pool.takes("b")
        await asyncio.sleep(0.1)
        assert Stub.loaded == ["a"]
        Stub.gate.set()
        await working
        await until(lambda: pool.takes("b"))
        assert Stub.loaded == ["b"]
        assert pool.ready  # the default model is put away, and comes back when it is asked for
        await until(lambda: pool.takes("a"))

    with_pool(tmp_path, monkeypatch, test, model_memory=WEIGHTS_BYTES)


def test_an_idle_model_is_unloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(pool: ModelPool) -> None:
        await until(lambda: Stub.loaded == [])
        assert pool.ready
        await until(lambda: pool.takes("b"))
        assert Stub.loaded == ["b"]

    with_pool(tmp_path, monkeypatch, test, model_idle_s=0.2)


def test_an_unknown_model_is_told_which_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(pool: ModelPool) -> None:
        assert pool.find(None) == pool.find(str(tmp_path / "a")) == "a"
        with pytest.raises(ModelNotFoundError, match="a, b, c"):
            pool.find("d")

    with_pool(tmp_path, monkeypatch, test)
