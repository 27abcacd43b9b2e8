"""Many clips from a file of requests, in a way that can be interrupted: what is finished is never made again.

A folder holds the clips and `manifest.jsonl`, to which a line is added whenever a row is finished or has failed.
"""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cosmorama import strictjson
from cosmorama.client.client import AsyncClient
from cosmorama.client.protocol import media_text, suffix_of
from cosmorama.errors import CosmoramaError, InvalidRequestError, Problem
from cosmorama.media.source import FILES, map_media, media_source
from cosmorama.request import MAX_SEED, GenerationRequest, MediaSource

if TYPE_CHECKING:
    from cosmorama.judge import Look

MANIFEST = "manifest.jsonl"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the input.

    Attributes:
        name: Its `id`, or the number of its line; the clip is called so.
        body: What to make, in any of the formats that `POST /v1/jobs` takes.
        folder: Where local files that it names are looked for first.
        fingerprint: Differs when the row, the model or a local file was changed, so that it is made again.
        request: The same, understood; None where only the server can, because its part is not installed here.
    """

    name: str
    body: dict[str, Any]
    folder: Path
    fingerprint: str
    request: GenerationRequest | None

    @property
    def file(self) -> str:
        """Name of the clip."""
        output = self.body.get("output")
        named = output.get("container") if isinstance(output, dict) else None
        container = named if self.request is None else self.request.output.container
        return self.name + next((end for each, (end, _) in FILES.items() if each == container), ".mp4")


@dataclass(frozen=True, slots=True)
class Made:
    """What the manifest tells of a finished row beside its file."""

    seed: int
    prompt: str
    timings: dict[str, float]
    job: str | None = None
    file: str | None = None
    """Name of the clip, where it is another than the row's."""


@dataclass(slots=True)
class Report:
    """How a run went, by the names of rows."""

    made: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


Make = Callable[[Row, Path, str], Awaitable[Made]]
"""Makes a row's clip into a file; the text is an idempotency key, the same when the same attempt is repeated."""
OnRow = Callable[[Row, Literal["made", "skipped", "failed"]], None]


def read_rows(path: Path, model: str | None = None) -> list[Row]:
    """The rows of a file: a JSON object per line with the fields of `GenerationRequest`, or a body in one of the other
    formats that `POST /v1/jobs` takes; `id` names the clip.

    Local pictures and clips are found from the file's own folder.

    Args:
        path: The file.
        model: What makes them, for their fingerprints.

    Raises:
        InvalidRequestError: naming every line that is wrong, and what is wrong with it.
        OSError: the file cannot be read.
    """
    data = path.read_bytes()
    try:
        text = data.decode(json.detect_encoding(data))  # PowerShell's > writes UTF-16
    except UnicodeDecodeError as error:
        raise RowsError(f"{path} is not UTF-8 text: byte {error.start} is {data[error.start]:#04x}") from None
    _refuse_other_json(path, text)
    rows: dict[str, Row] = {}
    problems = []
    for number, line in enumerate(text.split("\n"), start=1):  # a line may hold U+2028, which ends none in JSON
        if not line.strip():
            continue
        try:
            row = _row(line, f"{number:05d}", path.parent, model)
        except CosmoramaError as error:
            problems.append(f"line {number}: {error}")
            continue
        if row.name in rows:
            problems.append(f"line {number}: another line has the id {row.name!r} too")
        rows[row.name] = row
    if not rows and not problems:
        raise RowsError(f'{path} holds no rows: a JSON object per line is needed, such as {{"prompt": "a red ball"}}')
    if problems:
        more = f"; and {len(problems) - 10} more lines" if len(problems) > 10 else ""
        raise RowsError("; ".join(problems[:10]) + more)
    return list(rows.values())


class RowsError(CosmoramaError):
    """Rows that cannot be made as they stand."""

    status = 422
    kind = "invalid_request_error"


def _refuse_other_json(path: Path, text: str) -> None:
    """Say so where the file is JSON, but not an object per line."""
    start = text.lstrip()[:1]
    first = next((line for line in text.split("\n") if line.strip()), "")
    if start == "[" or (start == "{" and not _is_object(first) and _is_object(text)):
        kind = "a JSON array" if start == "[" else "one JSON object over several lines"
        raise RowsError(f"{path} is {kind}; a JSON object per line is needed, as jq -c '.[]' prints of an array")


def _is_object(text: str) -> bool:
    try:
        return isinstance(strictjson.loads(text), dict)
    except ValueError:
        return False


