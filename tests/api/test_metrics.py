"""What the metrics say after known work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pynvml
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import cosmorama
from cosmorama.api.app import create_app
from cosmorama.api.metrics import gpu_collector
from cosmorama.api.middleware import INFERENCE_PATH
from cosmorama.request import GenerationRequest
from tests.serving import Running, running_server

SMALL: dict[str, Any] = {"width": 960, "height": 704, "frames": 1, "negative_prompt": "", "prompt_upsampling": False}


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running_server(tiny_checkpoint, tmp_path_factory.mktemp("metrics")) as running:
        yield running


def samples(server: Running) -> dict[str, float]:
    """Every sample by its name and labels, as in `name{label="value"}`."""
    found = {}
    for family in text_string_to_metric_families(httpx.get(f"{server.url}/metrics", timeout=60).text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_finished_work_is_counted(server: Running) -> None:
    with cosmorama.Client(server.url) as client:
        client.generate("a red ball", steps=1, seed=1, **SMALL)
        before = samples(server)
        client.generate("a red ball", steps=3, seed=1, **SMALL)
    after = samples(server)
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert grown["cosmorama_denoising_steps_total"] == 3
    assert grown["cosmorama_frames_total"] == 1
    assert grown["cosmorama_prompt_tokens_total"] > 0
    # Both prompts were read for the first generation, and remembered.
    assert grown['cosmorama_text_cache_total{result="hit"}'] == 2
    assert grown['cosmorama_text_cache_total{result="miss"}'] == 0
    assert before['cosmorama_text_cache_total{result="miss"}'] == 2
    assert grown['cosmorama_jobs_total{state="succeeded"}'] == 1
    assert grown["cosmorama_job_seconds_count"] == 1
    assert grown["cosmorama_queue_wait_seconds_count"] == 1
    assert grown["cosmorama_steps_per_second_count"] == 1
    for stage in ("prepare", "encode", "denoise", "decode", "write"):
        assert grown[f'cosmorama_stage_seconds_count{{stage="{stage}"}}'] == 1
    assert after["cosmorama_queue_depth"] == 0
    assert after["cosmorama_ready"] == 1


def test_cancellations_and_failures_are_counted(server: Running) -> None:
    before = samples(server)
    with cosmorama.Client(server.url) as client:
        job = client.submit(GenerationRequest(prompt="a", width=960, height=704, frames=25, steps=50))
        assert samples(server)["cosmorama_active_generations"] <= 1
        job.cancel()
        with pytest.raises(cosmorama.CosmoramaError):
            job.wait()
        with pytest.raises(cosmorama.MediaError):
            client.generate(image="https://127.0.0.1:1/nothing.png", **SMALL)
    after = samples(server)
    assert after['cosmorama_jobs_total{state="cancelled"}'] == before['cosmorama_jobs_total{state="cancelled"}'] + 1
    assert after['cosmorama_jobs_total{state="failed"}'] == before['cosmorama_jobs_total{state="failed"}'] + 1


def test_both_paths_tell_the_documented_names(server: Running) -> None:
    names = {name.partition("{")[0] for name in samples(server)}
    assert names >= {
        "python_gc_objects_collected_total",
        "process_virtual_memory_bytes",
        "process_resident_memory_bytes",
        "process_cpu_seconds_total",
        "process_start_time_seconds",
        "process_open_fds",
        "request_count_total",
        "cosmorama_worker_restarts_total",
    }
    assert httpx.get(f"{server.url}/v1/metrics", timeout=60).status_code == 200


def test_a_gpu_is_measured_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(device: object) -> int:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    answers = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetPowerUsage": lambda device: 70_000 + 1000 * device,
        "nvmlDeviceGetEnforcedPowerLimit": unsupported,
        "nvmlDeviceGetTotalEnergyConsumption": lambda device: 5_000,
        "nvmlDeviceGetUtilizationRates": lambda device: SimpleNamespace(gpu=50),
        "nvmlDeviceGetMemoryInfo": lambda device: SimpleNamespace(total=80, used=8),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, answer)
    collector = gpu_collector()
    assert collector is not None
    registry = CollectorRegistry()
    registry.register(collector)
    text = generate_latest(registry).decode()
    for line in (
        'gpu_power_usage_watts{gpu="0"} 70.0',
        'gpu_power_usage_watts{gpu="1"} 71.0',
        'gpu_total_energy_consumption_joules{gpu="0"} 5.0',
        'gpu_utilization{gpu="0"} 0.5',
        'gpu_memory_total_bytes{gpu="0"} 80.0',
        'gpu_memory_used_bytes{gpu="0"} 8.0',
    ):
        assert line in text
    assert "gpu_power_limit_watts{" not in text


def test_without_a_gpu_nothing_is_said_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", no_driver)
    assert gpu_collector() is None


def test_every_path_that_makes_work_is_counted() -> None:
    answered_at_once = {"/v1/upsample", "/v1/caption", "/v1/sheets", "/v1/jobs/{job_id}/cancel"}
    paths = {path for path, methods in create_app().openapi()["paths"].items() if "post" in methods}
    assert {path for path in paths if not INFERENCE_PATH.fullmatch(path)} == answered_at_once
