"""The errors that a user of Cosmorama can meet, each with the HTTP status it is answered with."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any


class CosmoramaError(Exception):
    """Base of every error raised on purpose.

    Attributes:
        status: The HTTP status.
        kind: The machine-readable type.
        retry_after_s: When the same may succeed, where that is guessed.
    """

    status = 500
    kind = "internal_error"
    retry_after_s: float | None = None

    def renamed(self, names: Mapping[str, str]) -> CosmoramaError:
        """The same error with the fields that it names under other names."""
        del names
        return self


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a request: which field, what it held, and what would be accepted."""

    field: str
    value: object
    accepted: str

    def __str__(self) -> str:
        return f"{self.field}: {_brief(self.value)} is not accepted; expected {self.accepted}"


class InvalidRequestError(CosmoramaError):
    """A request that can never succeed as it stands (HTTP 422)."""

    status = 422
    kind = "invalid_request_error"

    def __init__(self, *problems: Problem) -> None:
        self.problems = problems
        super().__init__("; ".join(str(problem) for problem in problems))

    def __reduce__(self) -> tuple[type[InvalidRequestError], tuple[Problem, ...]]:
        """How it travels between processes: by its problems, not by its message."""
        return InvalidRequestError, self.problems

    def renamed(self, names: Mapping[str, str]) -> InvalidRequestError:
        return InvalidRequestError(*(replace(p, field=names.get(p.field, p.field)) for p in self.problems))


class MediaError(CosmoramaError):
    """An image or video that cannot be fetched, read or is outside the limits (HTTP 422; 413 when it is too large)."""

    kind = "invalid_media_error"

    def __init__(self, field: str, message: str, *, status: int = 422) -> None:
        self.field = field
        self.message = message
        self.status = status
        super().__init__(f"{field}: {message}")

    def renamed(self, names: Mapping[str, str]) -> MediaError:
        return MediaError(names.get(self.field, self.field), self.message, status=self.status)

    def __reduce__(self) -> tuple[Callable[..., MediaError], tuple[str, str]]:
        """How it travels between processes: by its parts, not by its message."""
        return partial(MediaError, status=self.status), (self.field, self.message)


class ModelNotFoundError(CosmoramaError):
    """No world model of that name or at that place (HTTP 404)."""

    status = 404
    kind = "model_not_found"


class AuthenticationError(CosmoramaError):
    """The server wants an API key, and this is none of its own (HTTP 401)."""

    status = 401
    kind = "authentication_error"


class ServerUnreachableError(CosmoramaError):
    """A client could not reach its server for as long as it tried (as HTTP 503)."""

    status = 503
    kind = "server_unreachable"


class NotReadyError(CosmoramaError):
    """The model is still loading or its worker is restarting (HTTP 503)."""

    status = 503
    kind = "not_ready"


class QueueFullError(CosmoramaError):
    """More work is waiting than the server accepts (HTTP 429); `retry_after_s` guesses when there is room again."""

    status = 429
    kind = "queue_full"

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class DeadlineExceededError(CosmoramaError):
    """The generation was not finished by its deadline (HTTP 504)."""

    status = 504
    kind = "timeout_error"


class CancelledError(CosmoramaError):
    """The generation was cancelled before it finished (HTTP 499, the client went away)."""

    status = 499
    kind = "cancelled"


class WorkerError(CosmoramaError):
    """The process that runs the model died or failed inside (HTTP 500)."""

    kind = "worker_failed"


class PromptRefusedError(CosmoramaError):
    """A guardrail of the server does not let a prompt pass (HTTP 422)."""

    status = 422
    kind = "prompt_refused"


class FramesRefusedError(CosmoramaError):
    """A guardrail of the server does not let the generated frames pass (HTTP 422); nothing of them is given out."""

    status = 422
    kind = "frames_refused"


