"""`cosmorama serve`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer


def serve(
    model: Annotated[str | None, typer.Option(help="Name or checkpoint folder.", show_default="microcosm")] = None,
    host: Annotated[str | None, typer.Option(show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(show_default="8000")] = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"] | None,
        typer.Option(help="Of the weights.", show_default="auto: as they are stored"),
    ] = None,
    offload: Annotated[
        Literal["none", "model", "layer"] | None,
        typer.Option(help="What waits in the CPU's memory to run on the GPU; see docs/memory.md.", show_default="none"),
    ] = None,
    quantize: Annotated[
        Literal["none", "int8"] | None,
        typer.Option(
            help="What the denoiser's matrices are held as; int8 changes frames, see docs/speed.md.",
            show_default="none",
        ),
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option(help="Which copy of the weights, for example fp16.", show_default="none: the usual files"),
    ] = None,
    role: Annotated[
        Literal["all", "api"] | None,
        typer.Option(help="api: answer, and leave the work to 'cosmorama worker'.", show_default="all"),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(help="KEY or NAME:KEY that lets a client in; may be repeated.", show_default="none"),
    ] = None,
) -> None:
    """Serve the model over HTTP. Every other setting is an environment variable, COSMORAMA_*; see docs/settings.md."""
    from pydantic import SecretStr

    from cosmorama.api import serve as server
    from cosmorama.settings import Settings

    keys = tuple(SecretStr(key) for key in api_key) if api_key else None
    weights = {"dtype": dtype, "offload": offload, "quantize": quantize, "variant": variant}
    flags = {"model": model, "host": host, "port": port, "role": role, **weights, "api_keys": keys}
    server.serve(Settings().model_copy(update={name: value for name, value in flags.items() if value is not None}))


def worker(
    model: Annotated[str | None, typer.Option(help="Name or checkpoint folder.", show_default="microcosm")] = None,
    host: Annotated[str | None, typer.Option(help="Where health and metrics are.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(show_default="8000")] = None,
) -> None:
    """Generate for servers with `--role api` that share its database and artifact store. Answers health and metrics."""
    from cosmorama.api import serve as server
    from cosmorama.settings import Settings

    flags = {"model": model, "host": host, "port": port, "role": "worker"}
    server.serve(Settings().model_copy(update={name: value for name, value in flags.items() if value is not None}))
