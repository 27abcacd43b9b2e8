"""The options that describe a clip, which several commands take, and what a shell user is told of mistakes in them."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from cosmorama import strictjson
from cosmorama.errors import CosmoramaError, InvalidRequestError, MediaError, Problem
from cosmorama.media.sniff import known_kind
from cosmorama.media.source import located, map_media, output_for
from cosmorama.request import (
    SOLVERS,
    Action,
    Adapter,
    Control,
    ControlKind,
    GenerationRequest,
    MediaSource,
    Mode,
    Preset,
    Solver,
)
from cosmorama.resolve import check

_OWN = "the model's own"
_PRESETS = ", ".join(typing.get_args(Preset))
_TASKS = ", ".join(typing.get_args(Mode))


def clip_request(
    prompt: Annotated[str | None, typer.Argument(help="What to show; optional with --image or --video.")] = None,
    image: Annotated[str | None, typer.Option(help="Picture to start from: path or URL.")] = None,
    video: Annotated[str | None, typer.Option(help="Clip to continue: path or URL.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What to avoid.", show_default=_OWN)] = None,
    upsample: Annotated[
        bool | None, typer.Option(help="Rewrite the prompt in the model's language.", show_default="text2world only")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="0 to 4294967295.", show_default="random")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="How closely the prompt is followed.", show_default=_OWN)
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.", show_default=_OWN)] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT, one of the model's sizes.", show_default=_OWN)] = None,
    frames: Annotated[int | None, typer.Option(help="Frames in the result.", show_default=_OWN)] = None,
    seconds: Annotated[float | None, typer.Option(help="Its length, instead of frames.")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames per second.", show_default=_OWN)] = None,
    solver: Annotated[str | None, typer.Option(help=", ".join(SOLVERS), show_default=_OWN)] = None,
    guidance_interval: Annotated[
        tuple[float, float], typer.Option(help="Part of the steps in which guidance acts, two fractions of 0 to 1.")
    ] = (0.0, 1.0),
    guidance_rescale: Annotated[
        float, typer.Option(help="Takes back the contrast that guidance adds, 0 (none of it) to 1.")
    ] = 0.0,
    conditioning_frames: Annotated[
        int | None, typer.Option(help="How many frames of --video are the start.", show_default="the most that fit")
    ] = None,
    keep: Annotated[str, typer.Option(help="Which frames of --video these are: first or last.")] = "last",
    control: Annotated[
        list[str] | None,
        typer.Option(help="KIND[=FILE][:WEIGHT], such as edge or depth=d.mp4:0.5; may be repeated.", metavar="KIND..."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help=f"Of --control clips that are computed: {_PRESETS}.", show_default="medium"),
    ] = None,
    task: Annotated[str | None, typer.Option(help=f"{_TASKS}.", show_default="from the inputs")] = None,
    actions: Annotated[
        Path | None,
        typer.Option(help="JSON file: a robot's `domain`, with `values` (rows of numbers) or `steps` to predict."),
    ] = None,
    fit: Annotated[
        bool, typer.Option("--fit", help="Make a size or rate that the model lacks at its nearest one, and resample.")
    ] = False,
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="NAME[:SCALE] of a LoRA adapter that is loaded; may be repeated.", metavar="NAME..."),
    ] = None,
    flow_shift: Annotated[
        float | None, typer.Option(help="Shift of the noise schedule towards noise.", show_default=_OWN)
    ] = None,
    reuse: Annotated[
        float | None, typer.Option(help="Step reuse: accepted relative change of answers, 0 (exact) to 1.")
    ] = None,
    vae_tiling: Annotated[
        int | None, typer.Option(help="Frames in tiles of so many pixels, where the model takes it; 0: in one piece.")
    ] = None,
    quality: Annotated[int, typer.Option(help="1 (small) to 9 (best).")] = 7,
    codec: Annotated[str | None, typer.Option(help="h264, vp9 or av1.", show_default="the container's usual")] = None,
    output: Path = Path("world.mp4"),
) -> GenerationRequest:
    """The request that the options describe.

    Raises:
        InvalidRequestError: what needs no model to be known as a mistake, under the names of the options.
    """
    with in_shell_words():
        width, height = (None, None) if size is None else _size(size)
        format_ = output_for(output, quality)
        if codec is not None:
            format_ = type(format_)(format_.container, cast("Any", codec), quality)
        if preset is not None and not control:
            raise InvalidRequestError(Problem("preset", preset, "no value without --control"))
        request = GenerationRequest(
            prompt=prompt,
            negative_prompt=negative_prompt,
            prompt_upsampling=upsample,
            image=image,
            video=video,
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
            conditioning_frames=conditioning_frames,
            keep=cast("Any", _one_of("keep", keep, "first", "last")),
            task=None if task is None else cast("Any", _one_of("task", task, *typing.get_args(Mode))),
            action=None if actions is None else action_of_file(actions),
            fit=fit,
            controls=tuple(_control(text, preset) for text in control or ()),
            adapters=tuple(map(_adapter, adapter or ())),
            flow_shift=flow_shift,
            reuse=reuse,
            vae_tiling=vae_tiling,
            output=format_,
        )
    return before_loading(request)


def before_loading(request: GenerationRequest) -> GenerationRequest:
    """The request with its files as paths, and whatever is wrong with it that needs no model to be known.

    Raises:
        CosmoramaError: what is wrong, in the words of a shell.
    """
    with in_shell_words():
        request = located(request)
        check(request)
    with in_shell_words(request):
        map_media(request, _look_at)
    return request


def _look_at(field: str, source: MediaSource) -> MediaSource:
    """A file that is no picture or clip is told before a model is loaded; whoever decodes it looks closer.

    Raises:
        MediaError: it is none.
    """
    if isinstance(source, Path):
        with source.open("rb") as file:
            start = file.read(4096)
        if not start:
            raise MediaError(field, "is empty")
        known_kind(start, field, picture=field == "image")
    return source


class OptionError(InvalidRequestError):
    """A mistake in the options, told in the words of a shell."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__(*problems)
        self.args = ("; ".join(map(_shell_sentence, problems)),)


