"""`/v1/jobs` over HTTP, on a supervisor that makes clips in milliseconds."""

from __future__ import annotations

import asyncio
import base64
import errno
import io
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from httpx_sse import ServerSentEvent, aconnect_sse
from PIL import Image

from cosmorama.jobs.files import Artifacts
from cosmorama.jobs.model import Job
from tests.api.fake_app import Fake, clips, run, serving

BODY: dict[str, Any] = {"prompt": "a red ball", "seed": 7, "steps": 3}
LONG: dict[str, Any] = BODY | {"steps": 50}


async def submit(server: Fake, headers: dict[str, str] | None = None, **body: Any) -> dict[str, Any]:
    answer = await server.client.post("/v1/jobs", json=BODY | body, headers=headers)
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    return job


async def finished(server: Fake, job: dict[str, Any], headers: dict[str, str] | None = None) -> dict[str, Any]:
    await server.jobs.wait(job["id"])
    found: dict[str, Any] = (await server.client.get(f"/v1/jobs/{job['id']}", headers=headers)).json()
    return found


async def begun(server: Fake, job: dict[str, Any]) -> None:
    while f"{job['id']}.1" not in server.supervisor.started:
        await asyncio.sleep(0.005)


async def leave(server: Fake, headers: dict[str, str]) -> None:
    """Ask for a clip, and go away when it has been begun."""
    begun = len(server.supervisor.started)
    asking = asyncio.create_task(server.client.post("/v1/infer", json=BODY, headers=headers))
    while len(server.supervisor.started) == begun:
        await asyncio.sleep(0.005)
    asking.cancel()
    await asyncio.wait((asking,))


async def events(
    server: Fake, job: dict[str, Any], headers: dict[str, str] | None = None
) -> AsyncIterator[ServerSentEvent]:
    async with aconnect_sse(server.client, "GET", f"/v1/jobs/{job['id']}/events", headers=headers or {}) as source:
        async for event in source.aiter_sse():
            yield event


def problem(answer: httpx.Response) -> tuple[int, str]:
    error = answer.json()["error"]
    assert error["code"] == answer.status_code
    return answer.status_code, error["type"]


def _picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), (200, 30, 30)).save(buffer, "PNG")
    return buffer.getvalue()


PICTURE = _picture()


