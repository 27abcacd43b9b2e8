"""`cosmorama doctor`: is everything here that is needed, line by line, with what to do where it is not."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from cosmorama.cli.options import JsonOption

Line = tuple[str, bool | None, str]
"""What was looked at; True: good, None: worth knowing, False: something is to be done; a sentence."""


def doctor(
    model: Annotated[
        str | None, typer.Option(help="Name, folder or hub id.", show_default="what the settings say")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Look at this machine and at the settings: each line is ok, or says what to do. Exit status 1 if something is."""
    lines: list[Line] = []
    marks = {
        True: typer.style("ok  ", "green"),
        None: typer.style("note", "yellow"),
        False: typer.style("DO  ", "red"),
    }
    for name, ok, said in _lines(model):
        lines.append((name, ok, said))
        if not as_json:
            typer.echo(f"{marks[ok]}  {name:<10} {said}")
    if as_json:
        import json

        typer.echo(
            json.dumps([{"check": name, "ok": ok is not False, "said": said} for name, ok, said in lines], indent=2)
        )
    if any(ok is False for _, ok, _ in lines):
        raise typer.Exit(1)


def _lines(model: str | None) -> Iterator[Line]:
    """Each as soon as it is known, those that take long last."""
    for check in (_python, lambda: _model(model), _settings, _parts, _torch, _gpu, _codecs, _hub):
        try:
            yield from check()
        except Exception as error:  # whatever is broken here, the other lines are wanted  # noqa: BLE001
            yield getattr(check, "__name__", "model").strip("_"), False, f"{type(error).__name__}: {error}"


def _python() -> Iterator[Line]:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    yield "python", good, f"{version} in {sys.prefix}" + ("" if good else ": 3.11 or newer is needed")


def _parts() -> Iterator[Line]:
    needed = {
        "serve": ("fastapi", "av", "diffusers", "sqlalchemy", "torch"),
        "cosmos": ("transformers", "accelerate", "peft"),
    }
    for extra, modules in needed.items():
        missing = [module for module in modules if _version(module) is None]
        if not missing:
            yield extra, True, ", ".join(f"{module} {_version(module)}" for module in modules)
        elif extra == "serve":
            yield extra, False, f"{', '.join(missing)} missing: pip install '.[serve]' in a clone of the project"
        else:
            yield extra, None, f"{', '.join(missing)} missing: Cosmos checkpoints need pip install '.[cosmos]'"


def _torch() -> Iterator[Line]:
    if _version("torch") is None:
        return
    import torch

    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU build"
    if torch.__version__.startswith("2.9."):
        yield "torch", False, f"{torch.__version__} needs several times the memory on GPUs: take another version"
    elif torch.version.cuda is None and shutil.which("nvidia-smi"):
        yield "torch", False, f"{torch.__version__}, {build}, on a machine with a GPU: make install TORCH=default"
    else:
        yield "torch", True, f"{torch.__version__}, {build}, {torch.get_num_threads()} threads"


def _gpu() -> Iterator[Line]:
    if _version("torch") is None:
        return
    import torch

    if not torch.cuda.is_available():
        yield "gpu", None, "none that torch can use: Microcosm runs well, Cosmos checkpoints take hours to days a clip"
        return
    driver = "unknown"
    with contextlib.suppress(Exception):
        import pynvml

        pynvml.nvmlInit()
        driver = pynvml.nvmlSystemGetDriverVersion()
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        said = f"{about.name}, {_gb(free)} of {_gb(total)} free, driver {driver}"
        yield (
            f"gpu {number}",
            (True if about.major >= 8 else None),
            said + ("" if about.major >= 8 else "; no bfloat16"),
        )


def _model(name: str | None) -> Iterator[Line]:
    from cosmorama.errors import ModelNotFoundError
    from cosmorama.settings import read_settings
    from cosmorama.world.registry import find

    settings = read_settings()
    for source in [name] if name else settings.models.values() or (settings.model,):
        try:
            found = find(source)
        except ModelNotFoundError as error:
            yield "model", False, str(error)
        else:
            yield from _found_model(source, found)


