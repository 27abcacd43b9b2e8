"""The command line: `cosmorama generate`, `cosmorama serve`, `cosmorama models`."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from cosmorama.errors import CosmoramaError, InvalidRequestError, Problem
from cosmorama.progress import Progress
from cosmorama.request import DEFAULT_NEGATIVE_PROMPT, SOLVERS, GenerationRequest, Solver

if TYPE_CHECKING:
    from cosmorama.engine.outcome import Outcome

app = typer.Typer(
    help="An open, self-hosted inference server for world foundation models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_STAGES = {"prepare": "reading inputs", "encode": "encoding", "denoise": "denoising", "decode": "writing frames"}


@app.command()
def generate(
    prompt: Annotated[str | None, typer.Argument(help="What to show; optional with --image or --video.")] = None,
    image: Annotated[str | None, typer.Option(help="Picture to start from: path or URL.")] = None,
    video: Annotated[str | None, typer.Option(help="Clip to continue: path or URL.")] = None,
    negative_prompt: Annotated[
        str, typer.Option(help="What to avoid.", show_default="the long default of the API")
    ] = DEFAULT_NEGATIVE_PROMPT,
    upsample: Annotated[
        bool | None, typer.Option(help="Rewrite the prompt in the model's language.", show_default="text2world only")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="0 to 4294967295.", show_default="random")] = None,
    guidance_scale: Annotated[float, typer.Option(help="1 to 10.")] = 7.0,
    steps: Annotated[int, typer.Option(help="Denoising steps, 1 to 50.")] = 35,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT, one of the model's sizes.")] = "1280x704",
    frames: Annotated[int, typer.Option(help="Frames in the result.")] = 121,
    fps: Annotated[float, typer.Option(help="Frames per second, 12 to 40.")] = 24,
    model: Annotated[str, typer.Option(help="Name or checkpoint folder.")] = "microcosm",
    solver: Annotated[str | None, typer.Option(help=", ".join(SOLVERS), show_default="the model's own")] = None,
    quality: Annotated[int, typer.Option(help="1 (small) to 9 (best).")] = 7,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File: .mp4, .webm, .gif or .zip (PNG frames).")
    ] = Path("world.mp4"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, without a progress bar.")] = False,
) -> None:
    """Generate one clip in this process."""
    with _errors_for_people():
        from cosmorama.local import media_source, output_for

        width, height = _size(size)
        request = GenerationRequest(
            prompt=prompt,
            negative_prompt=negative_prompt,
            prompt_upsampling=upsample,
            image=None if image is None else media_source(image),
            video=None if video is None else media_source(video),
            seed=seed,
            guidance_scale=guidance_scale,
            steps=steps,
            width=width,
            height=height,
            frames=frames,
            fps=fps,
            solver=cast("Solver | None", solver),
            output=output_for(output, quality),
        )
        outcome = _run(model, request, output, quiet=as_json)
    if as_json:
        typer.echo(json.dumps({**asdict(outcome), "path": str(outcome.path)}, indent=2))
    else:
        spent = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in outcome.timings.items())
        typer.echo(f"{outcome.path}  seed {outcome.seed}  ({spent})")
        typer.echo(f"prompt: {outcome.prompt}")


@app.command()
def serve(
    model: Annotated[str | None, typer.Option(help="Name or checkpoint folder.", show_default="microcosm")] = None,
    host: Annotated[str | None, typer.Option(show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(show_default="8000")] = None,
) -> None:
    """Serve the model over HTTP. Every other setting is an environment variable, COSMORAMA_*; see the README."""
    import uvicorn

    from cosmorama.api.app import create_app
    from cosmorama.settings import Settings

    given = {key: value for key, value in {"model": model, "host": host, "port": port}.items() if value is not None}
    settings = Settings().model_copy(update=given)
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s")
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,  # health probes would drown everything else
        timeout_graceful_shutdown=5,  # a generation in flight is cancelled, not waited for
    )


@app.command()
def models() -> None:
    """List the models that can be loaded by name."""
    from cosmorama.world.registry import known_models

    for known in known_models():
        typer.echo(f"{known.name}: {known.description}")


def main() -> None:
    """Entry point of the `cosmorama` command."""
    app()


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise InvalidRequestError(Problem("size", text, "WIDTHxHEIGHT, for example 1280x704"))
    return int(width), int(height)


def _run(model: str, request: GenerationRequest, output: Path, *, quiet: bool) -> Outcome:
    bar = ProgressBar(
        TextColumn("{task.description:>15}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=quiet,
    )
    with bar:
        task = bar.add_task("loading", total=None)
        started = time.perf_counter()
        import cosmorama

        loaded = cosmorama.load(model)
        loading = time.perf_counter() - started

        def show(progress: Progress) -> None:
            if progress.stage in _STAGES:
                bar.update(
                    task,
                    description=_STAGES[progress.stage],
                    completed=progress.step,
                    total=progress.total or None,
                )

        output.parent.mkdir(parents=True, exist_ok=True)
        outcome = loaded.generate_file(request, output, on_progress=show)
    return replace(outcome, timings={"load": loading, **outcome.timings})


@contextmanager
def _errors_for_people() -> Iterator[None]:
    """A mistake is answered in one sentence and exit status 2, never with a traceback."""
    try:
        yield
    except CosmoramaError as error:
        typer.echo(f"cosmorama: {error}", err=True)
        raise typer.Exit(2) from None
