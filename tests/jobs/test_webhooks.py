"""Webhooks as a receiver meets them: signed, repeated until taken, never sent to where they must not go."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpcore
import pytest
from pydantic import SecretStr
from standardwebhooks import Webhook, WebhookVerificationError

from cosmorama.errors import InvalidRequestError
from cosmorama.jobs import webhooks
from cosmorama.jobs.model import Job
from cosmorama.jobs.service import Jobs
from cosmorama.media import fetch
from cosmorama.settings import Settings
from tests.jobs.fake import REQUEST, FakeSupervisor, pool_of

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@dataclass
class Receiver:
    """Notes what is delivered, and answers with `answers` in turn, the last one for ever."""

    url: str
    answers: list[int] = field(default_factory=lambda: [204])
    deliveries: list[tuple[float, dict[str, str], bytes]] = field(default_factory=list)

    async def received(self, count: int) -> None:
        while len(self.deliveries) < count:
            await asyncio.sleep(0.01)

    def verified(self) -> list[dict[str, Any]]:
        """The messages, their signatures checked by the standard's own library."""
        return [Webhook(SECRET).verify(body, headers) for _, headers, body in self.deliveries]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            found.deliveries.append((time.monotonic(), headers, body))
            self.send_response(found.answers.pop(0) if len(found.answers) > 1 else found.answers[0])
            self.send_header("Location", f"{found.url}/elsewhere")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        found = Receiver(f"http://127.0.0.1:{http.server_port}/done?for=me")
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield found
        http.shutdown()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "RETRIES_S", (0.05, 0.2, 0.4))
    monkeypatch.setattr(webhooks, "LOOK_EVERY_S", 0.02)


def with_jobs(
    folder: Path, test: Callable[[Jobs, FakeSupervisor], Awaitable[None]], *, allow_private: bool = True
) -> None:
    """Run a test on a server with its state in `folder`."""

    async def life() -> None:
        settings = Settings(
            state_dir=folder, lease_s=1, webhook_secret=SecretStr(SECRET), allow_private_urls=allow_private
        )
        supervisor = FakeSupervisor(settings)
        jobs = Jobs(settings, pool_of(supervisor))
        await jobs.start()
        try:
            async with asyncio.timeout(120):
                await test(jobs, supervisor)
        finally:
            await jobs.stop()
            jobs.close()

    asyncio.run(life())


async def finished(jobs: Jobs, url: str, **options: Any) -> Job:
    job = await jobs.submit(REQUEST, dialect="predict1", webhook_url=url, **options)
    return await jobs.wait(job.id)


async def settled(jobs: Jobs, job: Job) -> None:
    """Nothing is left to be sent for this job."""
    with jobs._store.database.read() as connection:
        while True:
            due = connection.exec_driver_sql("select webhook_due from cosmorama_jobs where id = ?", (job.id,)).scalar()
            connection.rollback()
            if due is None:
                return
            await asyncio.sleep(0.02)


def test_a_finished_job_is_told_once_and_signed(receiver: Receiver, tmp_path: Path) -> None:
    async def test(jobs: Jobs, supervisor: FakeSupervisor) -> None:
        job = await finished(jobs, receiver.url, metadata={"order": "17"})
        await settled(jobs, job)
        await asyncio.sleep(0.2)
        [(_, headers, body)] = receiver.deliveries
        [message] = receiver.verified()
        assert message["type"] == "job.succeeded"
        assert message["data"] == json.loads(json.dumps(job.summary()))
        assert message["data"]["metadata"] == {"order": "17"}
        assert headers["webhook-id"] == f"msg_{job.id}"
        assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60
        assert headers["content-type"] == "application/json"
        with pytest.raises(WebhookVerificationError):
            Webhook(SECRET).verify(body.replace(b"succeeded", b"failed"), headers)

    with_jobs(tmp_path, test)


def test_failure_and_cancelling_are_told_too(receiver: Receiver, tmp_path: Path) -> None:
    async def test(jobs: Jobs, supervisor: FakeSupervisor) -> None:
        supervisor.fail = RuntimeError("a secret")
        await finished(jobs, receiver.url)
        await receiver.received(1)
        supervisor.fail = None
        supervisor.gate.clear()
        job = await jobs.submit(REQUEST, dialect="predict1", webhook_url=receiver.url)
        await jobs.cancel(job.id)
        await receiver.received(2)
        failed, cancelled = receiver.verified()
        assert (failed["type"], failed["data"]["error"]["code"]) == ("job.failed", 500)
        assert "secret" not in str(failed)
        assert (cancelled["type"], cancelled["data"]["error"]["code"]) == ("job.cancelled", 499)

    with_jobs(tmp_path, test)


@pytest.mark.parametrize("refusal", [500, 302])
def test_what_is_not_taken_comes_again_later_and_later(refusal: int, receiver: Receiver, tmp_path: Path) -> None:
    receiver.answers = [refusal, refusal, 200]

    async def test(jobs: Jobs, supervisor: FakeSupervisor) -> None:
        job = await finished(jobs, receiver.url)
        await settled(jobs, job)
        times_s = [at for at, _, _ in receiver.deliveries]
        # A redirect is a failure, and is not followed.
        assert len(times_s) == 3
        assert times_s[1] - times_s[0] >= 0.9 * 0.05
        assert times_s[2] - times_s[1] >= 0.9 * 0.2
        assert {headers["webhook-id"] for _, headers, _ in receiver.deliveries} == {f"msg_{job.id}"}
        assert len(receiver.verified()) == 3

    with_jobs(tmp_path, test)


