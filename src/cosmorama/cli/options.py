"""What several commands have in common: how mistakes are told, and which server is meant."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from cosmorama.errors import CosmoramaError

DEFAULT_SERVER = "http://127.0.0.1:8000"

ServerOption = Annotated[str, typer.Option(help="Address of the server.", envvar="COSMORAMA_SERVER")]
KeyOption = Annotated[str | None, typer.Option(help="API key.", envvar="COSMORAMA_API_KEY", show_envvar=True)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
MaybeServerOption = Annotated[
    str | None,
    typer.Option(help="Address of a server.", envvar="COSMORAMA_SERVER", show_default="none: a model in this process"),
]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="File: .mp4, .webm, .gif, .jpg or .zip (PNG frames).",
        show_default="world.mp4, or the next number that is free",
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", "-f", help="Replace the file if it is there.")]


def file_to_write(path: Path | None, *, force: bool = False, default: str = "world.mp4") -> Path:
    """The file that a clip goes into; its folder is made.

    Raises:
        FileExistsError: it is there already.
        OSError: it cannot be written there.
    """
    if path is None:
        path, number = Path(default), 1
        while path.exists() and not force:
            number += 1
            path = Path(default).with_stem(f"{Path(default).stem}-{number}")
    # Of os.path, which only says no to a name that the system does not take.
    if os.path.isdir(path):
        raise IsADirectoryError(f"--output: {path} is a folder; expected a file name")
    if os.path.exists(path) and not force:
        raise FileExistsError(f"{path} is there already; --force replaces it")
    trial = path.with_name(f".{path.name}.{'0' * 30}.part")  # as long as what is written first
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise CosmoramaError(f"--output: {path} cannot be written: {error.strerror}") from None
    return path


@contextmanager
def errors_for_people() -> Iterator[None]:
    """A mistake is answered in one sentence and exit status 2, never with a traceback."""
    try:
        yield
    except BrokenPipeError:  # whoever reads what is printed has read enough
        raise
    except (CosmoramaError, OSError) as error:
        said = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        typer.echo(f"cosmorama: {said}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo("cosmorama: given up", err=True)
        raise typer.Exit(130) from None


@contextmanager
def needs_serve() -> Iterator[None]:
    """What is imported in it comes with the extra `serve`."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("cosmorama"):
            raise
        raise CosmoramaError(
            f"{error.name} is not installed: this is the client alone. With the server and models: "
            "pip install '.[serve]' in a clone of the project, or make install"
        ) from None