async def run(
    rows: Sequence[Row], folder: Path, make: Make, *, parallel: int = 1, on_row: OnRow | None = None
) -> Report:
    """Make every row that is not finished yet, `parallel` at a time. A row that fails does not stop the others."""
    folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240  # before anything else runs on the loop
    manifest = Manifest(folder / MANIFEST)
    report, turn = Report(), asyncio.Semaphore(parallel)
    told = on_row or (lambda row, how: None)

    async def one(row: Row) -> None:
        if (file := manifest.file_of(row)) is not None and (folder / file).is_file():
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


async def best_of(
    rows: Sequence[Row],
    folder: Path,
    make: Make,
    look: Look,
    count: int,
    *,
    parallel: int = 1,
    on_row: OnRow | None = None,
) -> Report:
    """Make every row that is not finished yet `count` times, with seeds that follow one another; keep the best clip.

    Tries wait in the folder `tries` until all of a row are there, so that an interrupted run goes on with the next one.
    The manifest has, of a row, which try was kept and why, and what was found of each. Once is `run`.
    """
    if count == 1:
        return await run(rows, folder, make, parallel=parallel, on_row=on_row)
    from cosmorama.judge import ranked, why

    folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240
    manifest, tries = Manifest(folder / MANIFEST), folder / "tries"
    report, told = Report(), on_row or (lambda row, how: None)
    tried: dict[str, list[Row]] = {}
    for row in rows:
        if (file := manifest.file_of(row)) is not None and (folder / file).is_file():
            report.skipped.append(row.name)
            told(row, "skipped")
        else:
            tried[row.name] = [_try(row, number) for number in range(1, count + 1)]
    if not tried:
        return report
    made = await run([each for some in tried.values() for each in some], tries, make, parallel=parallel)
    noted = Manifest(tries / MANIFEST)
    for row in rows:
        if row.name not in tried:
            continue
        if failures := [made.failed[each.name] for each in tried[row.name] if each.name in made.failed]:
            manifest.failed(row, failures[0])
            report.failed[row.name] = failures[0]
            told(row, "failed")
            continue
        files = {each.name: tries / str(noted.file_of(each)) for each in tried[row.name]}
        prompt = row.body.get("prompt") if row.request is None else row.request.prompt
        # One after the other: an endpoint is asked about one clip at a time.
        found = [await asyncio.to_thread(look, file, name, prompt) for name, file in files.items()]
        best, *others = ranked(found)
        kept = next(each for each in tried[row.name] if each.name == best.name)
        clip = files[best.name].replace(folder / (row.name + files[best.name].suffix))
        manifest.made(
            row,
            replace(noted.made_of(kept), file=clip.name),
            kept=best.name,
            why=why(best, others),
            tries=[each.told() for each in (best, *others)],
        )
        for name in files.keys() - {best.name}:
            files[name].unlink()
        report.made.append(row.name)
        told(row, "made")
    return report


def _try(row: Row, number: int) -> Row:
    """The row with the seed of one try."""
    seed = row.body.get("seed") if row.request is None else row.request.seed
    if not isinstance(seed, int):  # the same in every run
        seed = int(row.fingerprint[:8], 16)
    seed = (seed + number - 1) % (MAX_SEED + 1)
    request = None if row.request is None else replace(row.request, seed=seed)
    body = {**row.body, "seed": seed}
    return replace(
        row, name=f"{row.name}-{number}", body=body, fingerprint=f"{row.fingerprint}-{seed}", request=request
    )


