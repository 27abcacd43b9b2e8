"""The clients against a real server, and against one that misbehaves."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from tenacity import stop_after_attempt
from typer.testing import CliRunner

import cosmorama
from cosmorama.cli import app
from cosmorama.client import JobStatus
from cosmorama.client.client import FIRST_PATIENCE_S, PATIENCE_S
from cosmorama.client.protocol import attempts
from cosmorama.errors import (
    AuthenticationError,
    CancelledError,
    InvalidRequestError,
    JobNotFoundError,
    MediaError,
    QueueFullError,
    ServerUnreachableError,
)
from cosmorama.request import Adapter, GenerationRequest, Output
from tests.serving import Running, running_server

ROOT = Path(__file__).parents[1]
SMALL: dict[str, Any] = {"width": 960, "height": 704, "frames": 1, "steps": 1}
LONG = GenerationRequest(prompt="a blue cube falls", width=960, height=704, frames=121, steps=50, seed=1)
KEY = "a-key-of-the-tests"


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    settings = {"COSMORAMA_API_KEYS": f"tests:{KEY}", "COSMORAMA_MAX_ACTIVE": "2"}
    # Metrics and all else want the key too, so `Running` is only used for its address.
    with running_server(tiny_checkpoint, tmp_path_factory.mktemp("client"), **settings) as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[cosmorama.Client]:
    with cosmorama.Client(server.url, api_key=KEY, patience_s=30) as client:
        yield client


def test_generate_gives_the_clip_and_what_made_it(client: cosmorama.Client, tmp_path: Path) -> None:
    seen: list[JobStatus] = []
    clip = client.generate("a red ball", seed=7, **{**SMALL, "steps": 3}, on_status=seen.append)
    assert (clip.seed, clip.media_type) == (7, "video/mp4")
    assert clip.prompt
    assert clip.save(tmp_path / "deep" / "clip.mp4").read_bytes() == clip.data
    assert clip.data[4:8] == b"ftyp"
    assert seen[-1].state == "succeeded"
    assert clip.job.request["steps"] == 3
    again = client.generate("a red ball", seed=7, **{**SMALL, "steps": 3})
    assert again.data == clip.data


def test_a_clip_from_a_server_is_used_like_one_made_here(client: cosmorama.Client, tmp_path: Path) -> None:
    shape = (SMALL["height"], SMALL["width"], 3)
    for name, player in (
        ("a.mp4", "<video"),
        ("a.webm", "<video"),
        ("a.gif", "<img"),
        ("a.jpg", "<img"),
        ("a.zip", "<a"),
    ):
        clip = client.generate("a red ball", seed=7, output=name, **SMALL)
        frames = list(clip.frames)
        assert [(frame.shape, frame.dtype) for frame in frames] == [(shape, np.uint8)]
        html = clip._repr_html_()
        assert html.startswith(player)
        assert base64.b64encode(clip.data).decode() in html
        for wrong in {"a.mp4", "a.gif"} - {name}:
            with pytest.raises(InvalidRequestError, match=rf"name ending in .*: the clip is {clip.media_type}"):
                clip.save(tmp_path / wrong)
            job = client.job(clip.job.id)
            with pytest.raises(InvalidRequestError, match="name ending in"):
                job.download(tmp_path / wrong)
        assert clip.save(tmp_path / "of no known suffix").read_bytes() == clip.data


def test_an_image_and_another_container(client: cosmorama.Client, tmp_path: Path) -> None:
    path = tmp_path / "start.png"
    Image.new("RGB", (96, 70), "orange").save(path)
    clip = client.generate(image=str(path), output="clip.gif", **SMALL)
    assert clip.media_type == "image/gif"
    assert clip.data.startswith(b"GIF8")
    assert client.generate(image=Image.open(path), seed=clip.seed, output="clip.gif", **SMALL).data == clip.data


def test_a_job_is_followed_listed_downloaded_and_deleted(client: cosmorama.Client, tmp_path: Path) -> None:
    request = GenerationRequest(prompt="a red ball", seed=3, **{**SMALL, "steps": 4})
    job = client.submit(request, metadata={"for": "tests"}, priority="high", idempotency_key="once")
    assert client.submit(request, idempotency_key="once").id == job.id
    statuses = list(job.events())
    assert statuses[-1].state == "succeeded"
    assert [status.step for status in statuses if status.stage == "denoise"] == sorted(
        status.step for status in statuses if status.stage == "denoise"
    )
    assert job.status.metadata == {"for": "tests"}
    assert job.id in [found.id for found in client.jobs(state="succeeded")]
    path = job.download(tmp_path / "clip.mp4")
    assert path.read_bytes() == job.clip().data
    assert [file.name for file in tmp_path.iterdir()] == ["clip.mp4"]
    assert job.cancel().state == "succeeded"
    job.delete()
    with pytest.raises(JobNotFoundError):
        client.job(job.id)


def test_errors_are_the_ones_that_the_model_itself_would_raise(client: cosmorama.Client, server: Running) -> None:
    with pytest.raises(InvalidRequestError, match=r"steps: 99 .* 1 to 50"):
        client.generate("a ball", steps=99)
    with pytest.raises(MediaError, match="image") as caught:
        client.generate(image=b"no picture", **SMALL)
    assert caught.value.field == "image"
    with pytest.raises(InvalidRequestError, match=r"\.mp4"):
        client.generate("a ball", output="clip.avi")
    with cosmorama.Client(server.url) as stranger, pytest.raises(AuthenticationError):
        stranger.capabilities()


def test_cancelling_and_giving_up(client: cosmorama.Client) -> None:
    job = client.submit(LONG)
    with pytest.raises(TimeoutError):
        job.wait(timeout_s=0.2)
    assert job.cancel().state in ("running", "cancelled")
    with pytest.raises(CancelledError):
        job.wait(timeout_s=60)

    def give_up(status: JobStatus) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.generate("a ball", on_status=give_up, **{**SMALL, "steps": 50, "frames": 121})
    newest = next(client.jobs())
    with pytest.raises(CancelledError):
        newest.wait(timeout_s=60)


def test_capabilities_are_the_models(client: cosmorama.Client) -> None:
    found = client.capabilities()
    assert isinstance(found, cosmorama.Capabilities)
    assert found.model == "tiny"
    assert found.steps.high == 50


def test_the_async_client_does_the_same(server: Running, tmp_path: Path) -> None:
    async def main() -> None:
        async with cosmorama.AsyncClient(server.url, api_key=KEY) as client:
            clips = await asyncio.gather(*(client.generate("a red ball", seed=seed, **SMALL) for seed in (1, 2)))
            assert [clip.seed for clip in clips] == [1, 2]
            job = await client.submit(GenerationRequest(prompt="a red ball", seed=1, **SMALL))
            assert [status.state async for status in job.events()][-1] == "succeeded"
            assert (await job.download(tmp_path / "clip.mp4")).read_bytes() == clips[0].data
            assert job.id in [found.id async for found in client.jobs()]
            assert (await client.capabilities()).model == "tiny"
            with pytest.raises(InvalidRequestError, match="fps"):
                await client.generate("a ball", fps=500)
            long = await client.submit(LONG)
            assert (await long.cancel()).state in ("running", "cancelled")
            with pytest.raises(CancelledError):
                await long.wait(timeout_s=60)

    asyncio.run(main())


def test_jobs_on_the_command_line(client: cosmorama.Client, server: Running, tmp_path: Path) -> None:
    def jobs(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["jobs", *arguments, "--server", server.url, "--api-key", KEY])

    job = client.submit(GenerationRequest(prompt="a red ball of the terminal", seed=3, **SMALL))
    watched = jobs("watch", job.id, "-o", str(tmp_path / "clip.mp4"))
    assert watched.exit_code == 0, watched.output
    assert (tmp_path / "clip.mp4").stat().st_size > 0
    assert job.id in jobs("list").output
    assert json.loads(jobs("show", job.id).output)["state"] == "succeeded"
    listed = json.loads(jobs("list", "--json", "--limit", "1").output)
    assert [entry["id"] for entry in listed] == [job.id]
    assert "succeeded" in jobs("cancel", job.id).output
    missing = jobs("show", "job_none")
    assert missing.exit_code == 2
    assert "job_none" in missing.output


def test_the_command_line_makes_clips_on_a_server(server: Running, tmp_path: Path) -> None:
    def cosmorama(*arguments: str) -> Any:
        environment = {"COSMORAMA_SERVER": server.url, "COSMORAMA_API_KEY": KEY}
        return CliRunner().invoke(app, list(arguments), env=environment)

    small = ["--frames", "1", "--steps", "1", "--size", "960x704", "--seed", "5"]
    made = cosmorama("generate", "a red ball", *small, "-o", str(tmp_path / "a.gif"), "--json")
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["seed"] == 5
    assert (tmp_path / "a.gif").read_bytes().startswith(b"GIF8")
    submitted = cosmorama("jobs", "submit", "a red ball", *small, "--container", "gif", "--priority", "high")
    assert submitted.exit_code == 0, submitted.output
    job = submitted.stdout.strip()
    assert cosmorama("jobs", "watch", job).exit_code == 0
    assert cosmorama("jobs", "download", job, "-o", str(tmp_path / "b.gif")).exit_code == 0
    assert (tmp_path / "b.gif").read_bytes() == (tmp_path / "a.gif").read_bytes()
    wrong = cosmorama("jobs", "download", job, "-o", str(tmp_path / "b.mp4"))
    assert wrong.exit_code == 2
    assert "a name ending in .gif: the clip is image/gif" in wrong.output
    assert cosmorama("jobs", "delete", job).exit_code == 0
    assert cosmorama("jobs", "show", job).exit_code == 2
    assert cosmorama("jobs", "list", "--state", "lost").exit_code == 2
    refused = cosmorama("generate", "a red ball", "--fps", "500", "-o", str(tmp_path / "c.gif"))
    assert refused.exit_code == 2
    assert "fps: 500" in refused.output


# A server that misbehaves, played by a function.

JOB: dict[str, Any] = {
    "id": "job_1",
    "state": "queued",
    "model": "tiny",
    "mode": "text2world",
    "priority": "normal",
    "stage": "queued",
    "step": 0,
    "total": 0,
    "created_at": 1.0,
}
DONE = {
    **JOB,
    "state": "succeeded",
    "result": {"content_url": "", "media_type": "video/mp4", "bytes": 10, "seed": 1, "upsampled_prompt": "a"},
}


def against(handler: Callable[[httpx.Request], httpx.Response], patience_s: float = 5) -> cosmorama.Client:
    return cosmorama.Client("http://test", transport=httpx.MockTransport(handler), patience_s=patience_s)


def busy(status: int) -> httpx.Response:
    error = {"message": "too many", "type": "queue_full", "code": status}
    return httpx.Response(status, json={"error": error}, headers={"Retry-After": "0"})


def event(number: int, job: dict[str, Any]) -> str:
    return f"id: {number}\nevent: status\ndata: {json.dumps(job)}\n\n"


def test_a_repeated_submission_is_the_same_submission() -> None:
    keys = []

    def handler(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["Idempotency-Key"])
        if len(keys) == 1:
            return busy(429)
        if len(keys) == 2:
            raise httpx.ConnectError("gone")
        return httpx.Response(202, json=JOB)

    client = against(handler)
    client.submit("a ball")
    assert len(keys) == 3
    assert len(set(keys)) == 1
    client.submit("a ball")
    assert len(set(keys)) == 2


def test_patience_ends() -> None:
    with pytest.raises(QueueFullError, match="too many"):
        against(lambda request: httpx.Response(429, json=busy(429).json(), headers={"Retry-After": "60"})).submit("a")

    def dead(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("nobody there")

    with pytest.raises(ServerUnreachableError, match="nobody there"):
        against(dead, patience_s=0).submit("a ball")


class Cut(httpx.AsyncByteStream):
    """A body whose connection breaks."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._data
        raise httpx.ReadError("the connection broke")