class GuardrailUnavailableError(CosmoramaError):
    """A guardrail that the server is set to have cannot be had; nothing is generated without it (HTTP 503)."""

    status = 503
    kind = "guardrail_unavailable"


class NotEnoughMemoryError(CosmoramaError):
    """The model, or one generation on it, does not fit in memory (HTTP 507)."""

    status = 507
    kind = "not_enough_memory"


class StorageFullError(CosmoramaError):
    """There is no room left on a disk of the server for what was to be written (HTTP 507)."""

    status = 507
    kind = "storage_full"


class WorkerDiedError(WorkerError):
    """The worker died while it held this generation, which can be given to the next one.

    Attributes:
        suspect: Whether this generation may have been what killed it.
        with_server: Whether the program around it died too, with everything else that it held.
    """

    def __init__(self, message: str, *, suspect: bool = False, with_server: bool = False) -> None:
        self.suspect = suspect
        self.with_server = with_server
        super().__init__(message)


class JobNotFoundError(CosmoramaError):
    """No job of that id, or it belongs to somebody else, or it was deleted (HTTP 404)."""

    status = 404
    kind = "job_not_found"


class JobConflictError(CosmoramaError):
    """The job's state, or an earlier use of the idempotency key, does not allow this (HTTP 409)."""

    status = 409
    kind = "conflict"


class ContentGoneError(CosmoramaError):
    """The job's result existed and was removed: delivered to the client that waited, or too old (HTTP 410)."""

    status = 410
    kind = "content_gone"


class StoreUnavailableError(CosmoramaError):
    """The database or the artifact store cannot be used now; nothing was accepted (HTTP 503).

    Attributes:
        detail: What the driver said, for the log: it may name hosts and paths, which are no business of clients.
    """

    status = 503
    kind = "store_unavailable"

    def __init__(self, message: str, detail: str = "") -> None:
        self.detail = detail
        super().__init__(message)

    @property
    def logged(self) -> str:
        """The message with what the driver said."""
        return f"{self} ({self.detail})" if self.detail else str(self)


_CLASSES: dict[str, type[CosmoramaError]] = {
    known.kind: known
    for known in (
        AuthenticationError,
        CancelledError,
        ContentGoneError,
        FramesRefusedError,
        JobConflictError,
        JobNotFoundError,
        ModelNotFoundError,
        NotReadyError,
        PromptRefusedError,
        QueueFullError,
        StoreUnavailableError,
        WorkerError,
    )
}


def error_of(status: int, kind: str, message: str) -> CosmoramaError:
    """The error of an answer.

    Args:
        status: The HTTP status.
        kind: The envelope's `type`. One that is not known here gives a plain `CosmoramaError` that carries it.
        message: The envelope's `message`.
    """
    error: CosmoramaError
    if kind == InvalidRequestError.kind:
        error = InvalidRequestError()
        # The fields are in the text; an answer has no list of them.
        error.args = (message,)
    elif kind == MediaError.kind:
        field, _, said = message.partition(": ")
        error = MediaError(field, said, status=status)
    else:
        error = _CLASSES.get(kind, CosmoramaError)(message)
        error.kind = kind or error.kind
    error.status = status
    return error


def _brief(value: object) -> str:
    if isinstance(value, str) and len(value) > 80:  # all of it may be a hundred megabytes
        return f"{repr(value[:60])[:60]}... ({len(value)} characters)"
    try:
        value = _cut(value)
        text = json.dumps(value) if value is None or isinstance(value, (bool, list, tuple, dict)) else repr(value)
    except TypeError:  # holds what JSON has no words for
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, or a list nested as deep
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= 80 else f"{text[:60]}..."


def _cut(value: Any) -> Any:
    """As much of a value as is ever shown."""
    if isinstance(value, str):
        return value[:80]
    if isinstance(value, dict):
        return {_cut(name): _cut(item) for name, item in islice(value.items(), 40)}
    return [_cut(item) for item in value[:40]] if isinstance(value, (list, tuple)) else value
