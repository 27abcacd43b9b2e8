"""Settings from the environment, under our names and upstream's."""

from __future__ import annotations

import pickle
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from cosmorama.settings import Settings
from tests.serving import running_server


def test_our_name_wins_over_upstreams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIM_HTTP_API_PORT", "9001")
    assert Settings().port == 9001
    monkeypatch.setenv("COSMORAMA_PORT", "9002")
    assert Settings().port == 9002
    assert Settings(port=9003).port == 9003


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("NIM_ALLOW_URL_INPUT", "0", "allow_url_input", False),
        ("NIM_VIDEO_SAVE_QUALITY", "9", "video_quality", 9),
        ("NIM_ENABLE_PROMPT_UPSAMPLING", "false", "prompt_upsampling", False),
        ("NIM_PROMPT_UPSAMPLING_MAX_TOKENS", "99", "prompt_upsampling_max_tokens", 99),
        ("NIM_MODEL_PATH", "/models/mine", "model", "/models/mine"),
        ("NIM_LOG_LEVEL", "TRACE", "log_level", "debug"),
        ("NIM_CACHE_PATH", "/cache", "cache_path", Path("/cache")),
        ("NIM_DISABLE_MODEL_DOWNLOAD", "1", "disable_model_download", True),
        ("NIM_ENABLE_WARMUP", "true", "warmup", True),
        ("NIM_TRITON_REQUEST_TIMEOUT", "90000000", "request_timeout_s", 90),
        ("COSMORAMA_THREADS", "", "threads", None),
    ],
)
def test_names_known_from_upstream(
    name: str, text: str, field: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, text)
    assert getattr(Settings(), field) == value


def test_our_timeout_wins_over_upstreams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIM_TRITON_REQUEST_TIMEOUT", "90000000")
    monkeypatch.setenv("COSMORAMA_REQUEST_TIMEOUT_S", "5")
    assert Settings().request_timeout_s == 5


def test_secrets_do_not_show_and_travel_to_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSMORAMA_API_KEYS", "one-secret, two-secret")
    monkeypatch.setenv("NIM_PROMPT_UPSAMPLING_API_KEY", "third-secret")
    settings = Settings()
    assert "secret'" not in repr(settings)
    assert "third" not in settings.model_dump_json()
    travelled = pickle.loads(pickle.dumps(settings))
    assert [key.get_secret_value() for key in travelled.api_keys] == ["one-secret", "two-secret"]


def test_an_endpoint_needs_a_model_name() -> None:
    with pytest.raises(ValidationError, match="captioning_model"):
        Settings(captioning_endpoint_url="http://localhost:1/v1")


def test_a_server_warms_up_and_tells_what_has_no_effect(tiny_checkpoint: Path, tmp_path: Path) -> None:
    upstream = {
        "NIM_ENABLE_WARMUP": "1",
        "NIM_MODEL_PROFILE": "a-profile",
        "NIM_PERF_PROFILE": "latency",
        "NIM_ENABLE_VIDEO_GUARDRAILS": "0",
    }
    with running_server(tiny_checkpoint, tmp_path, **upstream) as server:
        log = server.log.read_text()
        assert httpx.get(f"{server.url}/v1/jobs", timeout=60).json()["data"] == []
    assert log.count("warmed up in") == 1
    for name in ("NIM_MODEL_PROFILE=a-profile", "NIM_PERF_PROFILE=latency"):
        assert log.count(f"{name} has no effect: ") == 1
    assert "NIM_ENABLE_VIDEO_GUARDRAILS" not in log  # it has an effect
