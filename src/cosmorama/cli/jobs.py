"""`cosmorama jobs ...`: the jobs of a server."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console
from rich.table import Table

from cosmorama.cli.options import DEFAULT_SERVER, JsonOption, KeyOption, ServerOption, errors_for_people

jobs = typer.Typer(help="The jobs of a server.", no_args_is_help=True)


@jobs.command("list")
def list_(
    state: Annotated[
        str | None, typer.Option(help="queued, running, succeeded, failed or cancelled.", show_default="all")
    ] = None,
    limit: Annotated[int, typer.Option(help="At most so many, newest first.", min=1)] = 20,
    server: ServerOption = DEFAULT_SERVER,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """List jobs, newest first."""
    from itertools import islice

    from cosmorama.client import Client
    from cosmorama.client.protocol import State

    with errors_for_people(), Client(server, api_key=api_key, patience_s=0) as client:
        found = [job.status for job in islice(client.jobs(state=cast("State | None", state)), limit)]
    if as_json:
        typer.echo(json.dumps([status.model_dump(mode="json") for status in found], indent=2))
        return
    table = Table(box=None)
    table.add_column("id", no_wrap=True, min_width=28)
    for name in ("state", "stage", "created", "model", "prompt"):
        table.add_column(name, no_wrap=True)
    for status in found:
        created = datetime.fromtimestamp(status.created_at).isoformat(" ", "seconds")
        stage = f"{status.stage} {status.step}/{status.total}" if status.total else status.stage
        prompt = str(status.request.get("prompt") or "")
        table.add_row(status.id, status.state, stage, created, status.model, prompt[:60])
    # A pipe or file has no width, and what reads it wants whole values.
    Console(width=None if sys.stdout.isatty() else 1_000).print(table)


@jobs.command()
def show(job_id: str, server: ServerOption = DEFAULT_SERVER, api_key: KeyOption = None) -> None:
    """Print all that the server tells of a job, as JSON."""
    from cosmorama.client import Client

    with errors_for_people(), Client(server, api_key=api_key, patience_s=0) as client:
        typer.echo(client.job(job_id).status.model_dump_json(indent=2))


@jobs.command()
def cancel(job_id: str, server: ServerOption = DEFAULT_SERVER, api_key: KeyOption = None) -> None:
    """Stop a job within one denoising step."""
    from cosmorama.client import Client

    with errors_for_people(), Client(server, api_key=api_key, patience_s=0) as client:
        typer.echo(f"{job_id}  {client.job(job_id).cancel().state}")


@jobs.command()
def watch(
    job_id: str,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Download the clip when it is finished.")
    ] = None,
    server: ServerOption = DEFAULT_SERVER,
    api_key: KeyOption = None,
) -> None:
    """Show a job's progress until it is over. Ctrl-C leaves the job alone."""
    from cosmorama.client import Client

    with errors_for_people(), Client(server, api_key=api_key) as client:
        job = client.job(job_id)
        job.wait(progress_bar=True)
        saved = "" if output is None else f"  {job.download(output)}"
        typer.echo(f"{job_id}  {job.status.state}{saved}")
