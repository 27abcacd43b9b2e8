"""What a job is, to everyone outside the store: an immutable snapshot; what happens to it, and who is told."""

from __future__ import annotations

import asyncio
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic_core import to_json

from cosmorama.engine.outcome import Outcome
from cosmorama.engine.scheduler import Priority
from cosmorama.errors import ContentGoneError as ContentGoneError
from cosmorama.errors import CosmoramaError, InvalidRequestError, MediaError, Problem
from cosmorama.errors import JobConflictError as JobConflictError
from cosmorama.errors import JobNotFoundError as JobNotFoundError
from cosmorama.errors import StoreUnavailableError as StoreUnavailableError
from cosmorama.progress import Progress, Stage
from cosmorama.request import GenerationRequest, MediaSource, ResolvedRequest

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]

STATES: tuple[State, ...] = get_args(State)

FINAL: frozenset[State] = frozenset({"succeeded", "failed", "cancelled"})

"""States that a job never leaves."""


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job failed or was cancelled: the error that a synchronous client would have got.

    Attributes:
        type: `CosmoramaError.kind`.
        status: Its HTTP status.
        message: In words.
        problems: For invalid requests: the fields that are wrong, under the names of `ResolvedRequest`.
        field: For media: the input that cannot be used.
    """

    type: str
    status: int
    message: str
    problems: tuple[Problem, ...] = ()
    field: str | None = None

    @classmethod
    def of(cls, error: CosmoramaError) -> JobError:
        """The record of an error."""
        if isinstance(error, InvalidRequestError):
            return cls(error.kind, error.status, str(error), problems=error.problems)
        if isinstance(error, MediaError):
            return cls(error.kind, error.status, error.message, field=error.field)
        return cls(error.kind, error.status, str(error))

    @property
    def text(self) -> str:
        """The message as a client reads it."""
        return str(self.exception())

    def exception(self) -> CosmoramaError:
        """The error again, to be raised: an `InvalidRequestError`, a `MediaError`, or a `JobFailedError`."""
        if self.problems:
            return InvalidRequestError(*self.problems)
        if self.field is not None:
            return MediaError(self.field, self.message, status=self.status)
        return JobFailedError(self)


class JobFailedError(CosmoramaError):
    """A job's recorded error, raised to whoever waited for it, with the status and kind it had."""

    def __init__(self, error: JobError) -> None:
        self.status = error.status
        self.kind = error.type
        super().__init__(error.message)


@dataclass(frozen=True, slots=True)
class JobResult:
    """The clip of a succeeded job.

    Attributes:
        outcome: What was really used to make it; its `path` is the clip's name only, see `Jobs.open_content`.
        media_type: Such as `video/mp4`.
        bytes: Size of the clip.
        key: The clip's, in the artifact store; None once it was removed.
    """

    outcome: Outcome
    media_type: str
    bytes: int
    key: str | None

    @property
    def available(self) -> bool:
        """Whether the clip is still there."""
        return self.key is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A snapshot of a job.

    Attributes:
        id: Unique, URL-safe, ordered by acceptance within a server: `job_` and 26 letters and digits.
        state: Where it is in its life.
        dialect: Name of the wire format it came in.
        model: Name of the model it was accepted for.
        owner: Whose it is: a digest of the API key, or empty where the server has no keys.
        request: As accepted: resolved, seed drawn. Media that came inline is in the artifact store and stands here as a
            `Path`, its key there; URLs are as they came.
        priority: Class of service.
        metadata: The client's own labels.
        progress: Stage, and steps done of all.
        queue_position: 1 for the next to start; None when not queued.
        eta_s: Seconds until it is expected to be finished; None when unknown or over.
        created_at, started_at, finished_at, deadline_at: Seconds since the epoch; None: not yet (no deadline).
        attempts: How often it was started; more than one after a crash.
        error: Of failed and cancelled jobs.
        result: Of succeeded jobs.
        idempotency_key: The key it was accepted under, if any.
        webhook_url: Told when the job is over, if any.
        attached: Whether a client waits for it on a connection, and nobody wants it otherwise.
        readable: False for what another release wrote in a way that this one cannot read: the request is then nobody's.
    """

    id: str
    state: State
    dialect: str
    model: str
    owner: str
    request: ResolvedRequest
    priority: Priority
    created_at: float
    metadata: Mapping[str, str] = field(default_factory=dict)
    progress: Progress = field(default_factory=lambda: Progress("queued"))
    queue_position: int | None = None
    eta_s: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    deadline_at: float | None = None
    attempts: int = 0
    error: JobError | None = None
    result: JobResult | None = None
    idempotency_key: str | None = None
    webhook_url: str | None = None
    attached: bool = False
    readable: bool = True

    @property
    def final(self) -> bool:
        """Whether the job is over."""
        return self.state in FINAL

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was fitted, replaced, cut or ignored, as far as is known yet."""
        return self.request.warnings if self.result is None else self.result.outcome.warnings

    @property
    def checks(self) -> list[dict[str, str]]:
        """What each guardrail decided; of a job that one refused, that it did."""
        if self.result is not None:
            return [asdict(check) for check in self.result.outcome.checks]
        refusing = {"prompt_refused": "prompt", "frames_refused": "frames"}
        if self.error is None or self.error.type not in refusing:
            return []
        return [{"check": self.error.message, "on": refusing[self.error.type], "decided": "refused"}]

    def summary(self) -> dict[str, Any]:
        """The job in JSON: what `GET /v1/jobs/{id}` answers and webhooks carry. Holds no media and no prompt inputs."""
        request, result = self.request, self.result
        return {
            "id": self.id,
            "object": "job",
            "state": self.state,
            "dialect": self.dialect,
            "model": self.model,
            "mode": request.mode,
            "priority": self.priority,
            "stage": self.progress.stage,
            "step": self.progress.step,
            "total": self.progress.total,
            "queue_position": self.queue_position,
            "eta_s": None if self.eta_s is None else round(self.eta_s, 1),
            "created_at": self.created_at,
            "started_at": self.started_at,
            "finished_at": self.finished_at,
            "deadline_at": self.deadline_at,
            "attempts": self.attempts,
            "request": _knobs(self) if self.readable else None,
            "warnings": list(self.warnings),
            "guardrails": self.checks,
            "metadata": dict(self.metadata),
            "error": None
            if self.error is None
            else {"message": self.error.text, "type": self.error.type, "code": self.error.status},
            "result": None
            if result is None
            else {
                "content_url": f"/v1/jobs/{self.id}/content" if result.available else None,
                "media_type": result.media_type,
                "bytes": result.bytes,
                "seed": result.outcome.seed,
                "upsampled_prompt": result.outcome.prompt,
                "timings_s": {stage: round(seconds, 3) for stage, seconds in result.outcome.timings.items()},
                "actions_url": None if result.outcome.action is None else f"/v1/jobs/{self.id}/actions",
            },
        }