def _found_model(source: str, folder: object) -> Iterator[Line]:
    if source == "microcosm":
        yield "model", True, "microcosm, which comes with the package"
    elif isinstance(folder, Path):
        size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
        room = _memory()
        said = f"{folder}: weights of {_gb(size)}; this machine has {_gb(room)} of memory"
        if size == 0:
            yield "model", False, f"{folder} holds no safetensors"
        else:
            yield "model", size < room, said + ("" if size < room else ": --offload, --quantize or a larger machine")
    else:
        yield (
            "model",
            None,
            f"{source}: 'cosmorama models show {source}' says what is known of it and whether it is here",
        )


def _hub() -> Iterator[Line]:
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        yield "hub", None, "HF_HUB_OFFLINE=1: only what was downloaded before"
        return
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    import httpx

    token = "a token is set" if os.environ.get("HF_TOKEN") else "no HF_TOKEN: gated models cannot be downloaded"
    try:
        httpx.head(endpoint, timeout=5, follow_redirects=True)
    except httpx.HTTPError as error:
        yield "hub", None, f"{endpoint} cannot be reached ({error}): models come from folders or the cache only"
    else:
        yield "hub", True, f"{endpoint} can be reached; {token}"


def _codecs() -> Iterator[Line]:
    if _version("av") is None:
        return
    import av

    names = {"H.264": "libx264", "VP9": "libvpx-vp9", "AV1": "libsvtav1"}
    missing = [name for name, codec in names.items() if codec not in av.codecs_available]
    yield "codecs", not missing, f"{', '.join(missing)} missing: reinstall PyAV (av)" if missing else ", ".join(names)


def _settings() -> Iterator[Line]:
    from cosmorama.settings import SettingsError, notices, read_settings

    try:
        settings = read_settings()
    except SettingsError as error:
        yield "settings", False, str(error)
        return
    told = notices(settings, os.environ)
    yield from (("settings", None, text) for _, text in told)
    if not told:
        yield "settings", True, "all of them are understood"
    with socket.socket() as probe:
        taken = probe.connect_ex(("127.0.0.1", settings.port)) == 0 if settings.port else False
    said = "is in use: choose another with --port" if taken else "is free"
    yield "port", (None if taken else True), f"{settings.port} {said}"
    folder = settings.state_dir.expanduser()
    existing = next((place for place in (folder, *folder.parents) if place.exists()), Path("/"))
    free = shutil.disk_usage(existing).free
    if not os.access(existing, os.W_OK):
        yield "disk", False, f"{folder} cannot be written: choose another with --state-dir"
    else:
        enough = free > 5_000_000_000
        yield "disk", enough, f"{_gb(free)} free at {folder}" + ("" if enough else ": clips and jobs need some GB")
    if settings.database_url is None:
        yield "database", True, f"SQLite in {folder}"
    elif _version("sqlalchemy") is not None:
        yield _database(settings.database_url.get_secret_value())


def _database(url: str) -> Line:
    from sqlalchemy import create_engine, make_url, text

    if url.startswith("postgresql://"):
        url = url.replace("postgresql://", "postgresql+psycopg://", 1)
    shown = make_url(url).render_as_string(hide_password=True)
    try:
        with create_engine(url).connect() as connection:
            connection.execute(text("select 1"))
    except ModuleNotFoundError as error:
        return "database", False, f"{error.name} is missing: pip install '.[postgres]'"
    except Exception as error:  # noqa: BLE001  # whatever is wrong is what it is to tell
        return "database", False, f"{shown} cannot be used: {str(error).splitlines()[0]}"
    return "database", True, shown


def _version(module: str) -> str | None:
    try:
        importlib.import_module(module) if module == "av" else None
        return importlib.metadata.version({"cv2": "opencv-python-headless"}.get(module, module))
    except (ImportError, importlib.metadata.PackageNotFoundError):
        return None


def _memory() -> int:
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
