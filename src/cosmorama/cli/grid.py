"""`cosmorama grid`."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cosmorama.cli.judge import BestOfOption, JudgeKeyOption, ModelOption, UrlOption, looks
from cosmorama.cli.options import KeyOption, MaybeServerOption, errors_for_people, needs_serve
from cosmorama.cli.request import takes_a_request
from cosmorama.request import GenerationRequest

_METAVAR = "KNOB=VALUES"


@partial(takes_a_request, into_folder=True)
def grid(
    request: GenerationRequest,
    x: Annotated[str, typer.Option("--x", help="Across: guidance_scale=1,4,7 or steps=5..50/15.", metavar=_METAVAR)],
    y: Annotated[str | None, typer.Option("--y", help="Down.", metavar=_METAVAR)] = None,
    z: Annotated[str | None, typer.Option("--z", help="A sheet for each.", metavar=_METAVAR)] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the clips and the sheets.")] = Path("grid"),
    model: Annotated[
        str | None, typer.Option(help="Name; or, without a server, a checkpoint folder too.", show_default="the usual")
    ] = None,
    server: MaybeServerOption = None,
    api_key: KeyOption = None,
    parallel: Annotated[int, typer.Option(help="Jobs on the server at a time.", min=1, max=256)] = 4,
    best_of: BestOfOption = 1,
    judge_url: UrlOption = None,
    judge_model: ModelOption = None,
    judge_api_key: JudgeKeyOption = None,
) -> None:
    """Make one clip for every combination of two or three knobs' values, and a sheet that plays them side by side.

    Started again with the same words, it goes on where it stopped.
    """
    from rich.progress import Progress

    from cosmorama.grid.plan import cells, parse_axis

    with errors_for_people():
        look = looks(best_of, judge_url, judge_model, judge_api_key)
        # Down before across, so that the names sort as the sheet reads.
        given = (("z", z), ("y", y), ("x", x))
        axes = [parse_axis(name, text) for name, text in given if text is not None]  # type: ignore[arg-type]
        request = replace(request, output=replace(request.output, container="mp4", codec=None))
        planned = cells(request, axes)
    console = Console(stderr=True)
    with errors_for_people(), needs_serve(), Progress(console=console) as bar:
        from cosmorama.grid.make import make_grid

        task = bar.add_task("clips", total=len(planned))

        def told(name: str, how: str) -> None:
            bar.advance(task)
            if how != "skipped":
                bar.console.print(f"{name}: {how}", highlight=False)

        report = asyncio.run(
            make_grid(
                planned,
                axes,
                output,
                model=model,
                server=server,
                api_key=api_key,
                parallel=parallel,
                on_cell=told,
                best_of=best_of,
                look=look,
            )
        )
    typer.echo(f"{report.made} made, {report.skipped} were there, {len(report.failed)} failed in {output}")
    for path in report.sheets:
        typer.echo(str(path))
    for name, error in report.failed.items():
        typer.echo(f"{name}: {error}", err=True)
    if report.failed:
        raise typer.Exit(1)
