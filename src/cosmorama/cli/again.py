"""`cosmorama show FILE` and `cosmorama again FILE`: what a clip was made with, and the same clip once more."""

from __future__ import annotations

import asyncio
import json
import zipfile
from pathlib import Path
from typing import Annotated, Any

import typer

from cosmorama import strictjson
from cosmorama.cli.options import (
    ForceOption,
    JsonOption,
    KeyOption,
    MaybeServerOption,
    OutputOption,
    errors_for_people,
    file_to_write,
    needs_serve,
)
from cosmorama.cli.request import before_loading, in_shell_words
from cosmorama.errors import InvalidRequestError, Problem

FileArgument = Annotated[Path, typer.Argument(help="A clip or still: MP4, WebM, GIF, JPEG, PNG or ZIP.")]


def show(file: FileArgument, as_json: JsonOption = False) -> None:
    """Show what a clip was made with: its request, model and version, which are in the file."""
    with errors_for_people():
        if as_json:
            typer.echo(as_document(file))
            return
        found = _metadata(file)
        found.pop("request", None)
        width = max(map(len, found))
        for name, value in found.items():
            typer.echo(f"{name:<{width}}  {value}")


def as_document(file: Path) -> str:
    """What is in a file of how it was made, as JSON."""
    found: dict[str, Any] = {**_metadata(file)}
    request = found.pop("request", None)
    return json.dumps({**found, "request": None if request is None else _body(file, request)}, indent=2)


def again(
    file: FileArgument,
    image: Annotated[
        str | None, typer.Option(help="The picture that it started from, which is not in the file.")
    ] = None,
    video: Annotated[str | None, typer.Option(help="The clip that it goes on from, which is not in it.")] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(help="A clip that it follows, as KIND=FILE; may be repeated.", metavar="KIND=FILE..."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Name or checkpoint folder.", show_default="the name in the file")
    ] = None,
    output: OutputOption = None,
    force: ForceOption = False,
    server: MaybeServerOption = None,
    api_key: KeyOption = None,
) -> None:
    """Make the clip of a file again: the same bytes, with the same model and version."""
    with errors_for_people(), needs_serve():
        from cosmorama.media.source import output_for, suffix
        from cosmorama.request import Output

        found = _metadata(file)
        if "request" not in found:
            raise _unknown(file)
        body = _body(file, found["request"])
        needed = {"image2world": "image", "video2world": "video"}.get(found.get("mode", ""))
        if needed is not None and {"image": image, "video": video}[needed] is None:
            raise InvalidRequestError(Problem(f"--{needed}", None, f"the {needed} that {file} was made from"))
        body |= {name: source for name, source in (("image", image), ("video", video)) if source is not None}
        _add_controls(body, control or [])
        usual = file.with_stem(f"{file.stem}-again").name
        path = file_to_write(output, force=force, default=usual)
        container = (body.get("output") or {}).get("container", "mp4")
        is_still = container == "png" and not zipfile.is_zipfile(file)  # /v1/images/generations takes it out of its ZIP
        end = ".png" if is_still else suffix(Output(container))
        if (".png" if path.suffix.lower() == ".png" else suffix(output_for(path))) != end:
            raise InvalidRequestError(Problem("--output", str(path), f"a name ending in {end}, as {file} is"))
        made = path.with_name(f".{path.name}.zip") if is_still else path
        if server is not None:
            asyncio.run(_on_server(body, made, server, api_key, model))
        else:
            _here(body, model or found["model"], made)
        if is_still:
            with zipfile.ZipFile(made) as frames:
                path.write_bytes(frames.read(frames.namelist()[0]))
            made.unlink()
        same = path.read_bytes() == file.read_bytes()
        typer.echo(f"{path}  {'the same bytes' if same else 'other bytes: another model, version, machine or input'}")


def _add_controls(body: dict[str, Any], given: list[str]) -> None:
    known = {each["kind"]: each for each in body.get("controls", ())}
    for text in given:
        kind, _, path = text.partition("=")
        if kind not in known or not path:
            accepted = f"KIND=FILE, a kind of {', '.join(known)}" if known else "none: the clip follows no control"
            raise InvalidRequestError(Problem("--control", text, accepted))
        known[kind]["source"] = path


def _here(body: dict[str, Any], model: str, path: Path) -> None:
    import cosmorama
    from cosmorama.api.dialects.native import to_request
    from cosmorama.client.bar import progress_bar

    request = before_loading(to_request({name: value for name, value in body.items() if name != "dialect"}, quality=7))
    with progress_bar(first="loading") as bar, in_shell_words(request):
        cosmorama.load(model).generate_file(
            request, path, on_progress=lambda progress: bar(progress.stage, progress.step, progress.total)
        )


async def _on_server(body: dict[str, Any], path: Path, server: str, api_key: str | None, model: str | None) -> None:
    from cosmorama.batch import with_files
    from cosmorama.client import AsyncClient

    async with AsyncClient(server, api_key=api_key) as client:
        named = {} if model is None else {"model": model}
        job = await client.submit_body(with_files(body, Path()) | named)
        await job.wait(progress_bar=True)
        await job.download(path)


def _metadata(file: Path) -> dict[str, str]:
    with needs_serve():
        from cosmorama.media.write import read_metadata
    if not file.is_file():
        raise FileNotFoundError(2, "No such file", str(file))
    found = read_metadata(file)
    if not found:
        raise _unknown(file)
    return found


def _body(file: Path, text: str) -> dict[str, Any]:
    try:
        body = strictjson.loads(text)
    except strictjson.RepeatedFieldError as error:
        raise InvalidRequestError(Problem("file", str(file), f"a request with each field once: {error}")) from None
    except ValueError:
        raise InvalidRequestError(Problem("file", str(file), "one whose request was short enough to be kept")) from None
    if not isinstance(body, dict):
        raise _unknown(file)
    return body


def _unknown(file: Path) -> InvalidRequestError:
    return InvalidRequestError(Problem("file", str(file), "a clip that Cosmorama made, with its request in it"))