@contextmanager
def in_shell_words(request: GenerationRequest | None = None) -> Iterator[None]:
    """Errors in it name options instead of fields, and of an input the file or address that `request` has for it."""
    try:
        yield
    except InvalidRequestError as error:
        raise (OptionError(*error.problems) if error.problems else error) from None
    except MediaError as error:
        named: dict[str, MediaSource] = {}
        if request is not None:
            map_media(request, lambda field, source: named.setdefault(field, source))
        source = named.get(error.field)
        where = f" {_brief(str(source))}" if isinstance(source, (str, Path)) else ":"
        raise CosmoramaError(f"{_option(error.field)}{where} {error.message}") from None


def takes_a_request(command: Callable[..., None], *, into_folder: bool = False) -> Callable[..., None]:
    """A command with the options of `clip_request` before its own, given as `request`.

    `into_folder` says that the command's `output` is a folder, whose name tells no format.
    """
    own = inspect.signature(command, eval_str=True).parameters
    shared = inspect.signature(clip_request, eval_str=True).parameters
    names = [name for name in shared if name not in own]

    def run(**given: Any) -> None:
        from cosmorama.cli.options import errors_for_people

        with errors_for_people():
            options = {name: given.pop(name) for name in names}
            where = {"output": given["output"]} if given.get("output") is not None and not into_folder else {}
            request = clip_request(**options, **where)
        command(request=request, **given)

    parameters = [shared[name].replace(kind=inspect.Parameter.KEYWORD_ONLY) for name in names]
    parameters += [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in own.items()
        if name not in ("request",)
    ]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


_OPTIONS = {"width": "--size", "height": "--size", "prompt_upsampling": "--upsample", "output": "--output"}
_ARGUMENTS = ("prompt",)


def _shell_sentence(problem: Problem) -> str:
    said = _option(problem.field)
    accepted = problem.accepted.replace(", or null to draw one", "")
    if problem.value is None:
        return f"{said} is missing; expected {accepted}"
    return f"{said}: {_brief(str(problem.value))} is not accepted; expected {accepted}"


def _option(field: str) -> str:
    first = field.split(".", maxsplit=1)[0].split(" ", maxsplit=1)[0]
    if first in _ARGUMENTS:
        return "a prompt"
    option = _OPTIONS.get(first, "--" + first.replace("_", "-"))
    return option.removesuffix("s") if first in ("controls", "adapters") else option


def _brief(text: str) -> str:
    return (text if len(text) <= 400 else text[:300] + "...") or "an empty text"


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise InvalidRequestError(Problem("width", text, "WIDTHxHEIGHT, for example 1280x704"))
    return int(width), int(height)


def _one_of(field: str, value: str, *accepted: str) -> str:
    if value not in accepted:
        raise InvalidRequestError(Problem(field, value, " or ".join(accepted)))
    return value


def _control(text: str, preset: str | None) -> Control:
    kinds = typing.get_args(ControlKind)
    named, _, weight = text.rpartition(":") if _is_number(text.rpartition(":")[2]) else (text, "", "")
    kind, _, file = named.partition("=")
    if kind not in kinds:
        raise InvalidRequestError(Problem("controls", text, f"KIND[=FILE][:WEIGHT], a kind of {', '.join(kinds)}"))
    strength = cast("Preset", _one_of("preset", preset or "medium", *typing.get_args(Preset)))
    return Control(cast("ControlKind", kind), float(weight or 1), file or None, strength)


def action_of_file(path: Path) -> Action:
    """A robot's actions from a file: an object with the fields of `Action`. Rows say how many steps there are."""
    from pydantic import TypeAdapter, ValidationError

    try:
        given = strictjson.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        accepted = f'a JSON file with an object such as {{"domain": 8, "steps": 16}} ({error})'
        raise InvalidRequestError(Problem("actions", str(path), accepted)) from None
    if isinstance(given, dict) and isinstance(given.get("values"), list):
        given = {"steps": len(given["values"]), **given}
    known = [field.name for field in fields(Action)]
    if not isinstance(given, dict) or not given.keys() <= set(known):
        shown = f"{path}: {str(given)[:100]}"
        raise InvalidRequestError(Problem("actions", shown, f"an object with {', '.join(known)}"))
    try:
        return TypeAdapter(Action).validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidRequestError(Problem("actions", f"{path}: {where}".rstrip(": "), first["msg"])) from None


def _adapter(text: str) -> Adapter:
    name, _, scale = text.rpartition(":") if _is_number(text.rpartition(":")[2]) else (text, "", "")
    return Adapter(name or text, float(scale or 1))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
