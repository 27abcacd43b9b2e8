"""The command line, a file per command. What a command needs is imported when it runs: `--help` is quick."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from cosmorama import __version__
from cosmorama.cli.again import again, show
from cosmorama.cli.batch import batch
from cosmorama.cli.bench import bench
from cosmorama.cli.doctor import doctor
from cosmorama.cli.generate import generate
from cosmorama.cli.grid import grid
from cosmorama.cli.jobs import jobs
from cosmorama.cli.judge import judge
from cosmorama.cli.models import models
from cosmorama.cli.play import play
from cosmorama.cli.serve import fleet, serve, worker
from cosmorama.cli.texts import caption, upsample

app = typer.Typer(
    help="An open, self-hosted inference server for world foundation models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command in (generate, play, show, again, batch, grid, judge, bench, doctor, upsample, caption):
    app.command()(command)
app.command("serve")(serve)
app.command("worker")(worker)
app.command("fleet")(fleet)
app.add_typer(jobs, name="jobs")
app.add_typer(models, name="models")


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cosmorama {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_tell_version, is_eager=True)
    ] = False,
) -> None:
    """What goes before a command."""


def main() -> None:
    """Entry point of the `cosmorama` command. No error ends in a traceback, unless COSMORAMA_DEBUG is set."""
    try:
        app()
        sys.stdout.flush()
    except (SystemExit, BrokenPipeError) as ended:
        if not isinstance(ended, BrokenPipeError) and not isinstance(ended.__context__, BrokenPipeError):
            raise
        # Whoever reads has read enough, as head does; there is nowhere to flush the rest to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if os.environ.get("COSMORAMA_DEBUG"):
            raise
        said = " ".join(str(error).split()) or "no more is known"
        typer.echo(f"cosmorama: {type(error).__name__}: {said} (COSMORAMA_DEBUG=1 shows where)", err=True)
        sys.exit(1)
