"""What this server is: version, licence, models, metrics."""

from __future__ import annotations

import json
import time
from importlib import metadata
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import RedirectResponse
from prometheus_client import CONTENT_TYPE_LATEST

from cosmorama import __version__
from cosmorama.api.services import ServicesOf

API_VERSION = "1.0.0"
DEFAULT_MODEL = "microcosm"

router = APIRouter(tags=["about"])
_started_at = int(time.time())


@router.get("/", include_in_schema=False)
async def root() -> RedirectResponse:
    """People who open the address in a browser are led to the documentation."""
    return RedirectResponse("/docs")


@router.get("/v1/version")
async def version() -> dict[str, str]:
    """The release of the server and of its API."""
    return {"release": __version__, "api": API_VERSION}


@router.get("/v1/license")
async def license_() -> dict[str, Any]:
    """The licence of the server, with its text where the installation has it."""
    name = metadata.metadata("cosmorama")["License-Expression"]
    return {"name": name, "type": "file", "content": _licence_text()}


@router.get("/v1/metadata")
async def metadata_(services: ServicesOf) -> dict[str, Any]:
    """The default model, and the names of all."""
    name = services.supervisor.names[0]
    settings = services.settings
    configured = settings.models.get(name, settings.model)
    return {
        "version": __version__,
        "modelInfo": [{"shortName": each, "modelUrl": ""} for each in services.supervisor.names],
        "selectedModelProfileId": name,
        "checkpoint": "default" if configured == DEFAULT_MODEL else configured,
        "model_type": "generator",
        "model_variant": name,
        "inference_endpoint": "/v1/infer",
        "licenseInfo": {"name": metadata.metadata("cosmorama")["License-Expression"], "url": "/v1/license"},
    }


@router.get("/v1/manifest")
async def manifest(services: ServicesOf) -> dict[str, str]:
    """The model profile as a YAML document (JSON is YAML)."""
    name = services.supervisor.names[0]
    profile = {"profile_id": name, "model": services.settings.model, "release": __version__}
    return {"manifest_file": json.dumps({"schema_version": "1.0", "profiles": [profile]}, indent=2)}


@router.get("/v1/models")
async def models(services: ServicesOf) -> dict[str, Any]:
    """The models being served, the default one first, in the list shape of the OpenAI API."""
    entry = {"object": "model", "created": _started_at, "owned_by": "cosmorama"}
    return {"object": "list", "data": [{"id": name, **entry} for name in services.supervisor.names]}


@router.get("/metrics", response_class=Response, include_in_schema=False)
@router.get("/v1/metrics", response_class=Response)
async def metrics(services: ServicesOf) -> Response:
    """Prometheus text."""
    return Response(services.metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _licence_text() -> str | None:
    for file in metadata.files("cosmorama") or ():
        if file.name == "LICENSE":
            return file.read_text()
    return None
