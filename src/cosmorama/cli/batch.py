"""`cosmorama batch`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from cosmorama.cli.judge import BestOfOption, JudgeKeyOption, ModelOption, UrlOption, looks
from cosmorama.cli.options import KeyOption, MaybeServerOption, errors_for_people


def batch(
    requests: Annotated[
        Path,
        typer.Argument(
            help="JSON Lines: an object per clip, with the fields of a request in any of the formats of /v1/jobs."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the clips and the manifest.")],
    server: MaybeServerOption = None,
    api_key: KeyOption = None,
    model: Annotated[
        str | None, typer.Option(help="Name; or, without a server, a checkpoint folder too.", show_default="the usual")
    ] = None,
    parallel: Annotated[int, typer.Option(help="Jobs on the server at a time.", min=1, max=256)] = 4,
    best_of: BestOfOption = 1,
    judge_url: UrlOption = None,
    judge_model: ModelOption = None,
    judge_api_key: JudgeKeyOption = None,
) -> None:
    """Make many clips. Started again, it goes on where it stopped: finished rows are skipped."""
    from rich.progress import Progress

    from cosmorama import batch as batches
    from cosmorama.client import AsyncClient

    with errors_for_people():
        look = looks(best_of, judge_url, judge_model, judge_api_key)
        rows = batches.read_rows(requests, model)
    console = Console(stderr=True)
    bar = Progress(console=console)
    task = bar.add_task("clips", total=len(rows))

    def told(row: batches.Row, how: Literal["made", "skipped", "failed"]) -> None:
        bar.advance(task)
        if how != "skipped":
            bar.console.print(f"{row.name}: {how}", highlight=False)

    async def all_of_them() -> batches.Report:
        if server is None:
            make = batches.in_process(model or "microcosm")
            return await batches.best_of(rows, output, make, look, best_of, on_row=told)
        async with AsyncClient(server, api_key=api_key) as client:
            make = batches.on_server(client, model)
            return await batches.best_of(rows, output, make, look, best_of, parallel=parallel, on_row=told)

    with errors_for_people(), bar:
        report = asyncio.run(all_of_them())
    typer.echo(f"{len(report.made)} made, {len(report.skipped)} were there, {len(report.failed)} failed in {output}")
    for name, error in report.failed.items():
        typer.echo(f"{name}: {error}", err=True)
    if report.failed:
        raise typer.Exit(1)