class Manifest:
    """What became of the rows, a JSON object per line, the last one about a row counts.

    A line that was cut off when the machine stopped is passed over.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last: dict[str, dict[str, Any]] = {}
        self._failures: dict[tuple[str, str], int] = {}
        # A line may have been cut off within a letter.
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        if text and not text.endswith("\n"):
            self._write("\n")
        self._batch = ""
        for line in text.split("\n"):
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError):
                continue
        if not self._batch:
            self._batch = uuid.uuid4().hex
            self._write(json.dumps({"batch": self._batch}) + "\n")

    def file_of(self, row: Row) -> str | None:
        """The name of its clip, if the row was finished as it is now."""
        last = self._last.get(row.name)
        if last is None or last["fingerprint"] != row.fingerprint or "error" in last:
            return None
        return str(last.get("file", row.file))

    def key(self, row: Row) -> str:
        """The same for a row until it fails or is edited: a server that has the job already gives it again."""
        attempt = self._failures.get((row.name, row.fingerprint), 0)
        return sha256(f"{self._batch} {row.name} {row.fingerprint} {attempt}".encode()).hexdigest()

    def made(self, row: Row, made: Made, **more: Any) -> None:
        """Note that a row is finished, and more of it."""
        self._add(
            {
                "name": row.name,
                "fingerprint": row.fingerprint,
                "file": made.file or row.file,
                "seed": made.seed,
                "prompt": made.prompt,
                "timings": {stage: round(seconds, 3) for stage, seconds in made.timings.items()},
                "job": made.job,
                **more,
            }
        )

    def made_of(self, row: Row) -> Made:
        """What is noted of a row that is finished as it is now."""
        last = self._last[row.name]
        return Made(last["seed"], last["prompt"], last["timings"], last["job"], last.get("file", row.file))

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
        body = {**with_files(row.body, row.folder), **({} if model is None else {"model": model})}
        job = await client.submit_body(body, idempotency_key=key)
        status = await job.wait()
        output = output.with_name(row.name + (suffix_of(status) or output.suffix))
        await job.download(output)
        if status.result is None:
            raise CosmoramaError(f"job {job.id} has no clip")
        result = status.result
        return Made(result.seed, result.upsampled_prompt, result.timings_s, job.id, output.name)

    return make


def in_process(model: str) -> Make:
    """Rows are made by a model that is loaded into this process with the first of them."""
    import cosmorama

    loaded = cosmorama.load(model)

    async def make(row: Row, output: Path, key: str) -> Made:
        # Under another name until it is whole: a file that is there is a finished one.
        part = output.with_name(f".{output.name}.part")
        if row.request is None:
            raise CosmoramaError("the row is in a format that is not understood here")
        outcome = loaded.generate_file(row.request, part)
        part.replace(output)
        return Made(outcome.seed, outcome.prompt, outcome.timings)

    return make


_FIELDS = frozenset(field.name for field in fields(GenerationRequest))
_OF_JOBS = frozenset({"dialect", "priority", "deadline_s", "metadata", "webhook_url"})
"""Fields of a submission that say nothing of the clip."""
_NO_MEDIA = _OF_JOBS | {"model", "user"}


def _row(line: str, number: str, folder: Path, model: str | None) -> Row:
    try:
        body = strictjson.loads(line)
    except strictjson.RepeatedFieldError as error:
        raise RowsError(str(error)) from None
    except ValueError as error:
        raise RowsError(f"this is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise RowsError("this is no JSON object")
    name = body.pop("id") if "id" in body else body.pop("name", number) if "name" not in _FIELDS else number
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise InvalidRequestError(Problem("id", name, "a text of letters, digits, '.', '_' and '-', at most 100"))
    if "dialect" not in body and body.keys() - _OF_JOBS <= _FIELDS:
        body["dialect"] = "cosmorama"
    seen = {key: value for key, value in body.items() if key != "dialect" or value != "cosmorama"}
    digest = sha256(json.dumps(seen, sort_keys=True).encode())
    if model is not None:
        digest.update(f" model {model}".encode())
    for file in _files(body, folder):
        digest.update(sha256(file.read_bytes()).digest())
    return Row(name, body, folder, digest.hexdigest(), _understood(body, folder))


def _understood(body: dict[str, Any], folder: Path) -> GenerationRequest | None:
    try:
        from cosmorama.api.dialects import DIALECTS
        from cosmorama.api.dialects.base import choose
        from cosmorama.settings import Settings
    except ModuleNotFoundError:  # the client alone is installed
        return None
    plain = {key: value for key, value in body.items() if key not in _OF_JOBS}
    named = body.get("dialect")
    if named is None and not any(dialect.recognises(plain) for dialect in DIALECTS):
        named = "cosmorama"
    request = choose(DIALECTS, plain, named).parse(plain, Settings())

    def found(where: str, source: MediaSource) -> MediaSource:
        # A name that is only there seen from the file's folder has to be looked for there.
        return (_local(source, folder) if isinstance(source, str) else None) or media_source(source)

    return map_media(request, found)


def _local(text: str, folder: Path) -> Path | None:
    if not 0 < len(text) < 1024 or "://" in text or "\n" in text:
        return None
    for path in (folder / text, Path(text).expanduser()):
        if path.is_file():
            return path
    return None


def _files(value: Any, folder: Path, key: str = "") -> Iterator[Path]:
    """The local files that a body names, in its order."""
    if isinstance(value, dict):
        for name in sorted(value.keys() - _NO_MEDIA):
            yield from _files(value[name], folder, name)
    elif isinstance(value, list):
        for item in value:
            yield from _files(item, folder, key)
    elif isinstance(value, str) and "prompt" not in key and (path := _local(value, folder)) is not None:
        yield path


def with_files(value: Any, folder: Path, key: str = "") -> Any:
    """A body with the contents of local files in the place of their names."""
    if isinstance(value, dict):
        return {name: item if name in _NO_MEDIA else with_files(item, folder, name) for name, item in value.items()}
    if isinstance(value, list):
        return [with_files(item, folder, key) for item in value]
    if isinstance(value, str) and "prompt" not in key and (path := _local(value, folder)) is not None:
        return media_text(path)
    return value
