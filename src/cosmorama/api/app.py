"""The server application, put together."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from cosmorama import __version__
from cosmorama.api import about, health
from cosmorama.api.dialects import predict1
from cosmorama.api.errors import add_error_handlers
from cosmorama.api.metrics import Metrics
from cosmorama.api.middleware import CountInference, RequireKey
from cosmorama.api.services import Services
from cosmorama.engine.supervisor import Supervisor
from cosmorama.settings import Settings

_BODIES = (predict1.InferBody, predict1.InferAnswer)


def create_app(settings: Settings | None = None) -> FastAPI:
    """The ASGI application. Its lifespan starts and stops the worker process that holds the model.

    Args:
        settings: None reads them from the environment.
    """
    settings = settings or Settings()
    supervisor = Supervisor(settings)
    metrics = Metrics(supervisor)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with ExitStack() as resources:
            if settings.artifacts is None:
                folder = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="cosmorama-")))
            else:
                folder = settings.artifacts
                folder.mkdir(parents=True, exist_ok=True)
            app.state.services = Services(settings, supervisor, metrics, folder)
            await supervisor.start()
            try:
                yield
            finally:
                await supervisor.stop()

    app = FastAPI(
        title="Cosmorama",
        summary="An open, self-hosted inference server for world foundation models.",
        version=__version__,
        lifespan=lifespan,
        redoc_url=None,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    for router in (predict1.router, health.router, about.router):
        app.include_router(router)
    add_error_handlers(app)
    # The last one added is the outermost.
    app.add_middleware(CountInference, metrics=metrics)
    if settings.api_keys:
        app.add_middleware(RequireKey, keys=settings.api_keys)
    app.openapi = _with_bodies(app.openapi)  # type: ignore[method-assign]
    return app


def _with_bodies(openapi: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """Add the schemas of the bodies that the dialects read themselves, which FastAPI therefore does not know."""

    def complete() -> dict[str, Any]:
        document = openapi()
        _, schemas = models_json_schema(
            [(body, "validation") for body in _BODIES], ref_template="#/components/schemas/{model}"
        )
        document.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"])
        return document

    return complete
