"""`cosmorama models`."""

from __future__ import annotations

import typer


def models() -> None:
    """List the models that can be loaded by name."""
    from cosmorama.world.registry import known_models

    for known in known_models():
        typer.echo(f"{known.name}: {known.description}")