def _knobs(job: Job) -> dict[str, Any]:
    """The whole request in the server's own wire format, so that it can be sent again as it is.

    Media that came inline stands as the path under which the server gives it out.
    """
    asked = job.request

    def reference(where: str, source: MediaSource | None) -> str | None:
        if isinstance(source, Path):
            return f"/v1/jobs/{job.id}/inputs/{where}"
        return None if source is None else str(source)

    known = {field.name: getattr(asked, field.name) for field in fields(GenerationRequest) if field.name not in _INWARD}
    return known | {
        "width": asked.result.width,
        "height": asked.result.height,
        "frames": asked.result.frames,
        "fps": asked.result.fps,
        "image": reference("image", asked.image),
        "video": reference("video", asked.video),
        "guidance_interval": list(asked.guidance_interval),
        "output": asdict(asked.output),
        "controls": [
            asdict(replace(control, source=None)) | {"source": reference(f"controls.{index}.source", control.source)}
            for index, control in enumerate(asked.controls)
        ],
        "action": None if asked.action is None else asdict(asked.action),
        "adapters": [asdict(adapter) for adapter in asked.adapters],
    }


_INWARD = frozenset({"left_open", "target", "usual", "warnings"})
"""What `resolve` and the dialects tell each other; not the client's."""


@dataclass(frozen=True)
class JobEvent:
    """Something that happened to a job. Numbers grow, also across restarts, so a client can say what it has seen.

    Attributes:
        number: For `Last-Event-ID`.
        kind: `status` (any change short of the end), `preview`, or the final state.
        job: The job then; None for previews.
        preview: A small JPEG of a frame as it is estimated now, for previews.
    """

    number: int
    kind: Literal["status", "preview", "succeeded", "failed", "cancelled"]
    job: Job | None = None
    preview: bytes | None = None

    @cached_property
    def payload(self) -> bytes:
        """The event's data in JSON: written once, however many watch the job."""
        if self.preview is not None:
            return to_json({"media_type": "image/jpeg", "data": b64encode(self.preview).decode()})
        return b"null" if self.job is None else to_json(self.job.summary())


class Observer:
    """Told of jobs, on the event loop; has to return at once. Does nothing itself."""

    def accepted(self, job: Job) -> None:
        """A job was accepted, in the task of the request that brought it."""

    def started(self, job: Job) -> None:
        """A job left the queue."""

    def advanced(self, job: Job) -> None:
        """A job got further: see its `progress`."""

    def made(self, job: Job, outcome: Outcome) -> None:
        """A job's clip is made; it is still to be stored."""

    def ended(self, job: Job, state: State, error: JobError | None) -> None:
        """A job is over, and it was this server that ended it. `job` is as it was last; `state` is how it ended."""

    def left(self, job_id: str) -> None:
        """A job that was unfinished is over, and it was another server that ended it."""


