"""Settings: the page of them, where they come from, and how mistakes in them are told."""

from __future__ import annotations

import logging
import os
import runpy
import socket
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from cosmorama.cli import app
from cosmorama.settings import Settings, SettingsError, notices, read_settings, variables_of

ROOT = Path(__file__).parents[1]


def test_the_page_of_settings_is_what_the_settings_say() -> None:
    written = runpy.run_path(str(ROOT / "tools" / "settings"), run_name="tools")["page"]()
    assert (ROOT / "docs" / "settings.md").read_text() == written, "run tools/settings"
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_servers_of_the_studio_are_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSMORAMA_STUDIO_SERVERS", "http://gpu2:8000, https://lab.example/cosmos/")
    assert Settings().studio_servers == ("http://gpu2:8000/", "https://lab.example/cosmos/")
    for wrong in ("gpu2:8000", "http://a b", "https://x/;script-src *", "http://u:p@x"):
        monkeypatch.setenv("COSMORAMA_STUDIO_SERVERS", wrong)
        with pytest.raises(ValidationError, match=r"is not the http\(s\) address of a server"):
            Settings()


def test_tiles_are_of_a_side_that_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSMORAMA_VAE_TILING", "256")
    assert Settings().vae_tiling == 256
    monkeypatch.setenv("COSMORAMA_VAE_TILING", "100")
    with pytest.raises(ValidationError, match="vae_tiling is 100; it must be one of 0, 128, 192, 256, 384, 512, 768"):
        Settings()


@pytest.fixture(autouse=True)
def no_settings_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("COSMORAMA_", "NIM_")) and name != "COSMORAMA_STATE_DIR":
            monkeypatch.delenv(name)


def test_flags_win_over_the_environment_and_that_over_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "cosmorama.toml"
    file.write_text('port = 9001\nmax_queue = 5\nlog_level = "debug"\n[models]\nnano = "microcosm"\n')
    found = read_settings({}, file)
    assert (found.port, found.max_queue, found.log_level, found.models) == (9001, 5, "debug", {"nano": "microcosm"})
    monkeypatch.setenv("NIM_HTTP_API_PORT", "9002")
    monkeypatch.setenv("COSMORAMA_CONFIG", str(file))
    assert (read_settings().port, read_settings().max_queue) == (9002, 5)
    assert read_settings({"port": "9003"}).port == 9003


def test_every_setting_is_a_flag() -> None:
    text = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"}).output
    for name, field in Settings.model_fields.items():
        if not field.exclude:
            assert f"--{name.replace('_', '-')}".removesuffix("s" if name == "api_keys" else "") in text, name


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["--port", "99999"], {}, "--port: '99999' is not accepted: input should be less than or equal to 65535"),
        ([], {"COSMORAMA_PORT": "http"}, "COSMORAMA_PORT: 'http' is not accepted: input should be a valid integer"),
        ([], {"NIM_HTTP_API_PORT": "-1"}, "NIM_HTTP_API_PORT: '-1' is not accepted"),
        ([], {"NIM_PRECISION": "fp12"}, "NIM_PRECISION: 'fp12' is not accepted: input should be 'auto', 'float32'"),
        (["--size-policy", "loose"], {}, "--size-policy: 'loose' is not accepted: input should be 'strict' or 'fit'"),
        (["--prompt-upsampling-extra-body", "x"], {}, "--prompt-upsampling-extra-body: 'x' is not accepted: it must"),
        ([], {"COSMORAMA_WEBHOOK_SECRET": "whsec_hunter2"}, "COSMORAMA_WEBHOOK_SECRET: webhook_secret must be whsec_"),
        (["--model", "a", "--models", "b=c"], {}, "one model and several are set"),
        ([], {"COSMORAMA_CAPTIONING_ENDPOINT_URL": "http://x"}, "captioning_endpoint_url needs captioning_model"),
    ],
)
def test_a_wrong_value_is_one_sentence_that_names_what_was_set_and_tells_no_secret(
    arguments: list[str], environment: dict[str, str], said: str
) -> None:
    run = CliRunner().invoke(app, ["serve", *arguments], env=environment)
    assert run.exit_code == 2
    assert run.output.startswith("cosmorama: ")
    assert said in run.output
    assert run.output.count("\n") == 1
    assert "hunter2" not in run.output


def test_a_file_with_an_unknown_name_or_none_at_all_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "cosmorama.toml"
    file.write_text("maxqueue = 5\n")
    with pytest.raises(SettingsError, match=r"no setting 'maxqueue'; did you mean max_queue\?"):
        read_settings({}, file)
    file.write_text("port == 5\n")
    with pytest.raises(SettingsError, match=r"cosmorama.toml cannot be read"):
        read_settings({}, file)
    with pytest.raises(SettingsError, match="No such file"):
        read_settings({}, tmp_path / "none.toml")


