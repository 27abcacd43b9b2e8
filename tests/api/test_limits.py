"""What a client is told when a generation takes too long, or when there is a bug."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cosmorama.api import middleware
from cosmorama.api.infer import _finished
from cosmorama.errors import DeadlineExceededError
from cosmorama.progress import Progress
from cosmorama.settings import Settings
from tests.api.fake_app import clips, run, serving

BODY = {"prompt": "a red ball", "seed": 7, "steps": 2}


def test_generation_that_takes_too_long_is_cancelled(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path, request_timeout_s=0.5) as server:
            server.supervisor.gate.clear()
            answer = await server.client.post("/v1/infer", json=BODY)
            assert answer.status_code == 504
            assert answer.json()["error"]["type"] == "timeout_error"
            assert "0.5 s" in answer.json()["error"]["message"]
            [job] = (await server.jobs.list()).jobs
            assert job.state == "cancelled"
            assert server.supervisor.cancelled == [f"{job.id}.1"]

    run(test)
    assert clips(tmp_path) == []


def test_bug_in_a_generation_is_a_500_that_tells_nothing_of_the_inside(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as server:
            server.supervisor.fail = ZeroDivisionError("secret of the inside")
            answer = await server.client.post("/v1/infer", json=BODY)
            assert answer.status_code == 500
            assert answer.json()["error"].keys() == {"message", "type", "code"}
            assert answer.json()["error"]["type"] == "worker_failed"
            assert "secret" not in answer.text
            server.supervisor.fail = None
            assert (await server.client.post("/v1/infer", json=BODY)).status_code == 200

    run(test)
    assert clips(tmp_path) == []


def test_bug_in_the_server_is_a_500_that_tells_nothing_of_the_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("secret of the inside")

    async def test() -> None:
        async with serving(tmp_path) as server:
            monkeypatch.setattr("cosmorama.jobs.service.Jobs.submit", broken)
            answer = await server.client.post("/v1/infer", json=BODY)
            assert answer.status_code == 500
            assert answer.json()["error"].keys() == {"message", "type", "code"}
            assert "secret" not in answer.text

    run(test)


class Slow:
    """A job store with one job, which is over after so many looks at it."""

    def __init__(self, looks: int, *, moves: bool = True) -> None:
        self.looks, self.moves, self.asked = looks, moves, 0
        self.over = asyncio.Event()

    def job(self) -> Any:
        progress = Progress("denoise", self.asked if self.moves else 1, 100)
        return SimpleNamespace(id="job", eta_s=0.01, progress=progress)

    async def wait(self, job_id: str) -> Any:
        await self.over.wait()
        return "finished"

    async def get(self, job_id: str) -> Any:
        self.asked += 1
        if self.asked == self.looks:
            self.over.set()
        return self.job()


class Here:
    """A client that stays."""

    async def receive(self) -> Any:
        await asyncio.sleep(3600)


@pytest.mark.parametrize(
    ("limit", "moves", "over"), [("default", True, True), ("default", False, False), ("chosen", True, False)]
)
def test_the_default_limit_grows_with_what_a_job_is_expected_to_take_as_long_as_it_gets_further(
    monkeypatch: pytest.MonkeyPatch, limit: str, moves: bool, over: bool
) -> None:
    settings = Settings(request_timeout_s=0.01)
    if limit == "default":
        settings.model_fields_set.discard("request_timeout_s")

    async def test() -> None:
        jobs = Slow(looks=3, moves=moves)
        waited = _finished(Here(), jobs.job(), jobs, settings)  # type: ignore[arg-type]
        if over:
            assert await waited == "finished"
        else:
            with pytest.raises(DeadlineExceededError, match="not finished within"):
                await waited

    asyncio.run(test())


def test_a_large_body_is_read_no_faster_than_leaves_the_loop_to_small_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "LARGE_BYTES_PER_S", 1e6)
    piece, ended = b"x" * 100_000, list[int]()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        size = 0
        while (message := await receive())["more_body"]:
            size += len(message["body"])
        ended.append(size)

    async def ask(limited: middleware.LimitBodies, pieces: int) -> None:
        left = pieces

        async def receive() -> dict[str, Any]:
            nonlocal left
            left -= 1
            return {"type": "http.request", "body": piece if pieces > 1 else b"{}", "more_body": left >= 0}

        length = str(len(piece) * pieces if pieces > 1 else 2).encode()
        scope = {"type": "http", "method": "POST", "headers": [(b"content-length", length)], "client": ("a", 1)}
        await limited(scope, receive, lambda message: asyncio.sleep(0))

    async def test() -> None:
        limited = middleware.LimitBodies(app, 10**9, 10**8)
        large = [asyncio.create_task(ask(limited, 3)) for _ in range(2)]
        await asyncio.sleep(0)
        begun = asyncio.get_running_loop().time()
        await ask(limited, 1)
        await asyncio.gather(*large)
        assert ended == [2, 300_000, 300_000]
        assert asyncio.get_running_loop().time() - begun >= 0.5

    asyncio.run(test())


@pytest.mark.parametrize(("others", "turns"), [("2001:db8::{}", 2), ("10.0.0.1", 2), ("10.0.0.{}", 21)])
def test_large_bodies_are_read_in_turns_of_their_clients(
    monkeypatch: pytest.MonkeyPatch, others: str, turns: int
) -> None:
    """However many connections another client has, it gets no more than one that has a single one."""
    monkeypatch.setattr(middleware, "LARGE_BYTES_PER_S", 1e6)
    monkeypatch.setattr(middleware, "CATCH_UP_S", 0)
    read, pieces = list[str](), 20

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            read.append(scope["client"][0])

    async def ask(limited: middleware.LimitBodies, address: str) -> None:
        async def receive() -> dict[str, Any]:
            await asyncio.sleep(0)
            done = read.count("me") >= pieces
            return {"type": "http.request", "body": b"x" * 1000, "more_body": not done}

        scope = {"type": "http", "method": "POST", "headers": [(b"content-length", b"100000")], "client": (address, 1)}
        await limited(scope, receive, lambda message: asyncio.sleep(0))

    async def test() -> None:
        limited = middleware.LimitBodies(app, 10**9, 10**8)
        await asyncio.gather(*(ask(limited, others.format(n)) for n in range(20)), ask(limited, "me"))

    asyncio.run(test())
    others_before = len(read) - 1 - read[::-1].index("me") - pieces
    assert others_before == pytest.approx((turns - 1) * pieces, abs=2 * turns)


@pytest.mark.parametrize("waits", ["for its answer", "by itself", "too long", "for nothing"])
def test_requests_begin_in_turns_of_their_clients(waits: str) -> None:
    """However many come together: health waits for none, another client's for a few, and who only waits for nobody.

    What is answered at once leaves its place for the loop's next turn: otherwise all of it would be answered in one.
    """
    begun = list[str]()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        begun.append(scope["client"][0])
        if waits == "by itself":
            for release in scope.get("state", {}).get("release", ()):
                release()
        elif waits == "for its answer":
            await asyncio.sleep(middleware.TURN_S / 5)
            await send({"type": "http.response.start"})
        elif waits == "for nothing":
            await send({"type": "http.response.start"})
            return
        await never.wait()

    async def nothing(*_: Any) -> None:
        pass

    async def test() -> None:
        nonlocal never
        never = asyncio.Event()
        turns = middleware.TakeTurns(app)

        def ask(address: str, path: str = "/v1/jobs") -> asyncio.Task[None]:
            scope = {"type": "http", "path": path, "client": (address, 1)}
            return asyncio.create_task(turns(scope, nothing, nothing))

        asked = [ask("a") for _ in range(100)] + [ask("b"), ask("c", "/v1/health/live")]
        asked += [ask("d", "/health") for _ in range(100)]
        await asyncio.sleep(0)
        if waits != "by itself":
            assert sorted(begun) == [*"a" * middleware.PER_CLIENT, "b", "c", *"d" * middleware.PER_CLIENT]
        async with asyncio.timeout(10):
            while len(begun) < len(asked):
                await asyncio.sleep(0.01)
        never.set()
        await asyncio.gather(*asked)

    never: asyncio.Event
    asyncio.run(test())


def test_who_goes_away_while_it_waits_for_its_turn_leaves_none_behind() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0)

    async def test() -> None:
        turns = middleware.TakeTurns(app)
        scope = {"type": "http", "path": "/v1/jobs", "client": ("a", 1)}
        for _ in range(3):
            gone = [asyncio.create_task(turns(dict(scope), app, app)) for _ in range(3 * middleware.PER_CLIENT)]  # type: ignore[arg-type]
            await asyncio.sleep(0)
            for task in gone:
                task.cancel()
            await asyncio.gather(*gone, return_exceptions=True)
        async with asyncio.timeout(5):
            await asyncio.gather(*(turns(dict(scope), app, app) for _ in range(3 * middleware.AT_ONCE)))  # type: ignore[arg-type]

    asyncio.run(test())
