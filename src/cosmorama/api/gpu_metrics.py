"""Power, load and memory of NVIDIA GPUs, under the names that NIM for Cosmos documents. Nothing where there is none."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

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
            (
                "gpu_power_limit_watts",
                "Most power it may draw.",
                lambda d: nvml.nvmlDeviceGetEnforcedPowerLimit(d) / 1e3,
            ),
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
