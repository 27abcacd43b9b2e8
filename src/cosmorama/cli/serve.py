"""`cosmorama serve` and `cosmorama worker`: every setting is a flag."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import SecretStr

from cosmorama.cli.options import errors_for_people, needs_serve
from cosmorama.settings import Settings, read_settings
from cosmorama.world.registry import find

_MOST_USED = ("model", "models", "host", "port", "api_keys")
_HIDDEN = ("upstream_request_timeout_us",)
_GROUPS = {
    "Models and memory": "model name warmup device dtype offload quantize compile variant controls vae_tiling adapters "
    "attention fps parallel threads replica min cache disable",
    "Jobs": "role max drain request hang state database artifacts retention lease webhook",
    "Who may call": "api_keys allowed_hosts cors studio",
    "Inputs": "allow url video_quality reuse dialect size",
    "Text and safety": "blocked text_guardrail video_guardrail prompt captioning",
    "Watching": "log otel",
}


def group_of(name: str) -> str:
    """Under which heading a setting stands, here and on the page of settings."""
    starts = {start: title for title, words in _GROUPS.items() for start in words.split()}
    longest = max((start for start in starts if name.startswith(start)), key=len, default="")
    return starts.get(longest, "Others")


def _flags(names: list[str]) -> dict[str, Any]:
    """A typer option for each setting."""
    flags: dict[str, Any] = {}
    for name in names:
        field = Settings.model_fields[name]
        help_ = re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", " ".join((field.description or "").split()))
        default = None if field.default_factory is not None else field.default
        shown = (
            "none" if default in (None, (), {}) else str(default).lower() if isinstance(default, bool) else str(default)
        )
        options: dict[str, Any] = {
            "help": help_,
            "show_default": shown,
            "rich_help_panel": "Options" if name in _MOST_USED else group_of(name),
        }
        kind: Any = str
        dashed = name.replace("_", "-")
        declarations = [f"--{dashed}"]
        if name == "api_keys":
            declarations, kind = ["--api-key"], list[str]
            options["help"] = "KEY or NAME:KEY that lets a client in; may be repeated. None: everyone is let in."
        elif field.annotation is bool:
            declarations, kind = [f"--{dashed}/--no-{dashed}"], bool
        else:
            choices = [str(choice) for choice in typing.get_args(field.annotation) if isinstance(choice, str)]
            options["metavar"] = "|".join(choices) or "VALUE"
        flags[name] = Annotated[kind | None, typer.Option(*declarations, **options)]
    return flags


def _command(doc: str, names: list[str], fixed: dict[str, Any]) -> Callable[..., None]:
    def run(config: Path | None = None, **given: Any) -> None:
        values = {name: value for name, value in given.items() if value not in (None, [])}
        if "api_keys" in values:
            values["api_keys"] = tuple(SecretStr(key) for key in values["api_keys"])
        with errors_for_people():
            settings = read_settings({**values, **fixed}, config)
            if settings.role in ("all", "worker"):  # another machine may have what is not here
                for name in settings.models.values() or (settings.model,):
                    find(name)
            with needs_serve():
                from cosmorama.api import app as server
            server.serve(settings)

    config = Annotated[
        Path | None,
        typer.Option(help="TOML file of settings; flags and the environment win over it.", envvar="COSMORAMA_CONFIG"),
    ]
    annotations: dict[str, Any] = {"config": config, **_flags(names)}
    run.__doc__ = doc
    run.__annotations__ = {**annotations, "return": None}
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # what typer reads
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            for name, annotation in annotations.items()
        ]
    )
    return run


_ALL = [*_MOST_USED, *(name for name in Settings.model_fields if name not in (*_MOST_USED, *_HIDDEN))]
serve = _command(
    "Serve a model over HTTP. Every setting is a flag here, a COSMORAMA_* variable, and a name in a TOML file.",
    _ALL,
    {},
)
worker = _command(
    "Generate for servers with `--role api` that share its database and artifact store. Answers health and metrics.",
    [name for name in _ALL if name != "role"],
    {"role": "worker"},
)
fleet = _command(
    "Serve models that run as replicas on a Ray cluster: that of RAY_ADDRESS or of this machine, else one of its own.",
    [name for name in _ALL if name != "role"],
    {"role": "fleet"},
)
