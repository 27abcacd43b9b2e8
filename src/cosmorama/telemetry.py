"""Traces with OpenTelemetry: a span per request and per job, and one per stage of a job.

Off unless `COSMORAMA_OTEL` (upstream: `NIM_ENABLE_OTEL`) is set; the library, the extra `otel`, is imported only then.
Where spans go is what the standard variables say: `OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_SERVICE_NAME`,
`OTEL_TRACES_EXPORTER` (otlp, console or none), `OTEL_TRACES_SAMPLER` and the rest, which the SDK reads itself.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cosmorama.engine.outcome import Outcome
from cosmorama.errors import CosmoramaError
from cosmorama.jobs.channel import Observer
from cosmorama.jobs.model import Job

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

WORK = ("prepare", "encode", "denoise", "decode")
"""Stages that a job goes through, in this order; `write` is interleaved with `decode`."""


def tracer_provider() -> TracerProvider:
    """The provider that the environment describes.

    Raises:
        CosmoramaError: the extra is not installed, or an exporter is named that is not known.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
    except ImportError as error:
        raise CosmoramaError(f"traces need the extra 'otel': pip install '.[otel]' ({error})") from None
    # What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say wins over this.
    named = Resource({SERVICE_NAME: os.environ.get("OTEL_SERVICE_NAME", "cosmorama")})
    provider = TracerProvider(resource=Resource.create().merge(named))
    match os.environ.get("OTEL_TRACES_EXPORTER", "otlp"):
        case "otlp":
            provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        case "console":
            provider.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter()))
        case "none":
            pass
        case other:
            raise CosmoramaError(f"OTEL_TRACES_EXPORTER: {other!r} is not accepted; expected otlp, console or none")
    return provider


@dataclass(slots=True)
class _Trace:
    """A job that is not over: its span, the stages it went through and when each began (nanoseconds of the epoch)."""

    span: Span
    stages: list[tuple[str, int]]
    work_s: dict[str, float] = field(default_factory=dict)


class Tracing(Observer):
    """Makes the spans of jobs.

    Stages of different jobs are interleaved on one device, and writing is interleaved with decoding: a stage's span
    covers the time from its first unit of work to the next stage's, and its attribute `cosmorama.work_s` says how many
    seconds of work there were in it.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self.provider = provider
        self._tracer = provider.get_tracer("cosmorama")
        self._traces: dict[str, _Trace] = {}

    def close(self) -> None:
        """Send what is left."""
        self.provider.shutdown()

    def accepted(self, job: Job) -> None:
        """Begin the job's span, within that of the request that brought it."""
        self._begin(job)

    def started(self, job: Job) -> None:
        """Begin a span here for a job that another server accepted, or this one before it was started anew."""
        if job.id not in self._traces:
            self._begin(job)

    def advanced(self, job: Job) -> None:
        """Note when a stage begins."""
        trace, stage = self._traces.get(job.id), job.progress.stage
        if trace is not None and stage in WORK and stage != trace.stages[-1][0]:
            trace.stages.append((stage, time.time_ns()))

    def made(self, job: Job, outcome: Outcome) -> None:
        """Note how much work was in each stage; what is left is to store the clip."""
        trace = self._traces.get(job.id)
        if trace is not None:
            trace.work_s = outcome.timings
            trace.stages.append(("publish", time.time_ns()))

    def ended(self, job: Job) -> None:
        """Make the spans of the stages, and end the job's."""
        from opentelemetry.trace import Status, StatusCode

        trace = self._traces.pop(job.id, None)
        if trace is None:
            return
        now = time.time_ns()
        ends = [begin for _, begin in trace.stages[1:]] + [now]
        for (stage, begin), end in zip(trace.stages, ends, strict=True):
            self._stage(trace, stage, begin, end)
            if stage == "decode" and "write" in trace.work_s:
                self._stage(trace, "write", begin, end)
        trace.span.set_attribute("cosmorama.job.state", job.state)
        if job.error is not None and job.error.status >= 500:
            trace.span.set_status(Status(StatusCode.ERROR, job.error.message))
        trace.span.end(now)

    def left(self, job_id: str) -> None:
        """End the span of a job that another server ended: its own spans say how."""
        trace = self._traces.pop(job_id, None)
        if trace is not None:
            trace.span.set_attribute("cosmorama.job.elsewhere", True)
            trace.span.end()

    def _begin(self, job: Job) -> None:
        # On the clock of all other spans of this process, which is not that of the job store.
        request, begin = job.request, time.time_ns()
        attributes: dict[str, str | int] = {
            "cosmorama.job.id": job.id,
            "cosmorama.model": job.model,
            "cosmorama.mode": request.mode,
            "cosmorama.steps": request.steps,
            "cosmorama.width": request.width,
            "cosmorama.height": request.height,
            "cosmorama.frames": request.frames,
        }
        span = self._tracer.start_span("job", attributes=attributes, start_time=begin)
        self._traces[job.id] = _Trace(span, [("queue", begin)])

    def _stage(self, trace: _Trace, name: str, begin: int, end: int) -> None:
        from opentelemetry.trace import set_span_in_context

        span = self._tracer.start_span(name, context=set_span_in_context(trace.span), start_time=begin)
        if name in trace.work_s:
            span.set_attribute("cosmorama.work_s", trace.work_s[name])
        span.end(end)


def requests_telemetry(provider: TracerProvider | None, quiet: Collection[str]) -> dict[str, Any]:
    """FastAPI's settings for spans of HTTP requests: none for the paths in `quiet`, none at all without a provider."""
    if provider is None:
        return {"tracing": False, "metrics": False, "logs": False}
    return {
        "tracer_provider": provider,
        "operation_spans": False,
        "metrics": False,
        "logs": False,
        "exclude": lambda scope: scope["path"] in quiet,
    }
