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
