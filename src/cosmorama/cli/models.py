"""`cosmorama models`: which models there are, what is known of one, and the copies of them on this disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cosmorama.cli.options import errors_for_people

if TYPE_CHECKING:
    from cosmorama.world.load.sources import Source

models = typer.Typer(
    help="The models that have a name: list, show, pull (download) and rm (delete the copy).",
    invoke_without_command=True,
    no_args_is_help=False,
)
CacheOption = Annotated[
    Path | None,
    typer.Option(
        help="Where copies are kept.",
        envvar=["COSMORAMA_CACHE_PATH", "NIM_CACHE_PATH"],
        show_default="the hub library's own folder",
    ),
]
NameArgument = Annotated[
    str, typer.Argument(help="A name of the list, or owner/name on the hub, perhaps with @revision.")
]
VariantOption = Annotated[
    str | None, typer.Option(help="Which copy of the weights, for example fp16.", envvar="COSMORAMA_VARIANT")
]


@models.callback()
def default(context: typer.Context, cache: CacheOption = None) -> None:
    """The models that can be loaded by name; without a command: the list."""
    if context.invoked_subcommand is None:
        _list(cache)


@models.command("list")
def list_(cache: CacheOption = None) -> None:
    """Every model that has a name here, its size, its licence, and whether a copy is on this disk."""
    _list(cache)


def _list(cache: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table

    from cosmorama.world.load.hub import cached_bytes
    from cosmorama.world.load.sources import SOURCES
    from cosmorama.world.registry import MICROCOSM

    typer.echo(f"{MICROCOSM.name}: {MICROCOSM.description}")
    table = Table("name", "what it makes", "download", "licence", "here", box=None, pad_edge=False)
    for source in SOURCES:
        here = cached_bytes(source, cache)
        fp8 = f" (@{source.fp8}: half)" if source.fp8 else ""
        gated = ", accepted first" if source.gated else ""
        table.add_row(
            source.name,
            source.about,
            f"{source.gigabytes:g} GB{fp8}",
            source.licence + gated,
            _gb(here) if here else "",
        )
    Console(width=None if Console().is_terminal else 200, highlight=False).print(table)


@models.command()
def show(name: NameArgument, cache: CacheOption = None) -> None:
    """What is known of one model: where it is, its licence, its size, and how to serve it."""
    from cosmorama.world.load.hub import cached_bytes
    from cosmorama.world.registry import MICROCOSM

    with errors_for_people():
        if name == MICROCOSM.name:
            typer.echo(f"name: {name}\nabout: {MICROCOSM.description}\nfolder: {MICROCOSM.folder}")
            return
        source = _source(name)
        here = cached_bytes(source, cache)
        lines = {
            "name": source.name,
            "about": source.about or "a repository that is not known here",
            "repository": f"https://huggingface.co/{source.repository}",
            "revision": source.revision or "main",
            "licence": source.licence or "see the repository",
            "gated": "yes: accept its licence there with your account, then hf auth login" if source.gated else "no",
            "download": f"about {source.gigabytes:g} GB" if source.gigabytes else "unknown",
            "in 8 bits": f"{source.name}@{source.fp8}, about half of that" if source.fp8 else "",
            "controls": ", ".join(f"{kind} ({revision})" for kind, revision in source.controls.items()),
            "here": _gb(here) if here else "no copy",
            "serve": f"cosmorama serve --model {source.name}",
        }
        for word, value in lines.items():
            if value:
                typer.echo(f"{word}: {value}")


@models.command()
def pull(
    name: NameArgument,
    controls: Annotated[
        str | None,
        typer.Option(help="Kinds of control, comma-separated, of a Transfer2.5.", show_default="all there are"),
    ] = None,
    variant: VariantOption = None,
    cache: CacheOption = None,
) -> None:
    """Download a model, or what is missing of it; one that was broken off is resumed. Prints where it is."""
    from cosmorama.world.load import hub
    from cosmorama.world.registry import MICROCOSM

    with errors_for_people():
        if name == MICROCOSM.name:
            typer.echo(f"{name} comes with cosmorama")
            return
        wanted = tuple(kind.strip() for kind in (controls or "").split(",") if kind.strip())
        typer.echo(str(hub.pull(_source(name), cache, variant=variant, controls=wanted)))


@models.command()
def rm(name: NameArgument, cache: CacheOption = None) -> None:
    """Delete the copy of a model that is on this disk."""
    from cosmorama.errors import ModelNotFoundError
    from cosmorama.world.load import hub
    from cosmorama.world.registry import MICROCOSM

    with errors_for_people():
        if name == MICROCOSM.name:
            raise ModelNotFoundError(f"{name} comes with cosmorama and stays")
        typer.echo(f"{_gb(hub.remove(_source(name), cache))} freed")


def _source(name: str) -> Source:
    from cosmorama.errors import ModelNotFoundError
    from cosmorama.world.load.sources import closest, source_of

    source = source_of(name)
    if source is None:
        near = closest(name)
        raise ModelNotFoundError(
            f"there is no model {name!r}: " + (f"did you mean {near[0]}?" if near else "cosmorama models lists them")
        )
    return source


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 5e7 else f"{size / 1e6:.1f} MB"
