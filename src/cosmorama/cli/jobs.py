"""`cosmorama jobs ...`: the jobs of a server."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer
from rich.console import Console
from rich.table import Table

from cosmorama.cli.options import (
    DEFAULT_SERVER,
    ForceOption,
    JsonOption,
    KeyOption,
    OutputOption,
    ServerOption,
    errors_for_people,
    file_to_write,
)
from cosmorama.cli.request import takes_a_request
from cosmorama.client.protocol import suffix_of
from cosmorama.media.source import output_for
from cosmorama.request import GenerationRequest

jobs = typer.Typer(help="The jobs of a server.", no_args_is_help=True)


@jobs.command("list")
def list_(
    state: Annotated[
        Literal["queued", "running", "succeeded", "failed", "cancelled"] | None,
        typer.Option(help="Only these.", show_default="all"),
    ] = None,
    limit: Annotated[int, typer.Option(help="At most so many, newest first.", min=1)] = 20,
    server: ServerOption = DEFAULT_SERVER,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """List jobs, newest first."""
    from itertools import islice

    from cosmorama.client import Client

    with errors_for_people(), Client(server, api_key=api_key, patience_s=0) as client:
        found = [job.status for job in islice(client.jobs(state=state), limit)]
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
        prompt = str((status.request or {}).get("prompt") or "")
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
@takes_a_request
def submit(
    request: GenerationRequest,
    model: Annotated[
        str | None, typer.Option(help="One of the server's models.", show_default="the server's first")
    ] = None,
    container: Annotated[str, typer.Option(help="mp4, webm, gif, jpg or zip (PNG frames).")] = "mp4",
    priority: Annotated[str, typer.Option(help="high, normal or low.")] = "normal",
    deadline_s: Annotated[
        float | None, typer.Option(help="Seconds after which it fails if it is not finished.", show_default="none")
    ] = None,
    webhook_url: Annotated[str | None, typer.Option(help="Told when the job is over.", show_default="none")] = None,
    server: ServerOption = DEFAULT_SERVER,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Submit a job and print its id; `jobs watch ID -o FILE` waits for the clip."""
    from cosmorama.client import Client
    from cosmorama.jobs.model import JobOptions

    with errors_for_people(), Client(server, api_key=api_key, patience_s=0) as client:
        format_ = output_for(Path(f"clip.{container}"), request.output.quality)
        options: JobOptions = {"priority": cast("Any", priority)}
        if deadline_s is not None:
            options["deadline_s"] = deadline_s
        if webhook_url is not None:
            options["webhook_url"] = webhook_url
        codec = request.output.codec
        job = client.submit(replace(request, output=replace(format_, codec=codec)), model=model, **options)
        typer.echo(job.status.model_dump_json(indent=2) if as_json else job.id)


@jobs.command()
def delete(job_id: str, server: ServerOption = DEFAULT_SERVER, api_key: KeyOption = None) -> None:
    """Remove a job and its clip from the server; one that is not over is cancelled."""
    from cosmorama.client import Client

    with errors_for_people(), Client(server, api_key=api_key, patience_s=0) as client:
        client.job(job_id).delete()
        typer.echo(f"{job_id}  deleted")


@jobs.command()
def download(
    job_id: str,
    output: OutputOption = None,
    force: ForceOption = False,
    server: ServerOption = DEFAULT_SERVER,
    api_key: KeyOption = None,
) -> None:
    """Download the clip of a finished job; one that was cut off goes on where it stopped."""
    from cosmorama.client import Client

    with errors_for_people(), Client(server, api_key=api_key) as client:
        job = client.job(job_id)
        usual = f"{job_id}{suffix_of(job.status)}"
        typer.echo(job.download(file_to_write(output, force=force, default=usual), progress_bar=True))


@jobs.command()
def watch(
    job_id: str,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Download the clip when it is finished.")
    ] = None,
    force: ForceOption = False,
    server: ServerOption = DEFAULT_SERVER,
    api_key: KeyOption = None,
) -> None:
    """Show a job's progress until it is over. Ctrl-C leaves the job alone."""
    from cosmorama.client import Client

    with errors_for_people(), Client(server, api_key=api_key) as client:
        if output is not None:
            output = file_to_write(output, force=force)
        job = client.job(job_id)
        job.wait(progress_bar=True)
        saved = "" if output is None else f"  {job.download(output, progress_bar=True)}"
        typer.echo(f"{job_id}  {job.status.state}{saved}")
