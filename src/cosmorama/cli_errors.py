"""How the command line tells of mistakes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from cosmorama.errors import CosmoramaError


@contextmanager
def errors_for_people() -> Iterator[None]:
    """A mistake is answered in one sentence and exit status 2, never with a traceback."""
    try:
        yield
    except (CosmoramaError, OSError) as error:
        typer.echo(f"cosmorama: {error}", err=True)
        raise typer.Exit(2) from None