def test_a_broken_download_goes_on_where_it_stopped(tmp_path: Path) -> None:
    ranges = []

    def handler(request: httpx.Request) -> httpx.Response:
        if not request.url.path.endswith("/content"):
            return httpx.Response(200, json=DONE)
        ranges.append(request.headers.get("Range"))
        if len(ranges) == 1:
            return httpx.Response(200, stream=Cut(b"01234"))
        if len(ranges) == 2:
            return httpx.Response(206, stream=Cut(b"567"))
        return httpx.Response(206, content=b"89")

    path = against(handler).job("job_1").download(tmp_path / "clip.mp4")
    assert path.read_bytes() == b"0123456789"
    assert ranges == [None, "bytes=5-", "bytes=8-"]


def test_a_broken_stream_of_events_goes_on_where_it_stopped() -> None:
    seen = []

    def handler(request: httpx.Request) -> httpx.Response:
        if not request.url.path.endswith("/events"):
            return httpx.Response(200, json=JOB)
        seen.append(request.headers.get("Last-Event-ID"))
        headers = {"Content-Type": "text/event-stream"}
        match len(seen):
            case 1:
                return httpx.Response(200, stream=Cut(event(1, JOB).encode()), headers=headers)
            case 2:
                return busy(503)
            case 3:  # the server ended
                return httpx.Response(200, text=event(2, {**JOB, "state": "running"}), headers=headers)
        return httpx.Response(200, text=": ping\n\n" + event(3, JOB) + ": ping\n\n" + event(4, DONE), headers=headers)

    statuses = list(against(handler).job("job_1").events())
    assert [status.state for status in statuses] == ["queued", "running", "queued", "succeeded"]
    assert seen == [None, "1", "1", "2"]


