"""What the server measures of itself, in Prometheus text.

Names without a prefix are those documented for NIM for Cosmos; ours begin with `cosmorama_`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, GCCollector, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cosmorama.engine.outcome import Outcome
from cosmorama.engine.pool import ModelPool
from cosmorama.errors import FramesRefusedError, PromptRefusedError
from cosmorama.jobs.channel import Observer
from cosmorama.jobs.model import Job

_SECONDS = (0.01, 0.05, 0.25, 1, 5, 15, 30, 60, 120, 300, 600, 1800)
_STEPS_PER_SECOND = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128)
_PASSING = {
    "prompts_passed": ("prompt", "passed"),
    "clips_passed": ("frames", "passed"),
    "clips_altered": ("frames", "altered"),
}
"""What guardrails decided, by the names in `Outcome.counts`."""
_REFUSALS = {PromptRefusedError.kind: ("prompt", "refused"), FramesRefusedError.kind: ("frames", "refused")}
"""The same, by the types of errors."""
WATCHES_ALL = "metrics"
"""The name of the key that is told of all keys."""


class Metrics(Observer):
    """The metrics of one application, in a registry of their own.

    Attributes:
        queued: How many jobs wait, set by who knows it.
    """

    def __init__(self, supervisor: ModelPool) -> None:
        self.queued: Callable[[], int] = lambda: 0
        self._registry = registry = CollectorRegistry()
        GCCollector(registry)
        ProcessCollector(registry=registry)
        # The model's memory and processor time are the worker's, not this process's.
        ProcessCollector("cosmorama_worker", lambda: supervisor.worker_pid or "none", registry=registry)
        registry.register(_StateCollector(supervisor, lambda: self.queued()))
        if (gpus := gpu_collector()) is not None:
            registry.register(gpus)
        counter = partial(Counter, registry=registry)
        seconds = partial(Histogram, registry=registry, buckets=_SECONDS)
        self._requests = counter("request_count", "Inference requests received.")
        told = "Inference requests by the name of the API key."
        self._key_requests = counter("cosmorama_key_requests", told, ["key"])
        self._answers = counter("cosmorama_answers", "Inference requests answered.", ["status"])
        self._jobs = counter("cosmorama_jobs", "Jobs that are over, by how they ended.", ["state"])
        for state in ("succeeded", "failed", "cancelled"):
            self._jobs.labels(state)
        self._waits = seconds("cosmorama_queue_wait_seconds", "From a job's acceptance to the start of its work.")
        self._jobs_seconds = seconds("cosmorama_job_seconds", "From a job's acceptance to its clip.")
        self._stages = seconds("cosmorama_stage_seconds", "Work per generation and stage.", ["stage"])
        told = "Denoising steps per second of denoising work, per generation."
        self._rates = seconds("cosmorama_steps_per_second", told, buckets=_STEPS_PER_SECOND)
        self._work = {
            "steps": counter("cosmorama_denoising_steps", "Denoising steps of finished generations."),
            "frames": counter("cosmorama_frames", "Frames of finished generations."),
            "prompt_tokens": counter("cosmorama_prompt_tokens", "Text tokens read for finished generations."),
        }
        told = "Prompts looked up among remembered embeddings."
        self._cache = counter("cosmorama_text_cache", told, ["result"])
        for result in ("hit", "miss"):
            self._cache.labels(result)
        told = "What guardrails decided about jobs."
        self._guardrails = counter("cosmorama_guardrail_decisions", told, ["check", "decision"])
        for check, decision in (*_PASSING.values(), *_REFUSALS.values()):
            self._guardrails.labels(check, decision)

    def received(self, key_name: str | None = None) -> None:
        """Count an inference request, and whose it is where the server has keys."""
        self._requests.inc()
        if key_name is not None:
            self._key_requests.labels(key_name).inc()

    def answered(self, status: int) -> None:
        """Count the answer to an inference request."""
        self._answers.labels(str(status)).inc()

    def made(self, job: Job, outcome: Outcome) -> None:
        """Observe a finished generation."""
        for stage, seconds in outcome.timings.items():
            self._stages.labels(stage).observe(seconds)
        counts = {"steps": job.request.steps, "frames": outcome.frames} | outcome.counts
        for name, counter in self._work.items():
            counter.inc(counts.get(name, 0))
        self._cache.labels("hit").inc(counts.get("text_cache_hits", 0))
        self._cache.labels("miss").inc(counts.get("text_cache_misses", 0))
        for name, labels in _PASSING.items():
            self._guardrails.labels(*labels).inc(counts.get(name, 0))
        if denoising_s := outcome.timings.get("denoise"):
            self._rates.observe(counts["steps"] / denoising_s)

    def started(self, job: Job) -> None:
        """Observe how long a job waited."""
        if job.started_at is not None and job.attempts <= 1:
            self._waits.observe(max(job.started_at - job.created_at, 0))

    def ended(self, job: Job) -> None:
        """Count a job that is over."""
        self._jobs.labels(job.state).inc()
        if job.state == "succeeded" and job.finished_at is not None:
            self._jobs_seconds.observe(max(job.finished_at - job.created_at, 0))
        if job.error is not None and job.error.type in _REFUSALS:
            self._guardrails.labels(*_REFUSALS[job.error.type]).inc()

    def text(self, key_name: str | None = None) -> bytes:
        """Everything, in Prometheus text format; of keys, the asker's own alone, unless it is `WATCHES_ALL`."""
        lines = generate_latest(self._registry).splitlines(keepends=True)
        escaped = str(key_name).replace("\\", r"\\").replace('"', r"\"")
        own = b"" if key_name == WATCHES_ALL else f'{{key="{escaped}"}}'.encode()
        return b"".join(line for line in lines if not line.startswith(b"cosmorama_key_requests_") or own in line)


