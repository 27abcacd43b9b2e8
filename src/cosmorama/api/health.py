"""Is the server there, and does it take work. The bodies hold every field that published NIM clients look at."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from cosmorama.api.services import ServicesOf

router = APIRouter(prefix="/v1/health", tags=["health"])


@router.head("/live", include_in_schema=False)
@router.get("/live", summary="Is the server process alive")
async def live() -> JSONResponse:
    """Answers as long as the HTTP side runs, whatever the model does."""
    return _body(200, "live", "Service is live", "Cosmorama liveness check")


@router.head("/ready", include_in_schema=False)
@router.get("/ready", summary="Is a model loaded", responses={503: {"description": "Not yet, or not any more."}})
async def ready(services: ServicesOf) -> JSONResponse:
    """503 with the reason until the model is loaded, while its worker is started anew, and before the server ends."""
    supervisor = services.supervisor
    if services.jobs.draining:
        reason = "the server is about to end"
    elif supervisor.ready:
        return _body(200, "ready", "Service is ready", "Cosmorama readiness check")
    else:
        reason = supervisor.reason
    return _body(503, "not ready", f"Service is not ready: {reason}", "Cosmorama readiness check")


def _body(status_code: int, status: str, message: str, description: str) -> JSONResponse:
    body = {"object": "health.response", "message": message, "description": description, "status": status}
    headers = {"Retry-After": "5"} if status_code == 503 else None
    return JSONResponse(body, status_code, headers=headers)
