"""What the routes share: one of each per application, and what a request's headers ask for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from cosmorama.api.metrics import Metrics
from cosmorama.engine.pool import ModelPool
from cosmorama.engine.scheduler import PRIORITIES, Priority
from cosmorama.errors import InvalidRequestError, Problem
from cosmorama.jobs.service import Jobs
from cosmorama.jobs.submit import DEADLINES, is_deadline
from cosmorama.settings import Settings


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of a running server."""

    settings: Settings
    supervisor: ModelPool
    metrics: Metrics
    jobs: Jobs


async def services_of(request: Request) -> Services:
    """The services of the application that serves `request`."""
    # Not awaiting anything; but FastAPI calls a plain function in another thread, at every request.
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


ServicesOf = Annotated[Services, Depends(services_of)]

"""A route's parameter of this type is given the services."""

PRIORITY_HEADER = "X-Cosmorama-Priority"

DEADLINE_HEADER = "X-Cosmorama-Deadline-S"

IDEMPOTENCY_HEADER = "Idempotency-Key"


@dataclass(frozen=True, slots=True)
class Submission:
    """The first arguments of `Jobs.submit` besides the request."""

    owner: str
    priority: Priority = "normal"
    idempotency_key: str | None = None
    deadline_s: float | None = None


def owner_of(request: Request) -> str:
    """Whose jobs a client may see and makes: what `RequireKey` found; empty where the server has no keys."""
    owner: str = getattr(request.state, "owner", "")
    return owner


def release_body(request: Request) -> None:
    """Tell `LimitBodies` that the body is dealt with: what is left of the request needs none of its memory."""
    release = getattr(request.state, "release_body", None)
    if release is not None:
        release()


def submission_of(request: Request) -> Submission:
    """What the headers say.

    Raises:
        InvalidRequestError: naming the header that is wrong.
    """
    return Submission(
        owner=owner_of(request),
        priority=priority_of(request.headers.get(PRIORITY_HEADER, "normal"), PRIORITY_HEADER),
        idempotency_key=request.headers.get(IDEMPOTENCY_HEADER),
        deadline_s=deadline_of(request.headers.get(DEADLINE_HEADER), DEADLINE_HEADER),
    )


def page_limit(text: str) -> int:
    """How many entries of a list a client asks for, as an integer; whether so many are given is not decided here.

    Raises:
        InvalidRequestError: it is none.
    """
    if not text.isdecimal() or len(text) > 9:
        raise InvalidRequestError(Problem("limit", text, "an integer from 1 to 100"))
    return int(text)


def priority_of(value: object, name: str) -> Priority:
    """A priority class by name.

    Raises:
        InvalidRequestError: it is none; the error calls the value `name`.
    """
    if value not in PRIORITIES:
        raise InvalidRequestError(Problem(name, value, f"one of {', '.join(PRIORITIES)}"))
    return value


def deadline_of(value: object, name: str) -> float | None:
    """Seconds in the range of `DEADLINES`, as a number or its text; None stays None.

    Raises:
        InvalidRequestError: it is none; the error calls the value `name`.
    """
    if value is None:
        return None
    try:
        seconds = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else 0.0
    except (ValueError, OverflowError):
        seconds = 0.0
    if not is_deadline(seconds):
        raise InvalidRequestError(Problem(name, value, DEADLINES))
    return seconds
