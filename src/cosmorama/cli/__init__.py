"""The command line, a file per command. What a command needs is imported when it runs: `--help` is quick."""

from __future__ import annotations

import typer

from cosmorama.cli.batch import batch
from cosmorama.cli.bench import bench
from cosmorama.cli.generate import generate
from cosmorama.cli.jobs import jobs
from cosmorama.cli.models import models
from cosmorama.cli.serve import serve, worker

app = typer.Typer(
    help="An open, self-hosted inference server for world foundation models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (generate, batch, bench):
    app.command()(command)
app.command("serve")(serve)
app.command("worker")(worker)
app.add_typer(jobs, name="jobs")
app.add_typer(models, name="models")


def main() -> None:
    """Entry point of the `cosmorama` command."""
    app()
