"""Traces and logs, as an operator reads them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import cosmorama
from cosmorama.api import app as application
from cosmorama.errors import CosmoramaError
from cosmorama.settings import Settings
from cosmorama.telemetry import tracer_provider
from tests.serving import running_server

BODY = {
    "prompt": "a red ball",
    "seed": 1,
    "steps": 2,
    "video_params": {"width": 960, "height": 704, "frames_count": 1},
}
TRACE = "0af7651916cd43dd8448eb211c80319c"


def test_a_request_is_one_trace_with_a_span_per_stage(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(application, "tracer_provider", lambda: provider)

    async def ask() -> httpx.Response:
        settings = Settings(model=str(tiny_checkpoint), otel=True, state_dir=tmp_path, threads=1)
        app = application.create_app(settings)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", timeout=120) as client,
        ):
            while (await client.get("/v1/health/ready")).status_code != 200:
                await asyncio.sleep(0.1)
            return await client.post("/v1/infer", json=BODY, headers={"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"})

    assert asyncio.run(ask()).status_code == 200
    spans: dict[str, ReadableSpan] = {span.name: span for span in exporter.get_finished_spans()}
    assert {format(span.context.trace_id, "032x") for span in spans.values()} == {TRACE}
    request, job = spans["POST /v1/infer"], spans["job"]
    assert request.attributes is not None
    assert request.attributes["http.response.status_code"] == 200
    assert job.parent is not None
    assert job.parent.span_id == request.context.span_id
    assert job.attributes is not None
    assert str(job.attributes["cosmorama.job.id"]).startswith("job_")
    assert job.attributes["cosmorama.job.state"] == "succeeded"
    stages = [spans[name] for name in ("queue", "prepare", "encode", "denoise", "decode", "write", "publish")]
    assert all(stage.parent is not None and stage.parent.span_id == job.context.span_id for stage in stages)
    begins = [stage.start_time or 0 for stage in stages]
    assert begins == sorted(begins)
    for stage in stages[1:-1]:
        assert stage.attributes is not None
        assert float(str(stage.attributes["cosmorama.work_s"])) > 0
    assert set(spans) == {"POST /v1/infer", "job"} | {stage.name for stage in stages}


def test_the_environment_says_where_traces_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "worlds")
    assert tracer_provider().resource.attributes["service.name"] == "worlds"
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "pigeon")
    with pytest.raises(CosmoramaError, match="pigeon"):
        tracer_provider()


def test_a_server_imports_neither_it_while_it_is_off_nor_what_only_who_generates_needs() -> None:
    program = (
        "import sys; from cosmorama.api.app import create_app; create_app();"
        "heavy = ('opentelemetry.sdk', 'opentelemetry.exporter', 'pythonjsonlogger', 'torch', 'numpy', 'PIL', 'av', "
        "'cv2');"
        "print([name for name in sys.modules if name.startswith(heavy)])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout.strip() == b"[]"


def test_json_logs_name_the_job_in_both_processes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    settings = {"NIM_LOGGING_JSONL": "1", "COSMORAMA_LOG_LEVEL": "debug"}
    with running_server(tiny_checkpoint, tmp_path, **settings) as server, cosmorama.Client(server.url) as client:
        clip = client.generate("a red ball", steps=1, width=960, height=704, frames=1)
    records = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert all(record.keys() >= {"time", "level", "logger", "message", "process", "job"} for record in records)
    about = {record["process"] for record in records if record["job"] == clip.job.id}
    assert about == {"server", "worker"}
    assert any(record["logger"].startswith("uvicorn") for record in records)