def test_a_port_in_use_is_told_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        run = CliRunner().invoke(app, ["serve", "--port", port, "--state-dir", str(tmp_path / "state")])
    assert run.exit_code == 2
    assert f"port {port} of 127.0.0.1 cannot be listened on: another program listens there" in run.output
    assert not (tmp_path / "state").exists()


def test_a_model_named_close_at_hand_wins_over_several_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSMORAMA_MODELS", "a=b,c=d")
    assert read_settings({"model": "mine"}).models == {}
    assert read_settings({"model": "mine"}).model == "mine"
    assert read_settings({"port": 1}).models == {"a": "b", "c": "d"}
    monkeypatch.setenv("COSMORAMA_MODEL", "one")
    with pytest.raises(SettingsError, match="one model and several"):
        read_settings()


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("NIM_MODEL_PATH", "hf://nvidia/Cosmos3-Nano:main", "model", "nvidia/Cosmos3-Nano@main"),
        ("NIM_MODEL_PATH", "hf://nvidia/Cosmos3-Nano", "model", "nvidia/Cosmos3-Nano"),
        ("NIM_PRECISION", "fp8", "dtype", "auto"),
        ("NIM_LOGGING_JSONL", "1", "log_format", "json"),
        ("NIM_JSONL_LOGGING", "1", "log_format", "json"),
        ("NIM_PROMPT_UPSAMPLING_TEMPERATURE", "0.7", "prompt_upsampling_temperature", 0.7),
        ("NIM_PROMPT_UPSAMPLING_TOP_P", "0.9", "prompt_upsampling_top_p", 0.9),
        ("NIM_PROMPT_UPSAMPLING_TOP_K", "40", "prompt_upsampling_top_k", 40),
        ("NIM_PROMPT_UPSAMPLING_EXTRA_BODY", '{"a": 1}', "prompt_upsampling_extra_body", {"a": 1}),
    ],
)
def test_more_names_of_upstream(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, field: str, expected: object
) -> None:
    monkeypatch.setenv(name, value)
    assert getattr(read_settings(), field) == expected
    assert not [text for _, text in notices(read_settings(), {name: value}) if "has no effect" in text]


def test_what_has_no_effect_is_told_safety_switches_loudest() -> None:
    environment = {
        "NIM_SOMETHING_OF_TOMORROW": "1",
        "NIM_MODEL_PROFILE": "x",
        "NIM_NGC_API_KEY": "hunter2",
        "NIM_ENABLE_SIGLIP_GUARDRAILS": "1",
        "COSMORAMA_SIZEPOLICY": "fit",
        "COSMORAMA_MAXQUEUE": "5",
        "COSMORAMA_PORT_8000_TCP_ADDR": "10.0.0.1",
        "COSMORAMA_SERVER": "http://x",
        "NIM_EMPTY": "",
        "HOME": "/root",
        **{variables_of(name)[0]: "x" for name in Settings.model_fields},
    }
    told = notices(Settings(), environment)
    assert [level for level, _ in told if level > logging.WARNING] == [logging.ERROR]
    texts = " | ".join(text for _, text in told)
    assert "NIM_ENABLE_SIGLIP_GUARDRAILS=1 ASKS FOR A SAFETY CHECK" in texts
    assert "NIM_SOMETHING_OF_TOMORROW=1 has no effect" in texts
    assert "did you mean COSMORAMA_SIZE_POLICY?" in texts
    assert "did you mean COSMORAMA_MAX_QUEUE?" in texts
    assert len(told) == 6
    assert "hunter2" not in texts
    off = notices(Settings(), {"NIM_ENABLE_SIGLIP_GUARDRAILS": "0"})
    assert [level for level, _ in off] == [logging.WARNING]


def test_a_variant_that_chooses_no_weights_is_told_of() -> None:
    (_, said), *others = notices(Settings(), {"NIM_MODEL_VARIANT": "nano"})
    assert "COSMORAMA_MODEL=cosmos3-nano" in said
    assert not others
    assert not notices(Settings(model="cosmos3-nano"), {"NIM_MODEL_VARIANT": "nano"})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"role": "worker"}, "COSMORAMA_DATABASE_URL is not set"),
        ({"role": "api", "artifacts": "s3://clips"}, "COSMORAMA_DATABASE_URL is not set"),
        ({"role": "api", "database_url": "postgresql:///x"}, "COSMORAMA_ARTIFACTS is not set"),
        ({"role": "worker", "database_url": "postgresql:///x", "artifacts": "s3://clips"}, None),
        ({}, None),
    ],
)
def test_a_role_whose_stores_are_its_machines_own_says_so(settings: dict[str, Any], said: str | None) -> None:
    told = [text for _, text in notices(Settings(**settings), {})]
    assert len(told) == (said is not None)
    assert said is None or said in told[0]
