"""The server application, put together."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware

from cosmorama import __version__
from cosmorama.api import compatible, infer, info, sheets, texts, videos
from cosmorama.api import jobs as jobs_routes
from cosmorama.api.body import body_limit
from cosmorama.api.errors import add_error_handlers
from cosmorama.api.limits import LimitBodies, TakeTurns
from cosmorama.api.metrics import Metrics
from cosmorama.api.middleware import QUIET_PATHS, CountInference, LocalOnly, RequireKey, Trace, named_keys
from cosmorama.api.openapi import complete
from cosmorama.api.services import Services
from cosmorama.engine.inputs import with_local_chats
from cosmorama.engine.pool import ModelPool
from cosmorama.engine.supervisor import Supervisor
from cosmorama.errors import CosmoramaError
from cosmorama.jobs.channel import Observers
from cosmorama.jobs.fleet import RemotePool
from cosmorama.jobs.service import Jobs
from cosmorama.settings import Settings
from cosmorama.studio import mount
from cosmorama.telemetry import Tracing, requests_telemetry, tracer_provider

log = logging.getLogger(__name__)

BODIES_AT_ONCE = 4
"""Bodies of the largest size that are held at a time; smaller ones count for what they are."""


def create_app(settings: Settings | None = None) -> FastAPI:
    """The ASGI application. Its lifespan starts and stops the worker process that holds the model.

    Args:
        settings: None reads them from the environment.

    Raises:
        ModelNotFoundError: a checkpoint that is to write texts cannot be started.
    """
    settings, chats = with_local_chats(settings or Settings())
    keys = named_keys(settings.api_keys)
    supervisor = pool_of(settings)
    metrics = Metrics(supervisor)
    tracing = Tracing(tracer_provider()) if settings.otel else None

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        observers = Observers(metrics) if tracing is None else Observers(metrics, tracing)
        jobs = Jobs(settings, supervisor, observer=observers)
        metrics.queued = lambda: jobs.queued
        app.state.services = services = Services(settings, supervisor, metrics, jobs)
        app.state.writers = writers = texts.Writers(settings)
        try:
            await jobs.start()
            supervisor.on_ready = _announced(supervisor, settings)
            await supervisor.start()
            yield
        finally:
            writers.close()
            services.close()
            for chat in chats:
                chat.close()
            await jobs.stop()
            await supervisor.stop()
            jobs.close()
            if tracing is not None:
                tracing.close()

    # Its documentation page brings its own scripts instead of loading them from elsewhere.
    app = FastAPIOffline(
        title="Cosmorama",
        summary="An open, self-hosted inference server for world foundation models.",
        version=__version__,
        lifespan=lifespan,
        redoc_url=None,
        telemetry=requests_telemetry(None if tracing is None else tracing.provider, QUIET_PATHS),
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    # They are asked in this order which of them has a path.
    answering = (
        ()
        if settings.role == "worker"
        else (
            infer.router,
            compatible.router,
            texts.router,
            jobs_routes.router,
            sheets.router,
            videos.router,
            info.router,
        )
    )
    for router in (info.health_router, info.metrics_router, *answering):
        app.include_router(router)
    mount(app, settings.studio_servers)
    add_error_handlers(app)
    # The last one added is the outermost.
    largest = body_limit(settings.max_input_bytes)
    app.add_middleware(LimitBodies, most_bytes=BODIES_AT_ONCE * largest, largest_bytes=largest)
    app.add_middleware(CountInference, metrics=metrics)
    app.add_middleware(TakeTurns)
    if settings.api_keys:
        app.add_middleware(RequireKey, keys=keys)
    else:
        hosts = (*settings.allowed_hosts, settings.host)
        app.add_middleware(LocalOnly, hosts=hosts, origins=settings.cors_origins)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["*"],
        )
    app.add_middleware(Trace)
    app.openapi = complete(app.openapi, keys=bool(settings.api_keys))  # type: ignore[method-assign]
    return app


def pool_of(settings: Settings) -> ModelPool:
    """Who generates: a worker of this server's for each of its models, or other servers."""
    if settings.role == "api":
        return RemotePool(settings)
    if settings.role == "fleet":
        try:
            from cosmorama.engine.cluster import Replicas
        except ModuleNotFoundError as error:
            raise CosmoramaError(f"{error.name} is not installed: pip install '.[ray]'") from None
        return ModelPool(settings, Replicas)
    return ModelPool(settings, Supervisor)


def _announced(supervisor: ModelPool, settings: Settings) -> Callable[[], None]:
    """What is to be called when a model is loaded: what was to be called until now, and a line for people."""
    call = supervisor.on_ready
    host = "localhost" if settings.host in ("0.0.0.0", "::", "") else settings.host  # noqa: S104  # compared, not bound

    def ready() -> None:
        call()
        log.info("model %s loaded, open http://%s:%d", ", ".join(supervisor.names), host, settings.port)

    return ready
