"""`cosmorama play`: the arrow keys drive a camera through a world, in a terminal, and leave a clip and its actions."""

from __future__ import annotations

import json
import os
import select
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cosmorama.cli.options import ForceOption, OutputOption, errors_for_people, file_to_write, needs_serve
from cosmorama.cli.request import OptionError, action_of_file, before_loading, in_shell_words
from cosmorama.errors import Problem
from cosmorama.request import MAX_SEED, Action, ActionDomain, GenerationRequest

if TYPE_CHECKING:
    from PIL import Image

    from cosmorama.local import Model

Move = tuple[float, float, float]
"""Forward, m/s; turn to the left, rad/s; step to the left, m/s."""
HELP = "up/down: speed   left/right: turn   a/d: step aside   space: stop   q: leave"
STANDING: Move = (0.0, 0.0, 0.0)
_KEYS = {"\x1b[A": "up", "\x1b[B": "down", "\x1b[C": "right", "\x1b[D": "left", "\x03": "q", "\x1b": "q"}
_PUSH: dict[str, Move] = {
    "up": (0.25, 0, 0),
    "down": (-0.25, 0, 0),
    "left": (0, 0.3, 0),
    "right": (0, -0.3, 0),
    "a": (0, 0, 0.2),
    "d": (0, 0, -0.2),
}
_EASE = (1.0, 0.8, 0.7)
"""What is left of each number in the next frame: the speed is kept, the wheel comes back."""


