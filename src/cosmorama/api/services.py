"""What the routes share: one of each per application."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from cosmorama.api.metrics import Metrics
from cosmorama.engine.workers import Workers
from cosmorama.jobs.service import Jobs
from cosmorama.settings import Settings


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of a running server."""

    settings: Settings
    supervisor: Workers
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
