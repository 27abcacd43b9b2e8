"""A grid made into a folder, in this process or on a server: its clips, and sheets of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

from cosmorama import batch
from cosmorama.client.client import AsyncClient
from cosmorama.grid.plan import Axis, Cell, labels
from cosmorama.grid.sheet import Sheet, write_sheet
from cosmorama.judge import Look, look_at
from cosmorama.request import GenerationRequest


@dataclass(frozen=True, slots=True)
class Report:
    """How a grid went: how many clips were made and how many were there, why the others failed, and its sheets."""

    made: int
    skipped: int
    failed: dict[str, str]
    sheets: tuple[Path, ...]


async def make_grid(
    planned: Sequence[Cell],
    axes: Sequence[Axis],
    folder: Path,
    *,
    model: str | None = None,
    server: str | None = None,
    api_key: str | None = None,
    parallel: int = 1,
    on_cell: Callable[[str, str], None] | None = None,
    best_of: int = 1,
    look: Look = look_at,
) -> Report:
    """Make the cells that are not there yet, then one sheet per value of the third axis, as MP4 and as PNG.

    On a server the jobs carry the labels by which the studio shows them as a grid, under the name `grid-...`; not so
    where each cell is the best of several.

    Raises:
        CosmoramaError: the server or the model cannot be had; what is wrong with single cells is in the report.
    """
    rows = [
        batch.Row(cell.name, {}, folder, sha256(f"{model} {_told(cell.request)}".encode()).hexdigest(), cell.request)
        for cell in planned
    ]
    by_name = {cell.name: cell for cell in planned}

    def told(row: batch.Row, how: Literal["made", "skipped", "failed"]) -> None:
        if on_cell is not None:
            on_cell(row.name, how)

    if server is None:
        make = batch.in_process(model or "microcosm")
        report = await batch.best_of(rows, folder, make, look, best_of, on_row=told)
    else:
        name = "grid-" + sha256("".join(row.fingerprint for row in rows).encode()).hexdigest()[:12]
        # The studio counts the axes from x on; here the order is that of the names of files.
        order = sorted(range(len(axes)), key=lambda at: axes[at].name)
        ordered = [axes[at] for at in order]
        async with AsyncClient(server, api_key=api_key) as client:

            async def on_server(row: batch.Row, output: Path, key: str) -> batch.Made:
                cell = by_name.get(row.name)  # several tries are none
                metadata = {} if cell is None else labels(name, ordered, [cell.place[at] for at in order])
                assert row.request is not None
                job = await client.submit(row.request, model=model, idempotency_key=key, metadata=metadata)
                status = await job.wait()
                await job.download(output)
                assert status.result is not None
                return batch.Made(status.result.seed, status.result.upsampled_prompt, status.result.timings_s, job.id)

            report = await batch.best_of(rows, folder, on_server, look, best_of, parallel=parallel, on_row=told)
    sheets = write_sheets(planned, axes, folder)
    return Report(len(report.made), len(report.skipped), report.failed, tuple(sheets))


def _told(request: GenerationRequest) -> str:
    # Its own representation leaves pictures and clips out.
    sources = (request.image, request.video, *(control.source for control in request.controls))
    return repr((request, *map(repr, sources)))


def write_sheets(planned: Sequence[Cell], axes: Sequence[Axis], folder: Path) -> list[Path]:
    """The sheets of the clips that are in a folder: `sheet.mp4` and `sheet.png`, numbered where there are pages."""
    files = {cell.place: path for cell in planned if (path := folder / f"{cell.name}.mp4").is_file()}
    at = {axis.name: index for index, axis in enumerate(axes)}

    def values(name: Literal["x", "y", "z"]) -> range:
        return range(len(axes[at[name]].values)) if name in at else range(1)

    def titles(name: Literal["x", "y"]) -> list[str]:
        if name not in at:
            return []
        axis = axes[at[name]]
        return [f"{axis.knob} {value}" for value in axis.values]

    written = []
    for page in values("z"):
        places = {
            (row, column): tuple({"z": page, "y": row, "x": column}[axis.name] for axis in axes)
            for row, column in itertools.product(values("y"), values("x"))
        }
        rows = [[files.get(places[row, column]) for column in values("x")] for row in values("y")]
        if not any(path for row in rows for path in row):
            continue
        sheet = Sheet(rows, titles("x"), titles("y"))
        stem = f"sheet-{page + 1}" if "z" in at else "sheet"
        for format in ("mp4", "png"):
            path = folder / f"{stem}.{format}"
            write_sheet(sheet, path, format=format)
            written.append(path)
    return written