class _StateCollector(Collector):
    def __init__(self, supervisor: ModelPool, queued: Callable[[], int]) -> None:
        self._supervisor = supervisor
        self._queued = queued

    def collect(self) -> Iterator[Metric]:
        supervisor = self._supervisor
        yield GaugeMetricFamily("cosmorama_ready", "1 when generations are accepted.", int(supervisor.ready))
        yield GaugeMetricFamily("cosmorama_queue_depth", "Jobs waiting for their turn.", self._queued())
        yield GaugeMetricFamily("cosmorama_active_generations", "Generations worked on.", supervisor.active)
        yield CounterMetricFamily("cosmorama_worker_restarts", "Workers started anew.", supervisor.restarts)


log = logging.getLogger(__name__)


def gpu_collector() -> Collector | None:
    """A collector of the GPUs of this machine; None where there is no GPU, no driver or no library for it."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        devices = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        log.debug("no GPU metrics: %s", error)
        return None
    return _GpuCollector(pynvml, devices) if devices else None


class _GpuCollector(Collector):
    def __init__(self, nvml: Any, devices: list[Any]) -> None:
        self._nvml = nvml
        self._devices = devices

    def collect(self) -> Iterator[Metric]:
        nvml = self._nvml
        gauges: list[tuple[str, str, Callable[[Any], float]]] = [
            ("gpu_power_usage_watts", "Power drawn.", lambda d: nvml.nvmlDeviceGetPowerUsage(d) / 1e3),
            ("gpu_power_limit_watts", "Most it may draw.", lambda d: nvml.nvmlDeviceGetEnforcedPowerLimit(d) / 1e3),
            ("gpu_utilization", "Share of time in which it computed, 0 to 1.", lambda d: _load(nvml, d)),
            ("gpu_memory_total_bytes", "Memory.", lambda d: nvml.nvmlDeviceGetMemoryInfo(d).total),
            ("gpu_memory_used_bytes", "Memory in use.", lambda d: nvml.nvmlDeviceGetMemoryInfo(d).used),
        ]
        for name, meaning, read in gauges:
            gauge = GaugeMetricFamily(name, meaning, labels=["gpu"])
            self._fill(gauge, read)
            yield gauge
        # A counter by its nature, but documented without the ending that counters have.
        energy = GaugeMetricFamily(
            "gpu_total_energy_consumption_joules", "Energy since the driver was loaded.", labels=["gpu"]
        )
        self._fill(energy, lambda d: nvml.nvmlDeviceGetTotalEnergyConsumption(d) / 1e3)
        yield energy

    def _fill(self, family: GaugeMetricFamily, read: Callable[[Any], float]) -> None:
        for index, device in enumerate(self._devices):
            try:
                family.add_metric([str(index)], read(device))
            except self._nvml.NVMLError:  # not every GPU can tell everything
                continue


def _load(nvml: Any, device: Any) -> float:
    return float(nvml.nvmlDeviceGetUtilizationRates(device).gpu) / 100