@dataclass(frozen=True, slots=True)
class Observers(Observer):
    """Several of them as one."""

    members: Sequence[Observer] = ()

    def accepted(self, job: Job) -> None:
        """Tell each."""
        for member in self.members:
            member.accepted(job)

    def started(self, job: Job) -> None:
        """Tell each."""
        for member in self.members:
            member.started(job)

    def advanced(self, job: Job) -> None:
        """Tell each."""
        for member in self.members:
            member.advanced(job)

    def made(self, job: Job, outcome: Outcome) -> None:
        """Tell each."""
        for member in self.members:
            member.made(job, outcome)

    def ended(self, job: Job, state: State, error: JobError | None) -> None:
        """Tell each."""
        for member in self.members:
            member.ended(job, state, error)

    def left(self, job_id: str) -> None:
        """Tell each."""
        for member in self.members:
            member.left(job_id)


_PER_ATTEMPT = 1_000_000

_PER_STAGE = 100_000

_STAGES: tuple[Stage, ...] = ("queued", "prepare", "encode", "denoise", "decode", "done")


def number(job: Job) -> int:
    """A number that grows with a job's progress, the same whoever computes it, on any server and after any restart."""
    if job.final:
        return (job.attempts + 2) * _PER_ATTEMPT - 1
    if job.state == "queued":
        return (job.attempts + 1) * _PER_ATTEMPT + max(_PER_STAGE - 2 - (job.queue_position or _PER_STAGE), 0)
    # Even ones; the odd ones are for previews.
    within = min(2 * job.progress.step, _PER_STAGE - 2)
    return job.attempts * _PER_ATTEMPT + _STAGES.index(job.progress.stage) * _PER_STAGE + within


def status(job: Job) -> JobEvent:
    """The event that tells how a job is."""
    match job.state:
        case "succeeded" | "failed" | "cancelled":
            return JobEvent(number(job), job.state, job)
    return JobEvent(number(job), "status", job)


class Feed:
    """The newest of one job.

    Attributes:
        job: As it is where it runs; None if it does not run here.
        preview: The newest, if any.
        watchers: How many use the feed; it goes when none does.
        previewing: How many of them want previews.
        version: Grows with every change.
    """

    def __init__(self) -> None:
        self.job: Job | None = None
        self.preview: JobEvent | None = None
        self.watchers = 0
        self.previewing = 0
        self.version = 0
        self._changed = asyncio.Event()
        self._reading = asyncio.Lock()
        self._told: JobEvent | None = None
        self._told_at = (-1, float("-inf"))

    async def told(self, read: Callable[[], Awaitable[Job]], max_age_s: float) -> JobEvent:
        """The event that tells how the job is: one object for all who ask, and one look at the store.

        Args:
            read: How to look at the job where it does not run here.
            max_age_s: For how long what was seen there may count.
        """
        if self.job is not None:
            if self._told is None or self._told.job is not self.job:
                self._told = status(self.job)
            return self._told
        async with self._reading:
            version, at = self._told_at
            if self._told is None or version != self.version or time.monotonic() - at > max_age_s:
                seen = (self.version, time.monotonic())
                self._told = status(await read())
                self._told_at = seen
            return self._told

    def update(self, job: Job) -> None:
        """The job has moved on."""
        self.job = job
        self.touch()

    def show(self, jpeg: bytes) -> None:
        """A preview of the job where it was last."""
        if self.job is not None:
            self.preview = JobEvent(number(self.job) + 1, "preview", preview=jpeg)
            self.touch()

    def touch(self) -> None:
        """Wake who waits: something changed, perhaps only in the database."""
        self.version += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def change(self, seen: int, timeout_s: float) -> None:
        """Return once the version is another than `seen`, or after the time."""
        if self.version == seen:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._changed.wait()


class Feeds:
    """The feeds that somebody watches or that a running job fills."""

    def __init__(self) -> None:
        self._feeds: dict[str, Feed] = {}

    def __len__(self) -> int:
        return len(self._feeds)

    def find(self, job_id: str) -> Feed | None:
        """The job's feed, if anybody uses one."""
        return self._feeds.get(job_id)

    def touch(self, job_id: str) -> None:
        """Wake who waits for a job."""
        if job_id in self._feeds:
            self._feeds[job_id].touch()

    @contextmanager
    def using(self, job_id: str) -> Iterator[Feed]:
        """The job's feed, kept for as long as somebody is in here."""
        feed = self._feeds.setdefault(job_id, Feed())
        feed.watchers += 1
        try:
            yield feed
        finally:
            feed.watchers -= 1
            if not feed.watchers:
                self._feeds.pop(job_id, None)