@pytest.mark.parametrize(
    ("dialect", "body", "expected"),
    [
        ("predict1", {"prompt": "a", "seed": 1, "steps": 2, "video_params": {"frames_count": 9}}, {"frames": 9}),
        ("predict25", {"prompt": "a", "seed": 1, "num_output_frames": 17}, {"frames": 17}),
        ("generator1", {"prompt": "a", "seed": 1, "fps": 30}, {"fps": 30}),
        ("cosmos3", {"model_mode": "text2video", "prompt": "a", "seed": 1}, {}),
        ("openai", {"prompt": "a", "seconds": "1", "seed": 1}, {}),
        ("cosmorama", {"prompt": "a", "seed": 1, "steps": 2, "frames": 9}, {"frames": 9, "steps": 2}),
    ],
)
def test_every_wire_format_makes_a_job_and_has_its_own_answer(
    dialect: str, body: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    async def test() -> None:
        async with serving(tmp_path) as server:
            named = {"dialect": dialect} if dialect in ("openai", "cosmorama") else {}
            answer = await server.client.post("/v1/jobs", json=body | named)
            assert answer.status_code == 202, answer.text
            job = await finished(server, answer.json())
            assert (job["state"], job["dialect"], job["request"]["seed"]) == ("succeeded", dialect, 1)
            assert expected.items() <= job["request"].items()
            clip = (await server.client.get(f"/v1/jobs/{job['id']}/content")).content
            assert clip.startswith(b"a whole clip of a")
            answer = await server.client.get(f"/v1/jobs/{job['id']}/answer")
            assert answer.status_code == 200, answer.text
            if dialect in ("predict1", "predict25", "generator1", "cosmos3"):
                assert base64.b64decode(answer.json()["b64_video"]) == clip
            # It can be had again, and takes nothing from the job.
            assert (await server.client.get(f"/v1/jobs/{job['id']}/answer")).content == answer.content

    run(test)
    assert [path.name for path in clips(tmp_path)] == ["clip.mp4"]


def test_the_request_of_a_job_is_whole_and_can_be_sent_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = base64.b64encode(PICTURE).decode()
    body: dict[str, Any] = {
        "prompt": "a ball",
        "image": picture,
        "guidance_scale": 4.5,
        "guidance_interval": [0.1, 0.9],
        "guidance_rescale": 0.3,
        "steps": 3,
        "frames": 9,
        "negative_prompt": "fog",
        "solver": "unipc",
        "reuse": 0.2,
        "output": {"container": "webm", "codec": "av1", "quality": 3},
    }

    async def test() -> None:
        async with serving(tmp_path) as server:
            job = await submit(server, dialect="cosmorama", **body)
            told = job["request"]
            assert {**body, "image": told["image"]}.items() <= told.items()
            assert told["seed"] is not None
            assert told["image"] == f"/v1/jobs/{job['id']}/inputs/image"
            await server.jobs.wait(job["id"])
            with monkeypatch.context() as patch:
                patch.setattr(Artifacts, "read", None)  # it may be large, and is never held whole
                given = await server.client.get(told["image"])
                part = await server.client.get(told["image"], headers={"Range": "bytes=1-3"})
            assert (given.content, given.headers["content-type"]) == (PICTURE, "application/octet-stream")
            assert (part.status_code, part.content) == (206, PICTURE[1:4])
            while list((tmp_path / "scratch").rglob("clip*")):
                await asyncio.sleep(0.01)
            again = await submit(server, dialect="cosmorama", **{**told, "image": picture})
            assert again["request"] == {**told, "image": f"/v1/jobs/{again['id']}/inputs/image"}
            for nothing in ("video", "prompt", "controls.0.source", "..%2f..%2fjobs.sqlite"):
                answer = await server.client.get(f"/v1/jobs/{job['id']}/inputs/{nothing}")
                assert answer.status_code == 404, nothing

    run(test)


def test_a_job_says_where_it_is(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path, max_active=1) as server:
            server.supervisor.gate.clear()
            first = await submit(server, **LONG, metadata={"order": "17"})
            await begun(server, first)
            second = await submit(server, **LONG)
            assert (second["state"], second["queue_position"], second["stage"]) == ("queued", 1, "queued")
            now = (await server.client.get(f"/v1/jobs/{first['id']}")).json()
            assert (now["state"], now["stage"], now["total"], now["queue_position"]) == ("running", "denoise", 50, None)
            assert (now["object"], now["metadata"], now["attempts"]) == ("job", {"order": "17"}, 1)
            assert now["result"] is now["error"] is now["finished_at"] is None
            early = await server.client.get(f"/v1/jobs/{first['id']}/content")
            assert problem(early) == (409, "conflict")
            assert problem(await server.client.get(f"/v1/jobs/{first['id']}/answer")) == (409, "conflict")
            server.supervisor.gate.set()
            done = await finished(server, first)
            assert (done["state"], done["stage"], done["eta_s"]) == ("succeeded", "done", None)
            assert done["created_at"] <= done["started_at"] <= done["finished_at"]
            assert done["result"]["content_url"] == f"/v1/jobs/{first['id']}/content"
            assert done["result"]["media_type"] == "video/mp4"
            assert done["result"]["bytes"] == int(
                (await server.client.get(done["result"]["content_url"])).headers["content-length"]
            )

    run(test)


def test_the_list_is_paged_and_filtered(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as server:
            made = [await submit(server, seed=seed) for seed in range(5)]
            for job in made:
                await server.jobs.wait(job["id"])
            server.supervisor.gate.clear()
            made.append(await submit(server, **LONG))
            await server.client.post(f"/v1/jobs/{made[-1]['id']}/cancel")
            seen: list[str] = []
            query: dict[str, Any] = {"limit": 4}
            while True:
                page = (await server.client.get("/v1/jobs", params=query)).json()
                assert page["object"] == "list"
                seen += [job["id"] for job in page["data"]]
                if page["next_cursor"] is None:
                    break
                query["cursor"] = page["next_cursor"]
            assert seen == [job["id"] for job in reversed(made)]
            succeeded = (await server.client.get("/v1/jobs", params={"state": "succeeded"})).json()
            assert [job["id"] for job in succeeded["data"]] == seen[1:]
            for wrong in ({"limit": "0"}, {"limit": "101"}, {"limit": "x"}, {"state": "done"}, {"cursor": "nobody"}):
                answer = await server.client.get("/v1/jobs", params=wrong)
                assert problem(answer) == (422, "invalid_request_error")
                assert next(iter(wrong)) in answer.json()["error"]["message"]

    run(test)


def test_events_are_told_as_they_happen_and_can_be_resumed(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as server:
            server.supervisor.gate.clear()
            job = await submit(server, steps=8)
            seen: list[ServerSentEvent] = []
            async with aclosing(events(server, job)) as stream:
                async for event in stream:
                    seen.append(event)
                    # Nothing goes on until this was received, so it was not held back for the end.
                    if event.event == "status" and event.json()["state"] == "running":
                        server.supervisor.gate.set()
            numbers = [int(event.id) for event in seen]
            assert numbers == sorted(set(numbers))
            assert seen[-1].event == "succeeded"
            assert seen[-1].json()["result"]["seed"] == 7
            told = [event.json() for event in seen if event.event == "status"]
            steps = [status["step"] for status in told if status["stage"] == "denoise"]
            assert steps == sorted(steps)
            assert (steps[-1], told[-1]["total"]) == (8, 8)
            previews = [json.loads(event.data) for event in seen if event.event == "preview"]
            assert previews
            assert all(base64.b64decode(preview["data"]).startswith(b"jpeg") for preview in previews)
            assert previews[0]["media_type"] == "image/jpeg"
            # Who comes back is told what is left, or that nothing is.
            rest = [event async for event in events(server, job, {"Last-Event-ID": seen[1].id})]
            assert [event.event for event in rest] == ["succeeded"]
            path = f"/v1/jobs/{job['id']}/events"
            assert (await server.client.get(path, headers={"Last-Event-ID": seen[-1].id})).status_code == 204
            assert [event.event async for event in events(server, job, {"Last-Event-ID": "x"})] == ["succeeded"]

    run(test)


def test_events_can_be_resumed_on_a_server_that_was_started_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as server:
            server.supervisor.gate.clear()
            job = await submit(server)
            async with aclosing(events(server, job)) as stream:
                last = await anext(event async for event in stream if event.json()["state"] == "running")
        async with serving(tmp_path) as server:
            rest = [event async for event in events(server, job, {"Last-Event-ID": last.id})]
            assert min(int(event.id) for event in rest) > int(last.id)
            assert rest[-1].event == "succeeded"
            assert rest[-1].json()["attempts"] == 2

    run(test)


def test_cancelling_frees_the_worker_within_a_step(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path, max_active=1) as server:
            job = await submit(server, **LONG)
            waiting = await submit(server, **LONG)
            await begun(server, job)
            for each in (waiting, job):
                answer = await server.client.post(f"/v1/jobs/{each['id']}/cancel")
                assert answer.status_code == 200
                assert answer.json()["state"] == "cancelled"
                assert answer.json()["error"]["code"] == 499
            # The gate is open: had it gone on for even one more step, it would not stand at this one.
            assert server.supervisor.cancelled == [f"{job['id']}.1"]
            stopped_at = (await server.client.get(f"/v1/jobs/{job['id']}")).json()["step"]
            assert stopped_at < 50
            assert clips(tmp_path) == []
            assert [event.event async for event in events(server, job)] == ["cancelled"]
            assert problem(await server.client.get(f"/v1/jobs/{job['id']}/content")) == (409, "conflict")
            assert problem(await server.client.get(f"/v1/jobs/{job['id']}/answer")) == (499, "cancelled")
            assert (await finished(server, await submit(server)))["state"] == "succeeded"

    run(test)


def test_deleting_a_job_that_runs_or_waits_stops_and_removes_it(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path, max_active=1) as server:
            job = await submit(server, **LONG)
            waiting = await submit(server, **LONG)
            await begun(server, job)
            for each in (waiting, job):
                answer = await server.client.delete(f"/v1/jobs/{each['id']}")
                assert answer.json() == {"id": each["id"], "object": "job", "deleted": True}
                assert problem(await server.client.get(f"/v1/jobs/{each['id']}")) == (404, "job_not_found")
            assert server.supervisor.cancelled == [f"{job['id']}.1"]
            assert (await finished(server, await submit(server)))["state"] == "succeeded"

    run(test)


def test_readiness_says_when_nothing_can_be_accepted(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as server:
            assert (await server.client.get("/v1/health/ready")).status_code == 200
            (tmp_path / "jobs.sqlite3").rename(tmp_path / "elsewhere")
            while (answer := await server.client.get("/v1/health/ready")).status_code == 200:
                await asyncio.sleep(0.05)
            assert answer.status_code == 503
            assert "removed or replaced" in answer.text
            assert str(tmp_path) not in answer.text
            assert (await server.client.get("/v1/health/live")).status_code == 200
            assert (await server.client.post("/v1/jobs", json=BODY)).status_code == 503

    run(test)


def test_deleting_a_finished_job_removes_it_and_cancelling_does_not(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as server:
            job = await finished(server, await submit(server))
            path = f"/v1/jobs/{job['id']}"
            assert (await server.client.post(f"{path}/cancel")).json() == job
            assert len(clips(tmp_path)) == 1
            answer = await server.client.delete(path)
            assert answer.json() == {"id": job["id"], "object": "job", "deleted": True}
            assert clips(tmp_path) == []
            assert problem(await server.client.get(path)) == (404, "job_not_found")
            assert problem(await server.client.delete(path)) == (404, "job_not_found")

    run(test)


@pytest.mark.parametrize("accept", ["application/json", "video/mp4"])
def test_an_answer_comes_whole_or_not_at_all(accept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def test() -> None:
        async with serving(tmp_path) as server:
            url = f"/v1/jobs/{(await finished(server, await submit(server)))['id']}/answer"
            whole = await server.client.get(url, headers={"Accept": accept})
            assert whole.headers["content-type"] == accept
            assert whole.headers["content-length"] == str(len(whole.content))
            for asked in ("bytes=2-6", "bytes=x", "bytes=99999999-", "items=1"):
                answer = await server.client.get(url, headers={"Accept": accept, "Range": asked})
                assert (answer.status_code, answer.content) == (200, whole.content)
            if accept == "application/json":
                monkeypatch.setattr("cosmorama.api.clips.ClipJSON._write", full)
                assert problem(await server.client.get(url)) == (507, "storage_full")

    run(test)
    assert [clip.parts[-5] for clip in clips(tmp_path)] == ["artifacts"]


@pytest.mark.parametrize("asked", [{}, {"Range": "bytes=2-6"}])
@pytest.mark.parametrize("seen", ["os.stat", "anyio.open_file"])
def test_a_clip_that_is_removed_before_it_is_sent_is_gone(
    seen: str, asked: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with serving(tmp_path) as server:
            url = f"/v1/jobs/{(await finished(server, await submit(server)))['id']}/content"
            (clip,) = clips(tmp_path)
            owner, _, name = f"starlette.responses.{seen}".rpartition(".")
            looked = getattr(anyio if name == "open_file" else os, name)

            def removed(path: Any, *arguments: Any, **named: Any) -> Any:
                if Path(path) == clip:
                    clip.unlink(missing_ok=True)
                return looked(path, *arguments, **named)

            monkeypatch.setattr(f"{owner}.{name}", removed)
            assert problem(await server.client.get(url, headers=asked)) == (410, "content_gone")

    run(test)


@pytest.mark.parametrize("store", ["folder", "remote"])
def test_content_in_parts(store: str, tmp_path: Path) -> None:
    settings = {} if store == "folder" else {"artifacts": f"memory://{tmp_path.name}"}

    async def test() -> None:
        async with serving(tmp_path, **settings) as server:
            job = await finished(server, await submit(server))
            url = f"/v1/jobs/{job['id']}/content"

            async def part(asked: str) -> httpx.Response:
                return await server.client.get(url, headers={"Range": f"bytes={asked}"})

            whole = await server.client.get(url)
            clip, size = whole.content, job["result"]["bytes"]
            assert (whole.status_code, whole.headers["content-type"], len(clip)) == (200, "video/mp4", size)
            assert whole.headers["accept-ranges"] == "bytes"
            assert f'filename="{job["id"]}.mp4"' in whole.headers["content-disposition"]
            for asked, expected in (("2-6", clip[2:7]), ("-10", clip[-10:]), ("20-", clip[20:]), ("0-9999", clip)):
                answer = await part(asked)
                assert (answer.status_code, answer.content) == (206, expected)
                first = clip.index(expected) if asked != "-10" else size - 10
                assert answer.headers["content-range"] == f"bytes {first}-{first + len(expected) - 1}/{size}"
            beyond = await part(f"{size}-")
            assert beyond.status_code == 416
            assert beyond.headers["content-range"].endswith(f"*/{size}")
            assert beyond.json()["error"]["message"].startswith(f"the clip has {size} bytes")
            partly = await part(f"0-0,{size + 5}-")  # what there is of it (section 15.5.17)
            assert (partly.status_code, partly.content) == (206, clip[:1])
            assert partly.headers["content-range"] == f"bytes 0-0/{size}"
            # What is no range of bytes is no error either (RFC 9110, section 14.2).
            for asked in ("9-3", "x-y", "-", ""):
                assert (await part(asked)).content == clip
            other = await server.client.get(url, headers={"Range": "items=0-1"})
            assert (other.status_code, other.content) == (200, clip)
            head = await server.client.head(url)
            assert (head.status_code, head.headers["content-length"]) == (200, str(size))
            # A part of something that has changed since is no part of this.
            answer = await server.client.get(url, headers={"Range": "bytes=2-6", "If-Range": '"another"'})
            assert (answer.status_code, answer.content) == (200, clip)
            tag = whole.headers["etag"]
            answer = await server.client.get(url, headers={"Range": "bytes=2-6", "If-Range": tag})
            assert (answer.status_code, answer.content) == (206, clip[2:7])
            # What a client has already is not sent again.
            for known, status in ((tag, 304), (f'"another", W/{tag}', 304), ("*", 304), ('"another"', 200)):
                answer = await server.client.get(url, headers={"If-None-Match": known})
                assert (answer.status_code, answer.content) == (status, b"" if status == 304 else clip)

    run(test)


def test_the_same_key_is_the_same_job(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as server:
            key = {"Idempotency-Key": "order-17"}
            answers = await asyncio.gather(*(submit(server, key, seed=None) for _ in range(3)))
            assert len({job["id"] for job in answers}) == 1
            job = await finished(server, answers[0])
            again = await submit(server, key, seed=None)
            assert (again["id"], again["state"]) == (job["id"], "succeeded")
            assert len(server.supervisor.started) == 1
            other = await server.client.post("/v1/jobs", json=BODY | {"seed": None, "steps": 4}, headers=key)
            assert problem(other) == (409, "conflict")
            assert job["id"] in other.json()["error"]["message"]

    run(test)


def test_a_synchronous_request_with_a_key_finds_its_clip_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as server:
            key = {"Idempotency-Key": "k"}
            server.supervisor.gate.clear()
            await leave(server, key)
            server.supervisor.gate.set()
            first = await server.client.post("/v1/infer", json=BODY, headers=key)
            assert first.status_code == 200
            assert (await server.client.post("/v1/infer", json=BODY, headers=key)).json() == first.json()
            assert len(server.supervisor.started) == 1
            # Without one, who goes away is not waited for.
            server.supervisor.gate.clear()
            await leave(server, {})
            while not server.supervisor.cancelled:
                await asyncio.sleep(0.01)
            newest = (await server.client.get("/v1/jobs")).json()["data"][0]
            assert (await finished(server, newest))["state"] == "cancelled"

    run(test)


def test_a_full_queue_answers_with_a_place_and_a_time(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path, max_active=1, max_queue=2) as server:
            await finished(server, await submit(server))
            server.supervisor.gate.clear()
            for _ in range(3):
                await submit(server, **LONG)
            refused = await server.client.post("/v1/jobs", json=BODY)
            assert problem(refused) == (429, "queue_full")
            assert "number 3" in refused.json()["error"]["message"]
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert len((await server.client.get("/v1/jobs")).json()["data"]) == 4

    run(test)


@pytest.mark.parametrize("wrong", [0, -1, 1e300, "soon", True])
def test_a_deadline_out_of_range_is_told_the_range(wrong: object, tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as server:
            answer = await server.client.post("/v1/jobs", json={"prompt": "a ball", "deadline_s": wrong})
            assert answer.status_code == 422
            assert answer.json()["error"]["message"] == (
                f"deadline_s: {'true' if wrong is True else repr(wrong)} is not accepted; "
                "expected a number of seconds, more than 0 and at most 1000000000"
            )

    run(test)


def test_priority_and_deadline_in_headers_or_in_the_body(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path, max_active=1) as server:
            await finished(server, await submit(server))
            server.supervisor.gate.clear()
            first = await submit(server, **LONG)
            await begun(server, first)
            headers = {"X-Cosmorama-Priority": "low", "X-Cosmorama-Deadline-S": "0.3"}
            low = await submit(server, headers)
            urgent = await submit(server, headers, **LONG, priority="normal", deadline_s=60)
            assert (low["priority"], urgent["priority"]) == ("low", "normal")
            assert low["deadline_at"] - low["created_at"] == pytest.approx(0.3, abs=0.01)
            assert urgent["deadline_at"] - urgent["created_at"] == pytest.approx(60, abs=0.01)
            assert (await server.client.get(f"/v1/jobs/{low['id']}")).json()["queue_position"] in (2, None)
            late = await finished(server, low)
            assert (late["state"], late["error"]["code"], late["error"]["type"]) == ("failed", 504, "timeout_error")
            answer = await server.client.get(f"/v1/jobs/{low['id']}/answer")
            assert problem(answer) == (504, "timeout_error")
            wrong: list[tuple[dict[str, Any], dict[str, str]]] = [
                ({}, {"X-Cosmorama-Priority": "urgent"}),
                ({}, {"X-Cosmorama-Deadline-S": "soon"}),
                ({"priority": 1}, {}),
                ({"deadline_s": -1}, {}),
                ({"deadline_s": True}, {}),
                ({"webhook_url": 5}, {}),
                ({"webhook_url": "https://example.com/"}, {}),
                ({"metadata": {"a": 1}}, {}),
                ({"metadata": []}, {}),
                ({"dialect": 3}, {}),
                ({"dialect": "klingon"}, {}),
                ({"steps": 99}, {}),
            ]
            for body, headers in wrong:
                refused = await server.client.post("/v1/jobs", json=BODY | body, headers=headers)
                assert problem(refused) == (422, "invalid_request_error"), (body, headers)
                assert next(iter((*body, *headers))) in refused.json()["error"]["message"]

    run(test)


def test_what_is_not_there_is_404_on_every_route(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path, api_keys=("mine", "yours")) as server:
            mine, yours = ({"Authorization": f"Bearer {key}"} for key in ("mine", "yours"))
            job = await finished(server, await submit(server, mine), mine)
            assert job["state"] == "succeeded"
            for name in (job["id"], "job_nobody", "%00", "a'; --"):
                for method, suffix in (
                    ("GET", ""),
                    ("GET", "/events"),
                    ("GET", "/content"),
                    ("GET", "/answer"),
                    ("POST", "/cancel"),
                    ("DELETE", ""),
                ):
                    answer = await server.client.request(method, f"/v1/jobs/{name}{suffix}", headers=yours)
                    assert problem(answer) == (404, "job_not_found"), (method, name, suffix)
            assert (await server.client.get("/v1/jobs", headers=yours)).json()["data"] == []
            cursor = await server.client.get("/v1/jobs", params={"cursor": job["id"]}, headers=yours)
            assert problem(cursor) == (422, "invalid_request_error")
            assert [found["id"] for found in (await server.client.get("/v1/jobs", headers=mine)).json()["data"]] == [
                job["id"]
            ]
            assert (await server.client.get(f"/v1/jobs/{job['id']}/content", headers=mine)).status_code == 200
            # The same idempotency key of another client is another key.
            keyed = {"Idempotency-Key": "k"}
            assert (await submit(server, mine | keyed))["id"] != (await submit(server, yours | keyed))["id"]

    run(test)


def test_three_hundred_followers_cost_one_serialisation_and_all_see_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0
    summary = Job.summary

    def counted(self: Job) -> dict[str, Any]:
        nonlocal written
        written += 1
        return summary(self)

    async def test() -> None:
        nonlocal written
        async with serving(tmp_path, max_active=1) as server:
            job = await submit(server, **LONG)
            waiting = await submit(server)  # its followers have to look at the store
            await begun(server, job)
            monkeypatch.setattr(Job, "summary", counted)
            limits = httpx.Limits(max_connections=500)
            async with httpx.AsyncClient(base_url=server.client.base_url, limits=limits, timeout=60) as many:

                async def follow(job_id: str) -> str:
                    last = ""
                    async with many.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
                        assert answer.headers["content-type"].startswith("text/event-stream")
                        async for line in answer.aiter_lines():
                            if line.startswith("event: "):
                                last = line.removeprefix("event: ")
                    return last

                followers = [asyncio.create_task(follow(each["id"])) for each in (job, waiting) for _ in range(150)]
                slowest = 0.0
                while not all(task.done() for task in followers):
                    asked = time.monotonic()
                    assert (await server.client.get("/v1/health/live")).status_code == 200
                    slowest = max(slowest, time.monotonic() - asked)
                    await asyncio.sleep(0.02)
            assert {task.result() for task in followers} == {"succeeded"}
            # Once for each step and each look, not for each of 300 followers.
            assert written < 600
            assert server.jobs.watching == 0

    run(test)


def test_of_the_places_of_followers_one_key_has_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cosmorama.jobs.service.MAX_WATCHERS", 5)

    async def test() -> None:
        async with serving(tmp_path, api_keys=("a:1", "b:2")) as server, AsyncExitStack() as open_now:
            server.supervisor.gate.clear()
            answers, followed = [], []
            for key in "1112222":
                headers = {"Authorization": f"Bearer {key}"}
                job = (await server.client.post("/v1/jobs", json=BODY, headers=headers)).json()
                events = server.client.stream("GET", f"/v1/jobs/{job['id']}/events", headers=headers)
                answer = await open_now.enter_async_context(events)
                answers.append(answer.status_code)
                if answer.status_code == 200:
                    followed.append(answer.aiter_lines())
                    await anext(followed[-1])
            assert answers == [200, 200, 429, 200, 200, 429, 429]
            server.supervisor.gate.set()
            for lines in followed:
                assert "event: succeeded" in [line async for line in lines]
            assert server.jobs.watching == 0

    run(test)


def test_labels_are_changed_and_nothing_else(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as server:
            job = await submit(server, metadata={"project": "arms", "old": "x"})
            path = f"/v1/jobs/{job['id']}"
            answer = await server.client.patch(path, json={"metadata": {"starred": "yes", "old": None}})
            assert answer.status_code == 200
            told = (await server.client.get(path)).json()
            assert told["metadata"] == {"project": "arms", "starred": "yes"}
            assert told["request"] == job["request"]
            refused: list[tuple[object, str]] = [
                ({}, "metadata"),
                ({"metadata": {"n": 3}}, "metadata"),
                ({"metadata": {f"n{number}": "" for number in range(17)}}, "at most 16"),
                ({"metadata": {}, "priority": "high"}, "priority"),
            ]
            for body, named in refused:
                answer = await server.client.patch(path, json=body)
                assert (answer.status_code, named in answer.json()["error"]["message"]) == (422, True)
            missing = await server.client.patch("/v1/jobs/job_nobodys", json={"metadata": {}})
            assert missing.status_code == 404
            assert (await server.client.get(path)).json()["metadata"] == told["metadata"]

    run(test)
