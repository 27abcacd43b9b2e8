"""What the routes share: one of each per application, and what a request's headers ask for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from cosmorama.api.metrics import Metrics
from cosmorama.engine.pool import ModelPool
from cosmorama.errors import InvalidRequestError, Problem
from cosmorama.jobs.model import JobOptions, job_options
from cosmorama.jobs.service import Jobs
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
OPTION_HEADERS = {
    "priority": "X-Cosmorama-Priority",
    "deadline_s": "X-Cosmorama-Deadline-S",
    "idempotency_key": "Idempotency-Key",
}
"""The headers that tell a job's options, on every path that makes one."""


def owner_of(request: Request) -> str:
    """Whose jobs a client may see and makes: what `RequireKey` found; empty where the server has no keys."""
    owner: str = getattr(request.state, "owner", "")
    return owner


def release_body(request: Request) -> None:
    """Tell `LimitBodies` that the body is dealt with: what is left of the request needs none of its memory."""
    release = getattr(request.state, "release_body", None)
    if release is not None:
        release()


def options_of(request: Request) -> JobOptions:
    """What the headers say of a job.

    Raises:
        InvalidRequestError: naming the header that is wrong.
    """
    given = {name: request.headers.get(header) for name, header in OPTION_HEADERS.items()}
    return job_options(given, names=OPTION_HEADERS, strict=False)


def page_limit(text: str) -> int:
    """How many entries of a list a client asks for, as an integer; whether so many are given is not decided here.

    Raises:
        InvalidRequestError: it is none.
    """
    if not text.isdecimal() or len(text) > 9:
        raise InvalidRequestError(Problem("limit", text, "an integer from 1 to 100"))
    return int(text)
