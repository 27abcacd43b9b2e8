"""What the server measures of itself, in Prometheus text.

Names without a prefix are those documented for NIM for Cosmos; ours begin with `cosmorama_`.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, GCCollector, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cosmorama.engine.outcome import Outcome
from cosmorama.engine.supervisor import Supervisor

_STAGE_BUCKETS_S = (0.01, 0.05, 0.25, 1, 5, 15, 30, 60, 120, 300, 600, 1800)


class Metrics:
    """The metrics of one application, in a registry of their own."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._registry = CollectorRegistry()
        GCCollector(self._registry)
        ProcessCollector(registry=self._registry)
        # The model's memory and processor time are the worker's, not this process's.
        ProcessCollector("cosmorama_worker", lambda: supervisor.worker_pid or "none", registry=self._registry)
        self._registry.register(_SupervisorCollector(supervisor))
        self._requests = Counter("request_count", "Inference requests received.", registry=self._registry)
        self._answers = Counter(
            "cosmorama_answers", "Inference requests answered.", ["status"], registry=self._registry
        )
        self._stages = Histogram(
            "cosmorama_stage_seconds",
            "Work per generation and stage.",
            ["stage"],
            registry=self._registry,
            buckets=_STAGE_BUCKETS_S,
        )

    def received(self) -> None:
        """Count an inference request."""
        self._requests.inc()

    def answered(self, status: int) -> None:
        """Count the answer to an inference request."""
        self._answers.labels(str(status)).inc()

    def made(self, outcome: Outcome) -> None:
        """Observe a finished generation."""
        for stage, seconds in outcome.timings.items():
            self._stages.labels(stage).observe(seconds)

    def text(self) -> bytes:
        """Everything, in Prometheus text format."""
        return generate_latest(self._registry)


class _SupervisorCollector(Collector):
    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def collect(self) -> Iterator[Metric]:
        supervisor = self._supervisor
        yield GaugeMetricFamily("cosmorama_ready", "1 when generations are accepted.", int(supervisor.ready))
        yield GaugeMetricFamily("cosmorama_queue_depth", "Generations waiting for their turn.", supervisor.queued)
        yield GaugeMetricFamily("cosmorama_active_generations", "Generations worked on.", supervisor.active)
        yield CounterMetricFamily("cosmorama_worker_restarts", "Workers started anew.", supervisor.restarts)
