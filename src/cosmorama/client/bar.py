"""A progress bar for a terminal, for jobs here and on a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Show = Callable[[str, int, int], None]
"""`(stage, step, total)`."""

_STAGES = {
    "queued": "waiting",
    "prepare": "reading inputs",
    "encode": "encoding",
    "denoise": "denoising",
    "decode": "writing frames",
    "done": "done",
}


@contextmanager
def progress_bar(*, first: str = "waiting", disable: bool = False) -> Iterator[Show]:
    """A bar on standard error that the yielded function moves; nothing is written where that is no terminal."""
    bar = Progress(
        TextColumn("{task.description:>15}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=disable,
    )
    with bar:
        task = bar.add_task(first, total=None)

        def show(stage: str, step: int, total: int) -> None:
            description = _STAGES.get(stage, stage)
            if stage == "done":  # has no steps of its own: the bar stays full
                bar.update(task, description=description)
            else:
                bar.update(task, description=description, completed=step, total=total or None)

        yield show
