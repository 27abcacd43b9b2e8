"""Health, metadata, metrics, documentation and API keys."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from cosmorama import __version__
from cosmorama.api.app import create_app
from cosmorama.settings import Settings
from tests.api.conftest import BODY, Server


@pytest.mark.parametrize(("path", "status"), [("live", "live"), ("ready", "ready")])
def test_health_has_every_field_that_clients_look_at(path: str, status: str, server: Server) -> None:
    body = server.client.get(f"/v1/health/{path}").json()
    assert body["status"] == status
    assert body["message"] == f"Service is {status}"
    assert body["object"] == "health.response"
    assert body["description"]


def test_what_the_server_says_of_itself(server: Server) -> None:
    get = server.client.get
    assert get("/v1/version").json()["release"] == __version__
    assert "api" in get("/v1/version").json()
    about = get("/v1/metadata").json()
    assert about["inference_endpoint"] == "/v1/infer"
    assert about["model_type"] == "generator"
    assert about["checkpoint"] == "default"
    models = get("/v1/models").json()
    assert models["object"] == "list"
    assert models["data"][0]["object"] == "model"
    assert about["model_variant"] == models["data"][0]["id"] == get("/v1/capabilities").json()["model"]
    assert "profiles" in get("/v1/manifest").json()["manifest_file"]
    assert get("/v1/license").json()["name"] == "Apache-2.0"


def test_capabilities_say_what_may_be_asked(server: Server) -> None:
    capabilities = server.client.get("/v1/capabilities").json()
    assert {"width": 1280, "height": 704} in capabilities["sizes"]
    assert capabilities["steps"] == {"low": 1, "high": 50}
    assert "text2world" in capabilities["modes"]


def test_metrics_have_the_documented_names_and_ours(server: Server) -> None:
    before = server.metric("request_count_total")
    assert server.infer(**BODY).status_code == 200
    answer = server.client.get("/v1/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    names = set(re.findall(r"^([a-zA-Z_]+)", answer.text, re.MULTILINE))
    assert names >= {
        "request_count_total",
        "python_gc_objects_collected_total",
        "python_gc_objects_uncollectable_total",
        "python_gc_collections_total",
        "process_virtual_memory_bytes",
        "process_resident_memory_bytes",
        "process_cpu_seconds_total",
        "process_start_time_seconds",
        "process_open_fds",
        "cosmorama_worker_process_resident_memory_bytes",
        "cosmorama_ready",
        "cosmorama_queue_depth",
        "cosmorama_active_generations",
        "cosmorama_worker_restarts_total",
        "cosmorama_stage_seconds_sum",
        "cosmorama_answers_total",
    }
    assert server.metric("request_count_total") == before + 1
    assert 'stage="denoise"' in answer.text


def ask_with_keys(path: str, *authorizations: str | None) -> list[httpx.Response]:
    async def ask() -> list[httpx.Response]:
        app = create_app(Settings(api_keys=(SecretStr("first-key"), SecretStr("second-key"))))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            headers = [{b"Authorization": value.encode()} if value is not None else {} for value in authorizations]
            return [await client.get(path, headers=header) for header in headers]

    return asyncio.run(ask())


@pytest.mark.parametrize("path", ["/v1/version", "/v1/infer", "/v1/jobs", "/nowhere"])
def test_without_a_key_nothing_is_told(path: str) -> None:
    wrong = (None, "", "Bearer", "Bearer wrong", "Bearer first-key2", "Basic first-key", "first-key", "Bearer ключ")
    for answer in ask_with_keys(path, *wrong):
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == 401
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/"])
def test_pages_that_ask_for_the_key_open_without_one(path: str) -> None:
    (answer,) = ask_with_keys(path, None)
    assert answer.status_code == 200
    assert "first-key" not in answer.text


def test_any_of_the_keys_lets_in() -> None:
    answers = ask_with_keys("/v1/version", "Bearer first-key", "Bearer second-key", "bearer first-key")
    assert [answer.status_code for answer in answers] == [200, 200, 200]


def test_liveness_needs_no_key() -> None:
    [answer] = ask_with_keys("/v1/health/live", None)
    assert answer.status_code == 200


def test_the_http_process_does_not_import_torch(server: Server) -> None:
    assert "libtorch" not in Path(f"/proc/{server.process.pid}/maps").read_text()


def test_web_pages_of_other_origins_are_let_in_only_when_named() -> None:
    def ask(origins: tuple[str, ...]) -> httpx.Response:
        async def preflight() -> httpx.Response:
            app = create_app(Settings(cors_origins=origins, api_keys=(SecretStr("key"),)))
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
                headers = {"Origin": "https://studio.example", "Access-Control-Request-Method": "POST"}
                return await client.options("/v1/infer", headers=headers)

        return asyncio.run(preflight())

    assert "access-control-allow-origin" not in ask(()).headers
    assert "access-control-allow-origin" not in ask(("https://other.example",)).headers
    assert ask(("https://studio.example",)).headers["access-control-allow-origin"] == "https://studio.example"


def test_the_documentation_page_loads_nothing_from_elsewhere() -> None:
    async def ask() -> tuple[str, list[httpx.Response]]:
        app = create_app(Settings())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            page = (await client.get("/docs")).text
            found = re.findall(r'(?:src|href)="([^"]+)"', page)
            return page, [await client.get(path) for path in found]

    page, loaded = asyncio.run(ask())
    assert "://" not in page
    assert len(loaded) >= 2
    assert {answer.status_code for answer in loaded} == {200}


def test_a_key_may_have_a_name() -> None:
    async def ask() -> httpx.Response:
        app = create_app(Settings(api_keys=(SecretStr("studio:first-key"),)))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.get("/v1/version", headers={"Authorization": "Bearer first-key"})

    assert asyncio.run(ask()).status_code == 200
