"""What takes seconds and is no job: one client's does not hold up another's, and nobody's goes on for who has left."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from cosmorama.api import clips, infer
from cosmorama.errors import ContentGoneError
from cosmorama.grid import sheet
from cosmorama.media import stills
from tests.api.fake_app import Fake, run, serving

BODY: dict[str, Any] = {"dialect": "cosmorama", "prompt": "a red ball", "steps": 1, "frames": 9}
KEYS = ("alice:a", "bob:b")
PICTURE = "data:image/png;base64,iVBORw0KGgo="


class Slow:
    """Stands for what is called in a thread: it takes until it is let go."""

    def __init__(self) -> None:
        self.calls, self.let_go, self.fast = 0, threading.Event(), False
        self.stopped: list[str] = []

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.calls += 1
        if not self.fast:
            self.let_go.wait(60)
        return b"picture"

    def prepare(self, name: str, *arguments: Any) -> Any:
        return self()

    def stop(self, name: str) -> None:
        self.stopped.append(name)

    def close(self) -> None:
        self.let_go.set()


def as_key(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def clip_of(server: Fake, key: str) -> str:
    job = (await server.client.post("/v1/jobs", json=BODY, headers=as_key(key))).json()["id"]
    await server.jobs.wait(job)
    return str(job)


@pytest.mark.parametrize("what", ["thumbnail", "spritesheet", "sheet", "text", "caption"])
def test_who_has_left_is_not_waited_for_and_one_key_has_a_share(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow()
    for still in clips.STILLS:
        monkeypatch.setattr(stills, still, slow)
    monkeypatch.setattr(sheet, "write_sheet", lambda plan, output, **_: output.write_bytes(slow()))
    monkeypatch.setattr(infer, "Children", lambda *_, **__: slow)
    # Told apart from an error only: what a text becomes is not looked at here.
    monkeypatch.setattr(infer.Writers, "_pass", lambda *_: asyncio.sleep(0))

    async def test() -> None:
        async with serving(tmp_path, api_keys=KEYS) as server:
            mine = {key: await clip_of(server, key) for key in ("a", "b")}

            async def ask(key: str) -> httpx.Response:
                match what:
                    case "sheet":
                        body = {"rows": [[mine[key]]]}
                        return await server.client.post("/v1/sheets", json=body, headers=as_key(key))
                    case "text":
                        return await server.client.post("/v1/upsample", json={"prompt": "a"}, headers=as_key(key))
                    case "caption":
                        return await server.client.post("/v1/caption", json={"image": PICTURE}, headers=as_key(key))
                url = f"/v1/jobs/{mine[key]}/content?variant={what}"
                return await server.client.get(url, headers=as_key(key))

            alice = [asyncio.create_task(ask("a")) for _ in range(20)]
            while sum(task.done() for task in alice) < 12:  # eight of a key are waited for
                await asyncio.sleep(0.02)
            assert {task.result().status_code for task in alice if task.done()} == {429}
            assert 1 <= slow.calls <= 2
            for task in alice:
                task.cancel()
            await asyncio.gather(*alice, return_exceptions=True)
            asking = asyncio.create_task(ask("b"))
            while what in ("text", "caption") and len(slow.stopped) < slow.calls:
                await asyncio.sleep(0.02)
            slow.fast = True
            slow.let_go.set()
            bob = await asking
            assert bob.status_code == (200 if what in ("thumbnail", "spritesheet", "sheet") else 500)
            # Of the twenty at most what was under way before it was noticed that nobody waits any more.
            assert slow.calls <= 8

    run(test)


def test_texts_do_not_wait_for_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow()
    monkeypatch.setattr(infer, "Children", lambda *_, **__: slow)
    monkeypatch.setattr(infer.Writers, "_pass", lambda *_: asyncio.sleep(0))

    async def test() -> None:
        async with serving(tmp_path) as server:
            post = server.client.post
            captions = [asyncio.create_task(post("/v1/caption", json={"image": PICTURE})) for _ in range(4)]
            while slow.calls < 2:
                await asyncio.sleep(0.02)
            slow.fast = True
            assert (await post("/v1/upsample", json={"prompt": "a"})).status_code == 500
            assert slow.calls == 3
            slow.let_go.set()
            await asyncio.gather(*captions)

    run(test)


def test_a_server_without_a_model_says_that_its_guardrail_is_elsewhere(tmp_path: Path) -> None:
    from cosmorama.api.infer import ElsewhereError, Writers
    from cosmorama.request import Capabilities, GenerationRequest
    from cosmorama.settings import Settings

    class Pool:
        def find(self, model: str | None) -> str:
            return "m"

        async def capabilities_of(self, name: str) -> Capabilities:
            return Capabilities(model=name)

    class Services:
        supervisor = Pool()

    settings = Settings(role="api", text_guardrail=True, state_dir=tmp_path)
    with pytest.raises(ElsewhereError, match="ask one that has"):
        asyncio.run(Writers(settings).prepared(GenerationRequest(prompt="a"), Services(), ""))  # type: ignore[arg-type]


@pytest.mark.parametrize("route", ["remix", "extend"])
def test_what_is_kept_is_held_by_few_requests_at_a_time(
    route: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once, let_go = [0, 0], asyncio.Event()

    async def held(*arguments: Any, **named: Any) -> None:
        at_once[0] += 1
        at_once[1] = max(at_once)
        await let_go.wait()
        at_once[0] -= 1
        raise ContentGoneError("that is enough")

    async def test() -> None:
        async with serving(tmp_path, api_keys=KEYS) as server:
            asked = {"json": {"prompt": "a ball"}, "headers": as_key("a")}
            video = (await server.client.post("/v1/videos", **asked)).json()["id"]
            await server.jobs.wait(video)
            monkeypatch.setattr(server.jobs, "restored", held)
            monkeypatch.setattr(server.jobs, "checkout", held)
            asking = [
                asyncio.create_task(server.client.post(f"/v1/videos/{video}/{route}", **asked)) for _ in range(20)
            ]
            while sum(task.done() for task in asking) < 12:
                await asyncio.sleep(0.02)
            assert {task.result().status_code for task in asking if task.done()} == {429}
            let_go.set()
            answers = [answer.status_code for answer in await asyncio.gather(*asking)]
            assert (sorted(set(answers)), at_once) == ([410, 429], [0, 2])

    run(test)
