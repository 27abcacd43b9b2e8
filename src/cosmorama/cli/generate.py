"""`cosmorama generate`."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cosmorama.cli.again import as_document
from cosmorama.cli.options import (
    ForceOption,
    KeyOption,
    MaybeServerOption,
    OutputOption,
    errors_for_people,
    file_to_write,
    needs_serve,
)
from cosmorama.cli.request import OptionError, in_shell_words, takes_a_request
from cosmorama.client.bar import progress_bar
from cosmorama.errors import Problem
from cosmorama.request import GenerationRequest

if TYPE_CHECKING:
    from cosmorama.engine.outcome import Outcome

HERE = "In this process"


def _of_the_model(setting: str, says: str, **more: Any) -> Any:
    """An option that is a server's setting, too: what one is told to set there holds here."""
    return typer.Option(help=says, envvar=f"COSMORAMA_{setting.upper()}", rich_help_panel=HERE, **more)


@takes_a_request
def generate(
    request: GenerationRequest,
    output: OutputOption = None,
    force: ForceOption = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="Name, checkpoint folder or owner/name on the hub; of a server: one of its models.",
            show_default="microcosm, or the server's first",
        ),
    ] = None,
    server: MaybeServerOption = None,
    api_key: KeyOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, without a progress bar.")] = False,
    sidecar: Annotated[
        bool, typer.Option("--sidecar", help="Also write what the file says of how it was made to OUTPUT.json.")
    ] = False,
    dtype: Annotated[
        str | None,
        _of_the_model("dtype", "Of the weights: float32, bfloat16 or float16.", show_default="as stored"),
    ] = None,
    device: Annotated[str | None, _of_the_model("device", "cpu, cuda or cuda:N.", show_default="a GPU if any")] = None,
    offload: Annotated[
        str, _of_the_model("offload", "What waits in the CPU's memory: none, model, layer or release.")
    ] = "none",
    quantize: Annotated[str, _of_the_model("quantize", "What matrices are held as: none, int8 or float8.")] = "none",
    variant: Annotated[str | None, _of_the_model("variant", "Which copy of the weights, for example fp16.")] = None,
    controls: Annotated[
        str | None,
        typer.Option(
            "--controls",
            help="Kinds of control to load with a Transfer model of the hub, for example edge,depth; default: all.",
            rich_help_panel=HERE,
        ),
    ] = None,
    adapters: Annotated[
        list[str] | None,
        typer.Option(
            "--load-adapter",
            help="NAME=FILE of a LoRA adapter to load, for --adapter NAME; may be repeated.",
            rich_help_panel=HERE,
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.", min=1, rich_help_panel=HERE)] = None,
) -> None:
    """Generate one clip, in this process or on a server (--server, COSMORAMA_SERVER)."""
    with errors_for_people():
        path = file_to_write(output, force=force)
        beside = _sidecar(path, force=force) if sidecar else None
        if server is not None:
            result = _on_server(request, path, server, api_key, model, quiet=as_json)
        else:
            pairs = dict(_pair(text) for text in adapters or ())
            if unknown := [adapter.name for adapter in request.adapters if adapter.name not in pairs]:
                accepted = f"one of --load-adapter: {', '.join(pairs) or 'there is none'}"
                raise OptionError(*(Problem("adapters", name, accepted) for name in unknown))
            dtype, device = (None if (word or "").startswith("auto") else word for word in (dtype, device))
            loading: dict[str, Any] = {"dtype": dtype, "device": device, "offload": offload, "quantize": quantize}
            loading |= {"variant": variant, "adapters": pairs, "threads": threads}
            loading["controls"] = tuple(filter(None, (controls or "").replace(" ", "").split(",")))
            with needs_serve():
                outcome = _here(model or "microcosm", loading, request, path, quiet=as_json)
            result = {**asdict(outcome), "path": str(path)}
        if beside is not None:
            beside.write_text(as_document(path) + "\n")
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        spent = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in result["timings"].items())
        typer.echo(f"{path}  seed {result['seed']}  ({spent})")
        typer.echo(f"prompt: {result['prompt']}")
        if result["action"] is not None:
            actions = path.with_suffix(".actions.json")
            domain = {} if request.action is None else {"domain": request.action.domain}
            actions.write_text(json.dumps(domain | {"values": result["action"]}) + "\n")
            typer.echo(f"actions: {actions}")
        for warning in result["warnings"]:
            typer.echo(f"warning: {warning}", err=True)


def _sidecar(path: Path, *, force: bool) -> Path:
    with needs_serve():  # what reads it out of the file; to be told before the clip is made
        import cosmorama.media.write  # noqa: F401
    return file_to_write(path.with_name(f"{path.name}.json"), force=force)


def _here(model: str, loading: dict[str, Any], request: GenerationRequest, path: Path, *, quiet: bool) -> Outcome:
    with progress_bar(first="loading", disable=quiet) as show:
        started = time.perf_counter()
        import cosmorama

        loaded = cosmorama.load(model, **loading)
        took_s = time.perf_counter() - started
        with in_shell_words(request):
            outcome = loaded.generate_file(
                request, path, on_progress=lambda progress: show(progress.stage, progress.step, progress.total)
            )
    return replace(outcome, timings={"load": took_s, **outcome.timings})


def _on_server(
    request: GenerationRequest, path: Path, server: str, api_key: str | None, model: str | None, *, quiet: bool
) -> dict[str, Any]:
    from cosmorama.client import Client

    with Client(server, api_key=api_key) as client:
        job = client.submit(request, model=model)
        try:
            with in_shell_words(request):
                job.wait(progress_bar=not quiet)
        except KeyboardInterrupt:
            job.cancel()
            raise
        job.download(path, progress_bar=not quiet)
        result = job.status.result
        assert result is not None
        return {
            "path": str(path),
            "seed": result.seed,
            "prompt": result.upsampled_prompt,
            "timings": result.timings_s,
            "action": job.actions() if result.actions_url else None,
            "warnings": list(job.status.warnings),
            "job": job.id,
        }


def _pair(text: str) -> tuple[str, str]:
    name, equals, file = text.partition("=")
    if not equals or not name or not file:
        raise typer.BadParameter(f"{text!r} is not NAME=FILE", param_hint="--load-adapter")
    return name, file
