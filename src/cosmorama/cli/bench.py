"""`cosmorama bench`."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console

from cosmorama.bench import Target
from cosmorama.cli.options import KeyOption, errors_for_people

N = TypeVar("N", int, float)


def bench(
    url: Annotated[str, typer.Argument(help="Address of a server: this one, or any that speaks the dialect.")],
    target: Annotated[
        Target, typer.Option(help="infer: POST /v1/infer; jobs: /v1/jobs; videos: /v1/videos of OpenAI's API.")
    ] = "infer",
    path: Annotated[
        str | None, typer.Option(help="Where requests go instead, to be answered in the target's way: /v1/videos/sync.")
    ] = None,
    body: Annotated[
        Path | None, typer.Option(help="File with the JSON body of each request; the seed is added.")
    ] = None,
    requests: Annotated[int, typer.Option(help="Requests per run.", min=1)] = 16,
    concurrency: Annotated[str, typer.Option(help="Requests at a time: 4, or a sweep as 1,2,4,8.")] = "1",
    rate: Annotated[str, typer.Option(help="Arrivals per second instead: 0.5, or 0.5,1,2.")] = "",
    cancel: Annotated[int, typer.Option(help="Also cancel so many jobs at work, and time it.", min=0)] = 0,
    warm_up: Annotated[int, typer.Option(help="Requests before, which do not count.", min=0)] = 1,
    seed: Annotated[int, typer.Option(help="The first request's seed is one more.", min=0)] = 0,
    timeout_s: Annotated[float, typer.Option(help="A request without an end for so long has failed.", min=0.1)] = 1800,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write the JSON to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw latency and throughput into this PNG.")] = None,
    api_key: KeyOption = None,
) -> None:
    """Load a server and print what it does as JSON: latency, throughput, failures, time to cancel."""
    from rich.progress import Progress

    from cosmorama import bench as benches

    with errors_for_people():
        counts = [] if rate else _numbers("concurrency", concurrency, int)
        rates = _numbers("rate", rate, float) if rate else []
        plan = benches.Plan(
            target=target,
            body=benches.read_body(body) if body else dict(benches.BODIES[target]),
            requests=requests,
            cancels=cancel,
            seed=seed,
            timeout_s=timeout_s,
            path=path,
        )
        if output:
            benches.check_folder(output)
        if plot:
            benches.check_plot(plot)
    bar = Progress(console=Console(stderr=True))
    task = bar.add_task("requests", total=requests * (len(counts) + len(rates)) + cancel)
    with errors_for_people(), bar:
        report = asyncio.run(
            benches.measure(
                url, plan, concurrency=counts, rates=rates, warm_up=warm_up, api_key=api_key,
                on_end=lambda: bar.advance(task),
            )
        )  # fmt: skip
        text = json.dumps(report, indent=2)
        if output:
            output.write_text(text + "\n")
        if plot:
            benches.plot(report, plot)
    typer.echo(text)
    if any(run["failed"] for run in report["runs"]):
        raise typer.Exit(1)


def _numbers(name: str, text: str, kind: Callable[[str], N]) -> list[N]:
    from cosmorama.errors import InvalidRequestError, Problem

    try:
        numbers = [kind(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not all(0 < number < math.inf for number in numbers or [0]):
        raise InvalidRequestError(Problem(name, text, "positive numbers, comma-separated, such as 1,2,4"))
    return numbers