def play(
    prompt: Annotated[str | None, typer.Argument(help="What the world shows at first.")] = None,
    image: Annotated[str | None, typer.Option(help="A picture to start from: a file or URL.")] = None,
    actions: Annotated[
        Path | None, typer.Option(help="JSON file as it is left behind: nobody drives, these are done again.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help=f"0 to {MAX_SEED}.", show_default="drawn")] = None,
    output: OutputOption = None,
    force: ForceOption = False,
    model: Annotated[str, typer.Option(help="Name or checkpoint folder of a model that can be driven.")] = "microcosm",
    threads: Annotated[int | None, typer.Option(help="CPU threads.", min=1)] = None,
) -> None:
    """Drive through a world; the clip and its actions are left beside each other. Needs a terminal with true colors."""
    with errors_for_people(), needs_serve():
        path = file_to_write(output, force=force)
        if actions is None and not sys.stdin.isatty():
            raise OptionError(Problem("actions", None, "a file, where no terminal is"))
        with in_shell_words():
            given = None if actions is None else action_of_file(actions)
        request = before_loading(GenerationRequest(prompt=prompt, image=image, seed=seed, width=640, height=352))
        import cosmorama

        loaded = cosmorama.load(model, threads=threads)
        with in_shell_words(request):
            if given is None:
                domain, request, session = _session(loaded, request)
                with _terminal() as keys:
                    values = tuple(by_hand(session, domain, keys, _paint, domain.fps or 12))
                given = Action(domain.id, values or (STANDING,), steps=max(1, len(values)))
            typer.echo(f"{given.steps + 1} frames")
            outcome = loaded.generate_file(replace(request, action=given), path)
        beside = path.with_suffix(".actions.json")
        beside.write_text(json.dumps({"domain": given.domain, "values": given.values}) + "\n")
        typer.echo(f"{path}  seed {outcome.seed}\nactions: {beside}\nprompt: {outcome.prompt}")
        for warning in outcome.warnings:
            typer.echo(f"warning: {warning}", err=True)


Session = Callable[[Move], "Image.Image"]
"""Does an action, and gives the small picture that it leads to."""


def _session(loaded: Model, request: GenerationRequest) -> tuple[ActionDomain, GenerationRequest, Session]:
    """A drive at its first frame, and the request for it with its seed."""
    import torch
    from PIL import Image

    from cosmorama.resolve import resolve
    from cosmorama.world.microcosm.driving import DRIVE, scaled, start
    from cosmorama.world.microcosm.sampling import FlowWorld

    world, capabilities = loaded.world, loaded.capabilities
    resolved = resolve(replace(request, action=Action(DRIVE.id, (STANDING,), steps=1)), capabilities)
    assert isinstance(world, FlowWorld)  # no other model has the domain
    assert world.driver is not None
    driver = start(world.driver, loaded.preparer(resolved, capabilities).inputs, world.encode_text)

    def do(move: Move) -> Image.Image:
        frame = driver.drive(scaled(torch.tensor([move]), resolved.fps))[0]
        return Image.fromarray((frame * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy())

    return DRIVE, replace(request, seed=resolved.seed), do


def by_hand(
    do: Session, domain: ActionDomain, keys: Callable[[], list[str]], show: Callable[[Any, Move], None], fps: float
) -> Iterator[Move]:
    """The actions of somebody at the keys, one per frame, until "q" is pressed or the clip is as long as it may be."""
    move, due = STANDING, time.monotonic()
    for _ in range((domain.longest or 121) - 1):
        pressed = keys()
        if "q" in pressed:
            return
        move = steered(move, pressed, domain)
        yield move
        show(do(move), move)
        due = max(due + 1 / fps, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))


def steered(move: Move, pressed: list[str], domain: ActionDomain) -> Move:
    """What is done next: the action before, eased, with what was pressed since, and no more than is accepted."""
    numbers = [number * ease for number, ease in zip(move, _EASE, strict=True)]
    for key in pressed:
        numbers = [number + push for number, push in zip(numbers, _PUSH.get(key, STANDING), strict=True)]
        if key == " ":
            numbers = [0.0, 0.0, 0.0]
    held = [round(min(max(number, r.low), r.high), 3) for number, r in zip(numbers, domain.ranges, strict=True)]
    return held[0], held[1], held[2]


def text_of(picture: Image.Image, columns: int, rows: int) -> str:
    """A picture in half blocks of true color, as large as fits into so many characters."""
    scale = min(columns / picture.width, 2 * rows / picture.height)
    small = picture.resize((max(1, int(picture.width * scale)), 2 * max(1, int(picture.height * scale / 2))))
    lines = []
    for y in range(0, small.height, 2):
        cells = [(small.getpixel((x, y)), small.getpixel((x, y + 1))) for x in range(small.width)]
        lines.append("".join(f"\x1b[38;2;{_rgb(top)};48;2;{_rgb(low)}m▀" for top, low in cells) + "\x1b[0m")
    return "\r\n".join(lines)


def _rgb(pixel: Any) -> str:
    return ";".join(map(str, pixel))


def keys_in(text: str) -> list[str]:
    """The keys in what a terminal sent."""
    found = []
    while text:
        code = next((code for code in _KEYS if text.startswith(code)), text[0])
        found.append(_KEYS.get(code, code))
        text = text[len(code) :]
    return found


def _paint(picture: Any, move: Move) -> None:
    columns, rows = shutil.get_terminal_size()
    said = f"forward {move[0]:+.2f} m/s, turn {move[1]:+.2f} rad/s, aside {move[2]:+.2f} m/s"
    below = "\r\n".join(f"\x1b[K{line[:columns]}" for line in (said, HELP))  # a terminal is 80 columns wide
    sys.stdout.write(f"\x1b[H{text_of(picture, columns, rows - 2)}\r\n{below}")
    sys.stdout.flush()


@contextmanager
def _terminal() -> Iterator[Callable[[], list[str]]]:
    """Another screen whose keys come one by one, and what was pressed since it was asked last."""
    import termios
    import tty

    file = sys.stdin.fileno()
    before = termios.tcgetattr(file)

    def pressed() -> list[str]:
        text = ""
        while select.select([file], [], [], 0)[0]:
            text += os.read(file, 1024).decode(errors="ignore")
        return keys_in(text)

    try:
        tty.setcbreak(file)
        sys.stdout.write("\x1b[?1049h\x1b[?25l\x1b[2J")
        yield pressed
    finally:
        termios.tcsetattr(file, termios.TCSADRAIN, before)
        sys.stdout.write("\x1b[?25h\x1b[?1049l")
        sys.stdout.flush()
