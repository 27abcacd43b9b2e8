"""`cosmorama upsample` and `cosmorama caption`: the text that a clip would be made of, before it is paid for."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Annotated, Any

import typer

from cosmorama.cli.options import DEFAULT_SERVER, KeyOption, ServerOption, errors_for_people
from cosmorama.errors import InvalidRequestError, Problem
from cosmorama.media.sniff import is_clip_name

Model = Annotated[str | None, typer.Option(help="The model that it is for.", show_default="the server's first")]


def upsample(
    prompt: Annotated[str, typer.Argument(help="What to write out.")],
    image: Annotated[str | None, typer.Option(help="Picture that the clip begins with: path or URL.")] = None,
    model: Model = None,
    server: ServerOption = DEFAULT_SERVER,
    api_key: KeyOption = None,
) -> None:
    """Print the longer text that a prompt becomes."""
    body = {"prompt": prompt, "model": model, "image": None if image is None else _media(image)}
    _print(server, api_key, "/v1/upsample", body, "upsampled_prompt")


def caption(
    source: Annotated[str, typer.Argument(help="Picture or clip: path or URL.")],
    model: Model = None,
    server: ServerOption = DEFAULT_SERVER,
    api_key: KeyOption = None,
) -> None:
    """Print the description of a picture or a clip."""
    body = {"video" if is_clip_name(source, ".gif") else "image": _media(source), "model": model}
    _print(server, api_key, "/v1/caption", body, "caption")


def _media(source: str) -> str:
    if source.startswith(("http://", "https://", "data:")):
        return source
    with errors_for_people():
        if not Path(source).is_file():
            raise InvalidRequestError(Problem("path", source, "a file that exists, or a URL"))
        return base64.b64encode(Path(source).read_bytes()).decode()


def _print(server: str, api_key: str | None, path: str, body: dict[str, Any], field: str) -> None:
    from cosmorama.client import AsyncClient

    async def ask() -> dict[str, Any]:
        async with AsyncClient(server, api_key=api_key, patience_s=0, timeout_s=300) as client:
            told: dict[str, Any] = (await client.send("POST", path, json=body)).json()
            return told

    with errors_for_people():
        told = asyncio.run(ask())
    for warning in told["warnings"]:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(told[field])
