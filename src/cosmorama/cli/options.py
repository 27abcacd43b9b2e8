"""What several commands have in common: how mistakes are told, and which server is meant."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from cosmorama.errors import CosmoramaError

DEFAULT_SERVER = "http://127.0.0.1:8000"

ServerOption = Annotated[str, typer.Option(help="Address of the server.", envvar="COSMORAMA_SERVER")]
KeyOption = Annotated[str | None, typer.Option(help="API key.", envvar="COSMORAMA_API_KEY", show_envvar=True)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@contextmanager
def errors_for_people() -> Iterator[None]:
    """A mistake is answered in one sentence and exit status 2, never with a traceback."""
    try:
        yield
    except (CosmoramaError, OSError) as error:
        typer.echo(f"cosmorama: {error}", err=True)
        raise typer.Exit(2) from None


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
