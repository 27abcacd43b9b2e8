"""`cosmorama judge`, and how `batch` and `grid` are told to keep the best of several."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cosmorama.cli.options import JsonOption, errors_for_people, needs_serve
from cosmorama.errors import InvalidRequestError, Problem

if TYPE_CHECKING:
    from cosmorama.judge import Judgement, Look
    from cosmorama.text.chat import ChatEndpoint

_CLIPS = (".mp4", ".webm", ".gif", ".jpg")
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--judge-url",
        help="An OpenAI-compatible endpoint with a model that sees, asked for marks too.",
        envvar="COSMORAMA_JUDGE_URL",
        show_default="none: clips are measured alone",
    ),
]
ModelOption = Annotated[
    str | None, typer.Option("--judge-model", help="That model's name there.", envvar="COSMORAMA_JUDGE_MODEL")
]
JudgeKeyOption = Annotated[
    str | None, typer.Option("--judge-api-key", help="The endpoint's key.", envvar="COSMORAMA_JUDGE_API_KEY")
]
BestOfOption = Annotated[
    int, typer.Option("--best-of", help="Make each clip so often, with other seeds, and keep the best.", min=1, max=64)
]


def endpoint_of(url: str | None, model: str | None, api_key: str | None) -> ChatEndpoint | None:
    """The endpoint that was named; None: none.

    Raises:
        InvalidRequestError: half of it was named, or the address is none.
    """
    if url is None and model is None:
        return None
    if url is None or model is None:
        missing = "--judge-url" if url is None else "--judge-model"
        raise InvalidRequestError(Problem(missing, None, "--judge-url and --judge-model, or neither"))
    from cosmorama.text.chat import ChatEndpoint

    try:
        return ChatEndpoint(url, model, api_key, timeout_s=120)
    except ValueError as error:
        raise InvalidRequestError(Problem("--judge-url", url, str(error))) from None


def looks(best_of: int, url: str | None, model: str | None, api_key: str | None) -> Look:
    """What looks at the tries of a batch or a grid.

    Raises:
        InvalidRequestError: half of an endpoint is named, or one where nothing is compared.
    """
    endpoint = endpoint_of(url, model, api_key)
    if best_of > 1:
        with needs_serve():
            import cosmorama.judge  # noqa: F401  # before anything is made
    elif url is not None:
        raise InvalidRequestError(Problem("--judge-url", url, "none unless --best-of is more than 1"))

    def look(file: Path, name: str, prompt: str | None) -> Judgement:
        from cosmorama.judge import look_at

        return look_at(file, name, prompt, endpoint)

    return look


def judge(
    paths: Annotated[list[Path], typer.Argument(help="Clips, or folders of them: MP4, WebM, GIF or JPEG.")],
    prompt: Annotated[
        str | None, typer.Option(help="What they should show.", show_default="the prompt that is in each file")
    ] = None,
    judge_url: UrlOption = None,
    judge_model: ModelOption = None,
    judge_api_key: JudgeKeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say how good clips are, the best of each prompt first, and why it is the best."""
    with errors_for_people(), needs_serve():
        endpoint = endpoint_of(judge_url, judge_model, judge_api_key)
        from cosmorama.judge import look_at, ranked, why
        from cosmorama.media.write import read_metadata

        groups: dict[str, list[Judgement]] = {}
        for file in _files(paths):
            said = prompt if prompt is not None else read_metadata(file).get("prompt", "")
            groups.setdefault(said, []).append(look_at(file, str(file), said, endpoint))
        told = []
        for said, group in groups.items():
            best, *others = ranked(group)
            clips = [each.told() for each in (best, *others)]
            told.append({"prompt": said, "best": best.name, "why": why(best, others), "clips": clips})
            if not as_json:
                typer.echo(said or "(no prompt)")
                for each in (best, *others):
                    parts = "  ".join(f"{name} {value:.2f}" for name, value in each.parts.items())
                    typer.echo(f"  {each.score:.2f}  {each.name}  {parts}{f'  {each.reason}' if each.reason else ''}")
                typer.echo(f"  best: {why(best, others)}")
        if as_json:
            typer.echo(json.dumps(told, indent=2, ensure_ascii=False))


def _files(paths: list[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in _CLIPS and file.is_file())
            found += [file for file in inside if not file.name.startswith((".", "sheet"))]
        elif path.is_file():
            found.append(path)
        else:
            raise FileNotFoundError(2, "No such file", str(path))
    if not found:
        raise InvalidRequestError(Problem("paths", ", ".join(map(str, paths)), f"clips: {', '.join(_CLIPS)}"))
    return found
