"""Many clips from a file of requests, in a way that can be interrupted: what is finished is never made again.

A folder holds the clips and `manifest.jsonl`, to which a line is added whenever a row is finished or has failed.
"""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from cosmorama.api.body import parse_object
from cosmorama.api.dialects.native import to_request
from cosmorama.client.client import AsyncClient
from cosmorama.errors import CosmoramaError, InvalidRequestError, Problem
from cosmorama.media.source import media_source
from cosmorama.media.write import suffix
from cosmorama.request import GenerationRequest, MediaSource

MANIFEST = "manifest.jsonl"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the input.

    Attributes:
        name: Its `id`, or the number of its line; the clip is called so.
        request: What to make.
        fingerprint: Differs when the row was edited, so that it is made again.
    """

    name: str
    request: GenerationRequest
    fingerprint: str

    @property
    def file(self) -> str:
        """Name of the clip."""
        return self.name + suffix(self.request.output)


@dataclass(frozen=True, slots=True)
class Made:
    """What the manifest tells of a finished row beside its file."""

    seed: int
    prompt: str
    timings: dict[str, float]
    job: str | None = None


@dataclass(slots=True)
class Report:
    """How a run went, by the names of rows."""

    made: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


Make = Callable[[Row, Path, str], Awaitable[Made]]
"""Makes a row's clip into a file; the text is an idempotency key, the same when the same attempt is repeated."""
OnRow = Callable[[Row, Literal["made", "skipped", "failed"]], None]


def read_rows(path: Path) -> list[Row]:
    """The rows of a file: a JSON object per line with the fields of `GenerationRequest`, and `id` to name the clip.

    Local pictures and clips are found from the file's own folder.

    Raises:
        InvalidRequestError: naming every line that is wrong, and what is wrong with it.
        OSError: the file cannot be read.
    """
    rows: dict[str, Row] = {}
    problems = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = _row(line, f"{number:05d}", path.parent)
        except CosmoramaError as error:
            problems.append(Problem(f"line {number}", line, str(error)))
            continue
        if row.name in rows:
            problems.append(Problem(f"line {number}", row.name, "an id that no other line has"))
        rows[row.name] = row
    if problems:
        raise InvalidRequestError(*problems)
    return list(rows.values())


async def run(
    rows: Sequence[Row], folder: Path, make: Make, *, parallel: int = 1, on_row: OnRow | None = None
) -> Report:
    """Make every row that is not finished yet, `parallel` at a time. A row that fails does not stop the others."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(folder / MANIFEST)
    report, turn = Report(), asyncio.Semaphore(parallel)
    told = on_row or (lambda row, how: None)

    async def one(row: Row) -> None:
        if manifest.has(row) and (folder / row.file).is_file():
            report.skipped.append(row.name)
            told(row, "skipped")
            return
        async with turn:
            try:
                made = await make(row, folder / row.file, manifest.key(row))
            except (CosmoramaError, OSError) as error:
                manifest.failed(row, str(error))
                report.failed[row.name] = str(error)
                told(row, "failed")
                return
        manifest.made(row, made)
        report.made.append(row.name)
        told(row, "made")

    async with asyncio.TaskGroup() as group:
        for row in rows:
            group.create_task(one(row))
    return report


class Manifest:
    """What became of the rows, a JSON object per line, the last one about a row counts.

    A line that was cut off when the machine stopped is passed over.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last: dict[str, dict[str, Any]] = {}
        self._failures: dict[tuple[str, str], int] = {}
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if text and not text.endswith("\n"):
            self._write("\n")
        self._batch = ""
        for line in text.splitlines():
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError):
                continue
        if not self._batch:
            self._batch = uuid.uuid4().hex
            self._write(json.dumps({"batch": self._batch}) + "\n")

    def has(self, row: Row) -> bool:
        """Whether the row was finished as it is now."""
        last = self._last.get(row.name)
        return last is not None and last["fingerprint"] == row.fingerprint and "error" not in last

    def key(self, row: Row) -> str:
        """The same for a row until it fails or is edited: a server that has the job already gives it again."""
        attempt = self._failures.get((row.name, row.fingerprint), 0)
        return sha256(f"{self._batch} {row.name} {row.fingerprint} {attempt}".encode()).hexdigest()

    def made(self, row: Row, made: Made) -> None:
        """Note that a row is finished."""
        self._add(
            {
                "name": row.name,
                "fingerprint": row.fingerprint,
                "file": row.file,
                "seed": made.seed,
                "prompt": made.prompt,
                "timings": {stage: round(seconds, 3) for stage, seconds in made.timings.items()},
                "job": made.job,
            }
        )

    def failed(self, row: Row, error: str) -> None:
        """Note that a row has failed; it is tried again by the next run."""
        self._add({"name": row.name, "fingerprint": row.fingerprint, "error": error})

    def _add(self, entry: dict[str, Any]) -> None:
        self._take(entry)
        self._write(json.dumps(entry, ensure_ascii=False) + "\n")

    def _take(self, entry: dict[str, Any]) -> None:
        if "batch" in entry:
            self._batch = str(entry["batch"])
            return
        name, fingerprint = entry["name"], entry["fingerprint"]
        self._last[name] = entry
        if "error" in entry:
            self._failures[name, fingerprint] = self._failures.get((name, fingerprint), 0) + 1

    def _write(self, text: str) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(text)


def on_server(client: AsyncClient, model: str | None) -> Make:
    """Rows are made by a server."""

    async def make(row: Row, output: Path, key: str) -> Made:
        job = await client.submit(row.request, model=model, idempotency_key=key)
        status = await job.wait()
        await job.download(output)
        assert status.result is not None
        return Made(status.result.seed, status.result.upsampled_prompt, status.result.timings_s, job.id)

    return make


def in_process(model: str) -> Make:
    """Rows are made by a model that is loaded into this process with the first of them."""
    import cosmorama

    loaded = cosmorama.load(model)

    async def make(row: Row, output: Path, key: str) -> Made:
        # Under another name until it is whole: a file that is there is a finished one.
        part = output.with_name(f".{output.name}.part")
        outcome = loaded.generate_file(row.request, part)
        part.replace(output)
        return Made(outcome.seed, outcome.prompt, outcome.timings)

    return make


def _row(line: str, number: str, folder: Path) -> Row:
    body = parse_object(line.encode())
    name = body.pop("id", number)
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise InvalidRequestError(Problem("id", name, "a text of letters, digits, '.', '_' and '-', at most 100"))
    request = to_request(body, quality=7)
    request = replace(
        request,
        image=_found_from(folder, request.image),
        video=_found_from(folder, request.video),
        controls=tuple(replace(control, source=_found_from(folder, control.source)) for control in request.controls),
    )
    return Row(name, request, sha256(json.dumps(body, sort_keys=True).encode()).hexdigest())


def _found_from(folder: Path, source: MediaSource | None) -> MediaSource | None:
    if not isinstance(source, str):
        return source
    # A name that is only there seen from the file's folder has to be looked for there.
    within = folder / source if len(source) < 256 and "://" not in source else None
    return within if within is not None and within.is_file() else media_source(source)