def test_only_what_was_chosen_is_sent() -> None:
    bodies = []

    def handler(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content))
        return httpx.Response(202, json=JOB)

    chosen = GenerationRequest(prompt="a", adapters=(Adapter("night", 0.5),), output=Output("webm"), model="tiny")
    against(handler).submit(chosen, deadline_s=60)
    assert bodies == [
        {
            "dialect": "cosmorama",
            "prompt": "a",
            "output": {"container": "webm", "codec": None, "quality": 7},
            "adapters": [{"name": "night", "scale": 0.5}],
            "model": "tiny",
            "deadline_s": 60,
        }
    ]


def test_an_answer_that_is_none_is_told() -> None:
    with pytest.raises(cosmorama.CosmoramaError, match="not a Cosmorama server"):
        against(lambda request: httpx.Response(200, text="<html>")).job("job_1")
    with pytest.raises(cosmorama.CosmoramaError, match="Not Found"):
        against(lambda request: httpx.Response(404, text="<html>")).job("job_1")


class Endless(httpx.AsyncByteStream):
    """A stream of events in which nothing happens, but that never falls silent."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield event(1, JOB).encode()
        while True:
            await asyncio.sleep(0.05)
            yield b": ping\n\n"


def queued_for_ever(request: httpx.Request) -> httpx.Response:
    if request.url.path.endswith("/events"):
        return httpx.Response(200, stream=Endless(), headers={"Content-Type": "text/event-stream"})
    return httpx.Response(200, json=JOB)


def test_a_wait_ends_when_its_time_is_up_whatever_the_server_sends() -> None:
    job = against(queued_for_ever).job("job_1")
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"job_1 is not over after 0.5 s: queued"):
        job.wait(timeout_s=0.5)
    assert 0.4 < time.monotonic() - started < 5

    async def main() -> None:
        client = cosmorama.AsyncClient("http://test", transport=httpx.MockTransport(queued_for_ever))
        await (await client.job("job_1")).wait(timeout_s=0.5)

    started = time.monotonic()
    with pytest.raises(TimeoutError):
        asyncio.run(main())
    assert time.monotonic() - started < 5


def test_what_cannot_get_better_is_told_at_once() -> None:
    def fails(error: Exception, cause: BaseException | None = None) -> Callable[[httpx.Request], httpx.Response]:
        def handler(request: httpx.Request) -> httpx.Response:
            raise error from cause

        return handler

    started = time.monotonic()
    for handler in (
        fails(httpx.UnsupportedProtocol("no such protocol")),
        fails(httpx.LocalProtocolError("a header with a line break")),
        fails(httpx.ConnectError("unknown"), socket.gaierror(socket.EAI_NONAME, "Name or service not known")),
        fails(httpx.ConnectError("bad"), ssl.SSLCertVerificationError(1, "certificate verify failed")),
    ):
        with pytest.raises(ServerUnreachableError):
            against(handler, patience_s=300).submit("a ball")
    for address in ("ftp://host", "", "http://", "host:port", "http://host:99999999"):
        with pytest.raises(InvalidRequestError, match=r"server: .* expected an address such as http"):
            cosmorama.Client(address)
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("answered_before", [False, True])
def test_a_server_that_never_answered_is_given_up_sooner(
    monkeypatch: pytest.MonkeyPatch, answered_before: bool
) -> None:
    assert (FIRST_PATIENCE_S, PATIENCE_S) == (5, 300)
    monkeypatch.setattr("cosmorama.client.client.FIRST_PATIENCE_S", 0.1)  # less than the first wait
    monkeypatch.setattr("cosmorama.client.client.PATIENCE_S", 0.8)
    submissions = []

    def dies(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json=JOB)
        submissions.append(request)
        raise httpx.ConnectError("") from ConnectionRefusedError()

    with cosmorama.Client("http://test", transport=httpx.MockTransport(dies)) as client:
        if answered_before:
            client.job("job_1")
        with pytest.raises(ServerUnreachableError, match="is a server running there"):
            client.submit("a ball")
        assert len(submissions) == 1 + answered_before
        monkeypatch.setattr("cosmorama.client.client.FIRST_PATIENCE_S", 0.8)
        submissions.clear()
        with pytest.raises(ServerUnreachableError, match="http://test cannot be reached: no answer;"):
            client.submit("another")  # nobody was there: it does not wait once more
        assert len(submissions) == 1 + answered_before


def test_a_host_that_is_not_known_just_now_and_a_refused_connection_are_waited_for() -> None:
    failures = [
        (httpx.ConnectError("unknown"), socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")),
        (httpx.ConnectError("refused"), ConnectionRefusedError()),
    ]

    def handler(request: httpx.Request) -> httpx.Response:
        if failures:
            error, cause = failures.pop()
            raise error from cause
        return httpx.Response(202, json=JOB)

    assert against(handler, patience_s=60).submit("a ball").id == "job_1"


def test_an_address_needs_no_scheme_and_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str | None]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append((str(request.url), request.headers.get("Authorization")))
        return httpx.Response(200, json=JOB)

    def ask(*address: str) -> tuple[str, str | None]:
        with cosmorama.Client(*address, transport=httpx.MockTransport(handler)) as client:
            client.job("x")
        return seen[-1]

    assert ask("localhost:8123")[0] == "http://localhost:8123/v1/jobs/x"
    assert ask("https://host/a/prefix/")[0] == "https://host/a/prefix/v1/jobs/x"
    monkeypatch.delenv("COSMORAMA_SERVER", raising=False)
    assert ask() == ("http://127.0.0.1:8000/v1/jobs/x", None)
    monkeypatch.setenv("COSMORAMA_SERVER", "elsewhere:9000")
    monkeypatch.setenv("COSMORAMA_API_KEY", "a-key")
    assert ask() == ("http://elsewhere:9000/v1/jobs/x", "Bearer a-key")


def test_waiting_is_said_once_and_many_clients_do_not_come_back_together(caplog: pytest.LogCaptureFixture) -> None:
    answers = [httpx.Response(503, text="starting"), httpx.Response(503, text="starting")]

    def handler(request: httpx.Request) -> httpx.Response:
        return answers.pop() if answers else httpx.Response(202, json=JOB)

    with caplog.at_level(logging.WARNING, "cosmorama.client"):
        against(handler, patience_s=60).submit("a ball")
    assert caplog.messages == ["http://test answers 503: trying again for up to 60 s"]
    first: set[float] = set()
    waits: list[float] = []

    async def wait(wait_s: float) -> None:
        waits.append(wait_s)

    async def fail() -> None:
        raise ServerUnreachableError("nobody there")

    for _ in range(8):
        waits.clear()
        with pytest.raises(ServerUnreachableError):
            asyncio.run(
                attempts(httpx.URL("http://test"), lambda: 60).copy(sleep=wait, stop=stop_after_attempt(4))(fail)
            )
        assert all(0.4 <= wait_s / 2**i <= 0.6 for i, wait_s in enumerate(waits))
        first.add(waits[0])
    assert len(first) == 8


GIVES_UP = """
import os, signal, threading, httpx
from tests.test_client import JOB, against, queued_for_ever

signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs the tests in the background ignores it

def handler(request):
    if request.url.path.endswith("/cancel"):
        print("cancelled", flush=True)
        return httpx.Response(200, json={**JOB, "state": "cancelled"})
    if request.url.path.endswith("/events"):
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    return queued_for_ever(request)

try:
    against(handler).generate("a ball")  # the client is never closed, which does not keep the program alive
except KeyboardInterrupt:
    print("given up")
"""


def test_giving_up_cancels_the_job_even_in_the_middle_of_a_silence() -> None:
    cancelled: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/cancel"):
            cancelled.append(request.url.path)
            return httpx.Response(200, json={**JOB, "state": "cancelled"})
        return queued_for_ever(request)

    async def main() -> None:
        client = cosmorama.AsyncClient("http://test", transport=httpx.MockTransport(handler))
        async with asyncio.timeout(0.3):
            await client.generate("a ball")

    with pytest.raises(TimeoutError):
        asyncio.run(main())
    assert len(cancelled) == 1
    run = subprocess.run(
        [sys.executable, "-c", GIVES_UP], capture_output=True, text=True, timeout=120, cwd=ROOT, check=False
    )
    assert run.stdout.split() == ["cancelled", "given", "up"], run.stderr


def test_threads_share_a_client() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={**JOB, "id": request.url.path.rsplit("/", 1)[-1]})

    with against(handler) as client, ThreadPoolExecutor(8) as pool:
        assert [job.id for job in pool.map(client.job, map(str, range(64)))] == list(map(str, range(64)))
        client.close()
