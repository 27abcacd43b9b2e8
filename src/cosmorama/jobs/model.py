"""What a job is: the record that the store keeps, what is said of it in JSON, and what it can be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic takes the other one from Python 3.12 on

from cosmorama.engine.outcome import Outcome
from cosmorama.engine.scheduler import PRIORITIES, Priority
from cosmorama.errors import CosmoramaError, InvalidRequestError, MediaError, Problem, error_of
from cosmorama.progress import Progress
from cosmorama.request import INWARD, GenerationRequest, MediaSource, ResolvedRequest

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]
STATES: tuple[State, ...] = get_args(State)
FINAL: frozenset[State] = frozenset({"succeeded", "failed", "cancelled"})
"""States that a job never leaves."""


def _plain(value: object) -> object:
    if isinstance(value, str) and "_" in value:  # Python's way of writing long numbers, and nobody else's
        raise ValueError("no number")
    return value


class JobOptions(TypedDict, total=False):
    """What a job can be told beside its request: fields of the body of `POST /v1/jobs`, arguments of `submit`.

    The same `idempotency_key` gives the same job again. It is a header over HTTP, and the client draws one for every
    call where it is left out.
    """

    priority: Annotated[Priority, Field(description="Class of service.")]
    deadline_s: Annotated[
        float,
        BeforeValidator(_plain),
        Field(gt=0, le=1e9, allow_inf_nan=False, description="Fail if not finished so many seconds from acceptance."),
    ]
    metadata: Annotated[
        Mapping[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
        Field(max_length=16, description="Own labels: at most 16, names up to 64 and values up to 512 characters."),
    ]
    webhook_url: Annotated[str, Field(description="Told when the job is over.")]
    idempotency_key: Annotated[str, Field(min_length=1, max_length=255)]


_OPTIONS: TypeAdapter[JobOptions] = TypeAdapter(JobOptions)
_ACCEPTED = {
    "priority": f"one of {', '.join(PRIORITIES)}",
    "deadline_s": "a number of seconds, more than 0 and at most 1000000000",
    "metadata": "an object of at most 16 names of 64 and values of 512 characters",
    "webhook_url": "a string",
    "idempotency_key": "1 to 255 characters",
}


def job_options(
    given: Mapping[str, object], *, names: Mapping[str, str] | None = None, strict: bool = True
) -> JobOptions:
    """The options in a mapping; what is None there is left out.

    Args:
        given: Name to value.
        names: What errors call an option, where that is not its name.
        strict: Whether a number has to be one; otherwise its text will do, as in headers.

    Raises:
        InvalidRequestError: naming each that is wrong.
    """
    given = {name: value for name, value in given.items() if value is not None}
    try:
        return _OPTIONS.validate_python(given, strict=strict)
    except ValidationError as error:
        wrong = dict.fromkeys(str(each["loc"][0]) for each in error.errors(include_url=False, include_input=False))
        called = {"idempotency_key": "Idempotency-Key"} | dict(names or {})
        raise InvalidRequestError(
            *(Problem(called.get(name, name), given.get(name), _ACCEPTED[name]) for name in wrong)
        ) from None


class _Wire(BaseModel):
    # A client of this release understands servers of later ones.
    model_config = ConfigDict(frozen=True, extra="ignore")


class ErrorDetail(_Wire):
    """Why a request or a job failed."""

    message: str = Field(description="In words, naming the field, its value and what is accepted.")
    type: str = Field(description="Machine-readable, such as `invalid_request_error` or `queue_full`.")
    code: int = Field(description="The HTTP status.")


class GuardrailDecision(_Wire):
    """What one guardrail decided."""

    check: str
    on: str
    decided: str


class ResultStatus(_Wire):
    """The clip of a job that succeeded."""

    content_url: str | None = Field(description="Where the clip is; null once it was removed.")
    media_type: str
    bytes: int
    seed: int
    width: int | None = Field(None, description="Of the clip itself, as frames and fps are.")
    height: int | None = None
    frames: int | None = None
    fps: float | None = None
    upsampled_prompt: str = Field(description="The text that was used.")
    timings_s: dict[str, float] = Field({}, description="Seconds of work per stage.")
    actions_url: str | None = Field(None, description="Where the actions are that were predicted; null without any.")


class JobStatus(_Wire):
    """A job as it is now. Times are seconds since the epoch."""

    id: str
    object: Literal["job"] = "job"
    state: State
    dialect: str = ""
    model: str
    mode: str
    priority: Priority
    stage: str
    step: int
    total: int
    queue_position: int | None = Field(None, description="1 is next; null when it does not wait.")
    eta_s: float | None = Field(None, description="Seconds until it is expected to be finished.")
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    deadline_at: float | None = None
    attempts: int = Field(0, description="How often it was begun; more than one after a crash.")
    request: dict[str, Any] | None = Field(
        None,
        description="As resolved, in the dialect `cosmorama`; null where another release wrote it in words of its own.",
    )
    warnings: tuple[str, ...] = Field((), description="What was fitted, replaced, cut or ignored.")
    guardrails: list[GuardrailDecision] = []
    metadata: dict[str, str] = {}
    error: ErrorDetail | None = None
    result: ResultStatus | None = None

    @property
    def final(self) -> bool:
        """Whether the job is over."""
        return self.state in FINAL

    def raise_for_state(self) -> JobStatus:
        """The status itself unless the job failed or was cancelled.

        Raises:
            CosmoramaError: the error that a caller of the model itself would have got.
        """
        if self.error is not None and self.state in ("failed", "cancelled"):
            raise error_of(self.error.code, self.error.type, self.error.message)
        return self


class JobPage(_Wire):
    """A page of jobs."""

    object: Literal["list"] = "list"
    data: list[JobStatus]
    next_cursor: str | None = Field(None, description="`cursor` of the next page; null at the end.")


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
        outcome: What was really used to make it; its `path` is the clip's name only, see `Jobs.content`.
        media_type: Such as `video/mp4`.
        bytes: Size of the clip.
        key: The clip's, in the artifact store; None once it was removed.
    """

    outcome: Outcome
    media_type: str
    bytes: int
    key: str | None


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
    def checks(self) -> list[GuardrailDecision]:
        """What each guardrail decided; of a job that one refused, that it did."""
        if self.result is not None:
            return [GuardrailDecision(**asdict(check)) for check in self.result.outcome.checks]
        refusing = {"prompt_refused": "prompt", "frames_refused": "frames"}
        if self.error is None or self.error.type not in refusing:
            return []
        return [GuardrailDecision(check=self.error.message, on=refusing[self.error.type], decided="refused")]

    def summary(self) -> dict[str, Any]:
        """The job in JSON: what `GET /v1/jobs/{id}` answers and webhooks carry. Holds no media and no prompt inputs."""
        error, result = self.error, self.result
        return JobStatus(
            id=self.id,
            state=self.state,
            dialect=self.dialect,
            model=self.model,
            mode=self.request.mode,
            priority=self.priority,
            stage=self.progress.stage,
            step=self.progress.step,
            total=self.progress.total,
            queue_position=self.queue_position,
            eta_s=None if self.eta_s is None else round(self.eta_s, 1),
            created_at=self.created_at,
            started_at=self.started_at,
            finished_at=self.finished_at,
            deadline_at=self.deadline_at,
            attempts=self.attempts,
            request=_knobs(self) if self.readable else None,
            warnings=self.warnings,
            guardrails=self.checks,
            metadata=dict(self.metadata),
            error=None if error is None else ErrorDetail(message=error.text, type=error.type, code=error.status),
            result=None
            if result is None
            else ResultStatus(
                content_url=f"/v1/jobs/{self.id}/content" if result.key is not None else None,
                media_type=result.media_type,
                bytes=result.bytes,
                seed=result.outcome.seed,
                width=result.outcome.width,
                height=result.outcome.height,
                frames=result.outcome.frames,
                fps=result.outcome.fps,
                upsampled_prompt=result.outcome.prompt,
                timings_s={stage: round(seconds, 3) for stage, seconds in result.outcome.timings.items()},
                actions_url=None if result.outcome.action is None else f"/v1/jobs/{self.id}/actions",
            ),
        ).model_dump()


_KNOBS = [field.name for field in fields(GenerationRequest) if field.name not in INWARD]


def _knobs(job: Job) -> dict[str, Any]:
    """The whole request in the server's own wire format, so that it can be sent again as it is.

    Media that came inline stands as the path under which the server gives it out.
    """
    asked = job.request

    def reference(where: str, source: MediaSource | None) -> str | None:
        if isinstance(source, Path):
            return f"/v1/jobs/{job.id}/inputs/{where}"
        return None if source is None else str(source)

    known = {name: getattr(asked, name) for name in _KNOBS}
    # What follows a clip is as long as the clip, which is not known before it was read.
    length = job.result.outcome if job.result is not None and asked.mode == "transfer" else asked.result
    return known | {
        "width": asked.result.width,
        "height": asked.result.height,
        "frames": length.frames,
        "fps": length.fps,
        "image": reference("image", asked.image),
        "video": reference("video", asked.video),
        "guidance_interval": list(asked.guidance_interval),
        "controls": [
            asdict(replace(control, source=None)) | {"source": reference(f"controls.{index}.source", control.source)}
            for index, control in enumerate(asked.controls)
        ],
    }