@pytest.mark.parametrize(("answer", "times"), [(503, 4), (410, 1)])
def test_it_is_given_up_in_the_end(answer: int, times: int, receiver: Receiver, tmp_path: Path) -> None:
    receiver.answers = [answer]

    async def test(jobs: Jobs, supervisor: FakeSupervisor) -> None:
        job = await finished(jobs, receiver.url)
        await settled(jobs, job)
        assert len(receiver.deliveries) == times
        assert (await jobs.get(job.id)).state == "succeeded"

    with_jobs(tmp_path, test)


def test_a_delivery_outlives_a_restart(receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    receiver.answers = [500, 200]
    monkeypatch.setattr(webhooks, "RETRIES_S", (0.5,))
    made: list[Job] = []

    async def before(jobs: Jobs, supervisor: FakeSupervisor) -> None:
        made.append(await finished(jobs, receiver.url))
        await receiver.received(1)

    async def after(jobs: Jobs, supervisor: FakeSupervisor) -> None:
        await settled(jobs, made[0])
        assert len(receiver.deliveries) == 2
        assert [message["data"]["id"] for message in receiver.verified()] == [made[0].id] * 2

    with_jobs(tmp_path, before)
    with_jobs(tmp_path, after)


def test_who_has_most_for_a_receiver_does_not_keep_it_from_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two owners with one receiver, the one who holds none of its places gets the next."""
    begun, answered = list[str](), list[asyncio.Event]()

    async def post(self: webhooks.Webhooks, url: str, job: Job) -> None:
        begun.append(job.owner)
        answered.append(asyncio.Event())
        await answered[-1].wait()

    monkeypatch.setattr(webhooks.Webhooks, "_post", post)

    async def test(jobs: Jobs, supervisor: FakeSupervisor) -> None:
        for owner, count in (("a", 6), ("b", 2)):
            for _ in range(count):
                await finished(jobs, "http://127.0.0.1/", owner=owner)
        for number in range(8):
            while len(begun) < min(number + webhooks.PER_HOST, 8):
                await asyncio.sleep(0.01)
            answered[number].set()
        assert "".join(begun) == "aababaaa"

    with_jobs(tmp_path, test)


def test_private_addresses_are_not_connected_to(
    receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    port = receiver.url.split(":")[2].partition("/")[0]
    connected: list[str] = []
    connect_to = httpcore.AnyIOBackend.connect_tcp

    async def noting(self: httpcore.AnyIOBackend, address: str, *rest: Any, **more: Any) -> Any:
        connected.append(address)
        return await connect_to(self, address, *rest, **more)

    monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", noting)
    monkeypatch.setattr(webhooks, "RETRIES_S", ())
    leads_to = {"one.example": ["127.0.0.1"], "two.example": ["8.8.8.8", "169.254.169.254"]}

    async def resolved(host: str, port: int) -> list[str]:
        return leads_to[host]

    monkeypatch.setattr(fetch, "_resolved", resolved)

    async def test(jobs: Jobs, supervisor: FakeSupervisor) -> None:
        hosts = ("one.example", "two.example")
        for job in await asyncio.gather(*(finished(jobs, f"http://{host}:{port}/") for host in hosts)):
            await settled(jobs, job)
        told = [record.getMessage() for record in caplog.records if "webhook" in record.getMessage()]
        assert len(told) == len(hosts)
        assert all("not on the public internet" in line for line in told), told
        assert connected == []
        assert receiver.deliveries == []

    with_jobs(tmp_path, test, allow_private=False)


def test_what_can_never_be_delivered_to_is_refused_at_once(tmp_path: Path) -> None:
    async def test(jobs: Jobs, supervisor: FakeSupervisor) -> None:
        for url in (
            "ftp://example.com/",
            "file:///etc/passwd",
            "example.com",
            "",
            "http://",
            "http://me:secret@example.com/",
            "http://[::1",
            "http://[",
            "http://example.com:99999/",
            "http://" + "a" * 64 + "é.com/",
            "http://example.com/" + "a" * 8192,
            "http://a b/",
            "http://$HOST/",
            "http://%00/",
            "http://a..b/",
            "http://x:0/",
            "http://" + "a." * 150 + "com/",
        ):
            with pytest.raises(InvalidRequestError, match="webhook_url"):
                await jobs.submit(REQUEST, dialect="predict1", webhook_url=url)
        assert (await jobs.list()).jobs == ()

    with_jobs(tmp_path, test)


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "LOCALHOST", "a.localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1"),
        *("127.1", "0", "0.0.0.0", "169.254.169.254", "100.64.0.1", "10.0.0.1", "[fd00::1]", "[64:ff9b::7f00:1]"),
        "[2002:7f00:1::]",
    ],
)
def test_an_address_that_is_not_public_is_refused_at_once(host: str) -> None:
    webhooks.check_url(f"http://{host}:8000/", allow_private=True)
    with pytest.raises(InvalidRequestError, match=r"webhook_url.*public internet"):
        webhooks.check_url(f"http://{host}:8000/", allow_private=False)
