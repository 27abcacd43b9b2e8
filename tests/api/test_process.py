"""The server while it works: health beside a generation, clients that leave, a worker that is killed, a full queue."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from statistics import median

import httpx

from cosmorama.api.app import create_app
from cosmorama.settings import Settings
from tests.api.conftest import BODY, LONG, MAX_ACTIVE, MAX_QUEUE, SMALL, Server

ACTIVE = "cosmorama_active_generations"
QUEUED = "cosmorama_queue_depth"


class Leaver:
    """A client that sends a request and goes away without waiting for the answer."""

    def __init__(self, server: Server) -> None:
        url = server.client.base_url
        self._socket = socket.create_connection((url.host, url.port or 80))
        body = json.dumps(LONG).encode()
        head = f"POST /v1/infer HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        self._socket.sendall(head.encode() + b"\r\n\r\n" + body)

    def leave(self) -> None:
        self._socket.close()


def test_headers_that_do_not_end_are_refused(server: Server) -> None:
    url = server.client.base_url
    with socket.create_connection((url.host, url.port or 80), timeout=60) as endless:
        endless.sendall(b"GET /v1/health/live HTTP/1.1\r\nHost: x\r\nX-Long: ")
        sent = 0
        try:
            while sent < 10_000_000:
                endless.sendall(b"a" * 65_536)
                sent += 65_536
            answered = b""
        except OSError:  # it does not read on
            answered = b"refused"
        with suppress(OSError):
            answered += endless.recv(100)
    assert answered.startswith((b"refused", b"HTTP/1.1 400"))
    assert server.client.get("/v1/health/live").status_code == 200


def test_who_asks_for_a_websocket_is_answered_in_http(server: Server) -> None:
    """What speaks WebSocket would write the headers, keys among them, into a log of level debug."""
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    answer = server.client.get("/v1/jobs", headers=upgrade | {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="})
    assert (answer.status_code, answer.json()["object"]) == (200, "list")


def test_health_answers_at_once_during_a_generation(server: Server) -> None:
    leaver = Leaver(server)
    server.wait_until(ACTIVE, 1)
    times_s = []
    for _ in range(30):
        start = time.perf_counter()
        assert server.client.get("/v1/health/ready").status_code == 200
        times_s.append(time.perf_counter() - start)
        time.sleep(0.03)
    assert server.metric(ACTIVE) == 1
    leaver.leave()
    server.wait_until(ACTIVE, 0)
    print(f"health: median {median(times_s) * 1e3:.1f} ms, worst {max(times_s) * 1e3:.1f} ms")
    # The slowest of them tell of whatever else this machine was doing.
    assert median(times_s) < 0.05


def test_client_that_leaves_frees_the_worker(server: Server) -> None:
    start = time.perf_counter()
    answer = server.infer(**LONG | {"steps": 1})
    assert answer.status_code == 200, answer.text
    one_step_s = time.perf_counter() - start
    leavers = [Leaver(server), Leaver(server)]
    server.wait_until(ACTIVE, 2)
    for leaver in leavers:
        leaver.leave()
    # Two may be at it, and this machine has more to do; all fifty steps would take far longer.
    assert server.wait_until(ACTIVE, 0) < 3 * one_step_s
    assert server.infer(**BODY).status_code == 200
    server.wait_until_clean()


def test_full_queue_is_refused_with_a_time_to_come_again(server: Server) -> None:
    leavers = [Leaver(server) for _ in range(MAX_ACTIVE + MAX_QUEUE)]
    server.wait_until(ACTIVE, MAX_ACTIVE)
    server.wait_until(QUEUED, MAX_QUEUE)
    refused = server.infer(**BODY)
    assert refused.status_code == 429
    assert refused.json()["error"]["type"] == "queue_full"
    assert int(refused.headers["retry-after"]) >= 1
    for leaver in leavers:
        leaver.leave()
    server.wait_until(ACTIVE, 0)
    server.wait_until(QUEUED, 0)


def test_killed_worker_loses_nothing(server: Server) -> None:
    restarts = server.metric("cosmorama_worker_restarts_total")
    body = BODY | {"steps": 12, "video_params": {**SMALL, "frames_count": 25}}
    expected = server.infer(**body).json()
    with ThreadPoolExecutor(3) as pool:
        running: list[Future[httpx.Response]] = [pool.submit(server.infer, **body) for _ in range(MAX_ACTIVE)]
        server.wait_until(ACTIVE, MAX_ACTIVE)
        server.kill_worker()
        server.wait_until("cosmorama_ready", 0)
        assert server.client.get("/v1/health/live").status_code == 200
        assert server.client.get("/v1/health/ready").status_code == 503
        assert server.infer(**BODY).status_code == 503
        for begun_again in running:
            assert begun_again.result().json() == expected
    server.wait_until_ready()
    assert server.metric("cosmorama_worker_restarts_total") == restarts + 1
    server.wait_until_clean()


def test_model_that_cannot_be_loaded_is_told_by_readiness() -> None:
    async def ask() -> tuple[httpx.Response, httpx.Response, httpx.Response]:
        app = create_app(Settings(model="no-such-model"))
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
        ):
            for _ in range(600):
                ready = await client.get("/v1/health/ready")
                if "no-such-model" in ready.text:
                    break
                await asyncio.sleep(0.05)
            return ready, await client.get("/v1/health/live"), await client.post("/v1/infer", json=BODY)

    ready, live, infer = asyncio.run(ask())
    assert ready.status_code == 503
    assert "no-such-model" in ready.json()["message"]
    assert live.status_code == 200
    assert infer.status_code == 503
    assert int(infer.headers["retry-after"]) >= 1
