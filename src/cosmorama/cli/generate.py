"""`cosmorama generate`."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from cosmorama.cli.options import errors_for_people
from cosmorama.client.bar import progress_bar
from cosmorama.errors import InvalidRequestError, Problem
from cosmorama.media.source import media_source, output_for
from cosmorama.request import SOLVERS, GenerationRequest, Solver
from cosmorama.resolve import check

if TYPE_CHECKING:
    from cosmorama.engine.outcome import Outcome


def generate(
    prompt: Annotated[str | None, typer.Argument(help="What to show; optional with --image or --video.")] = None,
    image: Annotated[str | None, typer.Option(help="Picture to start from: path or URL.")] = None,
    video: Annotated[str | None, typer.Option(help="Clip to continue: path or URL.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What to avoid.", show_default="the model's own")] = None,
    upsample: Annotated[
        bool | None, typer.Option(help="Rewrite the prompt in the model's language.", show_default="text2world only")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="0 to 4294967295.", show_default="random")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="How closely the prompt is followed.", show_default="the model's own")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.", show_default="the model's own")] = None,
    size: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT, one of the model's sizes.", show_default="the model's own")
    ] = None,
    frames: Annotated[int | None, typer.Option(help="Frames in the result.", show_default="the model's own")] = None,
    seconds: Annotated[float | None, typer.Option(help="Its length, instead of frames.")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames per second.", show_default="the model's own")] = None,
    model: Annotated[str, typer.Option(help="Name or checkpoint folder.")] = "microcosm",
    solver: Annotated[str | None, typer.Option(help=", ".join(SOLVERS), show_default="the model's own")] = None,
    guidance_interval: Annotated[
        tuple[float, float], typer.Option(help="Part of the steps in which guidance acts, two fractions of 0 to 1.")
    ] = (0.0, 1.0),
    guidance_rescale: Annotated[
        float, typer.Option(help="Takes back the contrast that guidance adds, 0 (none of it) to 1.")
    ] = 0.0,
    flow_shift: Annotated[
        float | None, typer.Option(help="Shift of the noise schedule towards noise.", show_default="the model's own")
    ] = None,
    reuse: Annotated[
        float | None, typer.Option(help="Step reuse: accepted relative change of answers, 0 (exact) to 1.")
    ] = None,
    vae_tiling: Annotated[
        int | None, typer.Option(help="Frames in tiles of so many pixels, where the model takes it; 0: in one piece.")
    ] = None,
    quality: Annotated[int, typer.Option(help="1 (small) to 9 (best).")] = 7,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File: .mp4, .webm, .gif or .zip (PNG frames).")
    ] = Path("world.mp4"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, without a progress bar.")] = False,
) -> None:
    """Generate one clip in this process."""
    with errors_for_people():
        width, height = (None, None) if size is None else _size(size)
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
            seconds=seconds,
            fps=fps,
            solver=cast("Solver | None", solver),
            guidance_interval=guidance_interval,
            guidance_rescale=guidance_rescale,
            flow_shift=flow_shift,
            reuse=reuse,
            vae_tiling=vae_tiling,
            output=output_for(output, quality),
        )
        check(request)  # before a model is loaded for nothing
        outcome = _run(model, request, output, quiet=as_json)
    if as_json:
        typer.echo(json.dumps({**asdict(outcome), "path": str(outcome.path)}, indent=2))
    else:
        spent = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in outcome.timings.items())
        typer.echo(f"{outcome.path}  seed {outcome.seed}  ({spent})")
        typer.echo(f"prompt: {outcome.prompt}")


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise InvalidRequestError(Problem("size", text, "WIDTHxHEIGHT, for example 1280x704"))
    return int(width), int(height)


# At import they warn of their own optional parts, which says nothing to who wants a clip.
_TALKATIVE = ("torchao", "torch.utils._pytree", "diffusers.quantizers")


def _run(model: str, request: GenerationRequest, output: Path, *, quiet: bool) -> Outcome:
    with progress_bar(first="loading", disable=quiet) as show:
        started = time.perf_counter()
        for library in _TALKATIVE:
            logging.getLogger(library).setLevel(logging.ERROR)
        import cosmorama

        loaded = cosmorama.load(model)
        loading = time.perf_counter() - started
        output.parent.mkdir(parents=True, exist_ok=True)
        outcome = loaded.generate_file(
            request, output, on_progress=lambda progress: show(progress.stage, progress.step, progress.total)
        )
    return replace(outcome, timings={"load": loading, **outcome.timings})
