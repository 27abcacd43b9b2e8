"""What the API's description promises is what the server answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from cosmorama.api import openapi
from cosmorama.api.app import create_app
from cosmorama.errors import WorkerError
from cosmorama.jobs.model import JobPage, JobStatus
from cosmorama.settings import Settings
from tests.api.fake_app import run, serving

BODY: dict[str, Any] = {"dialect": "cosmorama", "prompt": "a red ball", "steps": 1, "frames": 9}


def test_jobs_and_their_errors_are_as_described(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path, max_active=1) as server:
            client = server.client
            accepted = JobStatus.model_validate_json((await client.post("/v1/jobs", json=BODY)).content, strict=True)
            server.supervisor.fail = None
            await server.jobs.wait(accepted.id)
            server.supervisor.fail = WorkerError("no luck")
            failed = (await client.post("/v1/jobs", json=BODY | {"metadata": {"a": "b"}})).json()["id"]
            await server.jobs.wait(failed)
            for name, state in ((accepted.id, "succeeded"), (failed, "failed")):
                answer = (await client.get(f"/v1/jobs/{name}")).json()
                assert JobStatus.model_validate(answer).state == state
            JobPage.model_validate((await client.get("/v1/jobs?limit=1")).json())
            JobStatus.model_validate((await client.post(f"/v1/jobs/{failed}/cancel")).json())
            openapi.Deleted.model_validate((await client.delete(f"/v1/jobs/{failed}")).json())
            for refused in (
                await client.get("/v1/jobs/none"),
                await client.post("/v1/jobs", json={"prompt": 1}),
                await client.get("/v1/jobs?limit=0"),
                await client.get("/nowhere"),
            ):
                openapi.Error.model_validate(refused.json(), strict=True)

    run(test)


def test_videos_and_their_errors_are_as_described(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as server:
            client = server.client
            video = openapi.Video.model_validate((await client.post("/v1/videos", json={"prompt": "a ball"})).json())
            await server.jobs.wait(video.id)
            assert openapi.Video.model_validate((await client.get(f"/v1/videos/{video.id}")).json()).progress == 100
            openapi.VideoList.model_validate((await client.get("/v1/videos")).json())
            openapi.Deleted.model_validate((await client.delete(f"/v1/videos/{video.id}")).json())
            for refused in (await client.get("/v1/videos/none"), await client.post("/v1/videos", json={"prompt": 1})):
                openapi.VideoError.model_validate(refused.json(), strict=True)

    run(test)


@pytest.mark.parametrize("keys", [(), (SecretStr("key"),)])
def test_the_description_is_whole(keys: tuple[SecretStr, ...], tmp_path: Path) -> None:
    document = create_app(Settings(state_dir=tmp_path, api_keys=keys)).openapi()
    schemas = document["components"]["schemas"]
    text = json.dumps(document)
    assert not [ref for ref in text.split("#/components/schemas/")[1:] if ref.partition('"')[0] not in schemas]
    assert "#/$defs/" not in text
    assert "HTTPValidationError" not in text
    assert set(openapi.ANSWERS) <= {(path, method) for path, each in document["paths"].items() for method in each}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            described = {status for status in operation["responses"] if status[0] in "45"}
            assert path in ("/v1/health/live", "/v1/health/ready", "/health") or "503" in described
            assert ("401" in described) == bool(keys) or path in ("/v1/health/live", "/v1/health/ready", "/health")
    assert ("securitySchemes" in document["components"]) == bool(keys)
    form = document["paths"]["/v1/videos"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["properties"]["input_reference"]["format"] == "binary"


ODD: dict[str, dict[str, Any]] = {
    "nothing": {},
    "no media type": {"content": b"x"},
    "another media type": {"content": b"x", "headers": {"Content-Type": "text/csv"}},
    "another encoding": {"json": {}, "headers": {"Content-Encoding": "br"}},
    "no JSON": {"content": b"{", "headers": {"Content-Type": "application/json"}},
    "a cut form": {"content": b"--x", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
    "an empty object": {"json": {}},
    "a list": {"json": [1]},
    "unknown fields": {
        "json": {"promt": "a", "prompt": 1, "video_id": "none", "video": {"id": "none"}, "jobs": ["none"]}
    },
}


def test_whatever_is_asked_the_status_of_the_answer_is_described(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as server:
            client, document = server.client, (await server.client.get("/openapi.json")).json()
            jobs = [(await client.post("/v1/jobs", json=BODY)).json()["id"] for _ in range(2)]
            for job_id in jobs:
                await server.jobs.wait(job_id)
            await client.delete(f"/v1/jobs/{jobs[1]}")
            for path, operations in document["paths"].items():
                for method, operation in operations.items():
                    if path.endswith("/events") or method == "delete":
                        continue
                    names = [one["name"] for one in operation.get("parameters", ()) if one["in"] == "query"]
                    queries: list[dict[str, str]] = [{}, *({name: odd} for name in names for odd in ("", "ø", "-1"))]
                    for job_id in ("none", *jobs) if "{" in path else ("",):
                        url = path.format(job_id=job_id, video_id=job_id, where="0", name=job_id)
                        for sent in ODD.values() if method in ("post", "patch") else ({},):
                            for query in queries:
                                answer = await client.request(method, url, params=query, **sent)
                                assert str(answer.status_code) in operation["responses"], (method, url, query, sent)

    run(test)


def test_the_documentation_opens_without_a_key_and_nothing_else_does(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path, api_keys=("key",)) as server:
            page = await server.client.get("/docs")
            assert page.status_code == 200
            scripts = [part.partition('"')[0] for part in page.text.split('src="')[1:]]
            for path in ("/openapi.json", *scripts):
                assert (await server.client.get(path)).status_code == 200, path
            for path in ("/v1/jobs", "/v1/metrics", "/docsx", "/openapi.json/", "/static-offline-docs/../v1/jobs"):
                assert (await server.client.get(path)).status_code in (401, 404), path

    run(test)
