"""What the routes share: one of each per application."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request

from cosmorama.api.metrics import Metrics
from cosmorama.engine.supervisor import Supervisor
from cosmorama.settings import Settings


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of a running server. Clips being made live in the folder `artifacts`."""

    settings: Settings
    supervisor: Supervisor
    metrics: Metrics
    artifacts: Path


def services_of(request: Request) -> Services:
    """The services of the application that serves `request`."""
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


ServicesOf = Annotated[Services, Depends(services_of)]
"""A route's parameter of this type is given the services."""
