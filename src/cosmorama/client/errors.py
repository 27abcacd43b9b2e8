"""An error in a server's answer, as the class that raised it there."""

from __future__ import annotations

from cosmorama.errors import (
    AuthenticationError,
    CancelledError,
    CosmoramaError,
    FramesRefusedError,
    InvalidRequestError,
    MediaError,
    ModelNotFoundError,
    NotReadyError,
    PromptRefusedError,
    QueueFullError,
    WorkerError,
)
from cosmorama.jobs.model import ContentGoneError, JobConflictError, JobNotFoundError, StoreUnavailableError

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
