"""What `/openapi.json` says beyond what FastAPI sees: bodies that dialects read, answers, errors, the key."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from cosmorama.api.dialects import DIALECTS
from cosmorama.jobs.model import ErrorDetail, GuardrailDecision, JobPage, JobStatus


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Error(_Answer):
    """Every error is in this envelope."""

    error: ErrorDetail


class VideoErrorDetail(_Answer):
    """An error in OpenAI's words."""

    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: str | None = Field(description="The field that is wrong.")
    code: str


class VideoError(_Answer):
    """The envelope of OpenAI's routes."""

    error: VideoErrorDetail


class Deleted(_Answer):
    """A job or a video that is gone."""

    id: str
    object: Literal["job", "video.deleted"]
    deleted: Literal[True]


class VideoFailure(_Answer):
    """Why a video failed."""

    code: str
    message: str


class Video(_Answer):
    """A video as it is now, as OpenAI has it, and what this server says besides."""

    id: str
    object: Literal["video"]
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int = Field(ge=0, le=100)
    created_at: int
    completed_at: int | None
    expires_at: int | None
    prompt: str | None
    seconds: str
    size: str
    seed: int | None
    num_outputs: int = Field(description="One once it is completed, as SGLang counts.")
    remixed_from_video_id: str | None
    warnings: list[str]
    guardrails: list[GuardrailDecision]
    action: dict[str, Any] | None = Field(description="Predicted actions, as `POST /v1/infer` answers with them.")
    error: VideoFailure | None


class VideoList(_Answer):
    """A page of videos."""

    object: Literal["list"]
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


ANSWERS: dict[tuple[str, str], tuple[str, type[BaseModel]]] = {
    ("/v1/jobs", "post"): ("202", JobStatus),
    ("/v1/jobs", "get"): ("200", JobPage),
    ("/v1/jobs/{job_id}", "get"): ("200", JobStatus),
    ("/v1/jobs/{job_id}", "delete"): ("200", Deleted),
    ("/v1/jobs/{job_id}/cancel", "post"): ("200", JobStatus),
    ("/v1/videos", "post"): ("200", Video),
    ("/v1/videos", "get"): ("200", VideoList),
    ("/v1/videos/{video_id}", "get"): ("200", Video),
    ("/v1/videos/{video_id}", "delete"): ("200", Deleted),
    ("/v1/videos/{video_id}/remix", "post"): ("200", Video),
}
"""The status and the schema of what routes answer that make their answers themselves."""
_BODIES = tuple(dialect.body for dialect in DIALECTS)
_REASONS = {
    "400": "The request cannot be read.",
    "401": "The server wants one of its API keys.",
    "404": "There is no such job, video or model, or it is another key's.",
    "409": "The state of the job, or an earlier use of the Idempotency-Key, does not allow this.",
    "default": "The job did not succeed: the answer that its client would have had.",
    "410": "The clip was removed; the job still says what it was.",
    "413": "The body or the media in it is too large.",
    "415": "The body's Content-Type or Content-Encoding is none that is read.",
    "422": "A field is wrong; the message names it, its value and what is accepted.",
    "429": "Too many jobs wait; `Retry-After` says when to come again.",
    "503": "No model is loaded, or the job store cannot be used now; `Retry-After` says when to come again.",
}
_OPENAIS = ("/v1/videos", "/v1/images", "/v1/actions", "/v1/models/")
_OF_CLIPS = ("/content", "/answer", "/actions", "/remix", "/extend", "/extensions", "/edits", "/sheets")
_OPEN = ("/v1/health/live", "/v1/health/ready", "/health")


def complete(openapi: Callable[[], dict[str, Any]], *, keys: bool) -> Callable[[], dict[str, Any]]:
    """FastAPI's document with the schemas that it does not know, made once: it takes a quarter of a second.

    Args:
        openapi: What FastAPI says.
        keys: Whether the server has API keys.
    """

    @cache
    def completed() -> dict[str, Any]:
        document = openapi()
        answers = {model for _, model in ANSWERS.values()} | {Error, VideoError}
        _, schemas = models_json_schema(
            [
                *((body, "validation") for body in _BODIES),
                *((answer, "serialization") for answer in sorted(answers, key=lambda model: model.__name__)),
            ],
            ref_template="#/components/schemas/{model}",
        )
        components = document.setdefault("components", {})
        known = components.setdefault("schemas", {})
        known.update(schemas["$defs"])
        for needless in ("HTTPValidationError", "ValidationError"):
            known.pop(needless, None)
        _offer_upload(document)
        if keys:
            components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer", "description": "An API key."}}
            document["security"] = [{"key": []}]
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                if "requestBody" in operation:
                    operation["requestBody"] = _with_shared_schemas(operation["requestBody"], known)
                _describe(path, method, operation, keys=keys)
        return document

    return completed


def _with_shared_schemas(body: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """A request's body whose schemas' own definitions are among the document's, where references find them."""
    moved: dict[str, Any] = json.loads(json.dumps(body).replace("#/$defs/", "#/components/schemas/"))
    for content in moved.get("content", {}).values():
        for name, definition in content["schema"].pop("$defs", {}).items():
            known.setdefault(name, definition)
    return moved


def _offer_upload(document: dict[str, Any]) -> None:
    """Say that the picture or clip of a form is a file, so that the documentation page lets its reader choose one."""
    schema = document["components"]["schemas"].get("VideoBody")
    begin = document["paths"].get("/v1/videos", {}).get("post")
    if begin is not None and schema is not None:
        file = {"type": "string", "format": "binary", "description": "A picture or a clip to begin from."}
        with_file = {**schema, "properties": {**schema["properties"], "input_reference": file}}
        begin["requestBody"]["content"]["multipart/form-data"]["schema"] = with_file


def _describe(path: str, method: str, operation: dict[str, Any], *, keys: bool) -> None:
    responses = operation.setdefault("responses", {})
    if (path, method) in ANSWERS:
        status, model = ANSWERS[path, method]
        answer = responses.setdefault(status, {"description": "The answer."})
        answer["content"] = {"application/json": {"schema": _schema(model)}}
    if path in _OPEN:
        operation["security"] = []
        return
    statuses = {"503"}
    if keys:
        statuses.add("401")
    if "{" in path:
        statuses |= {"404", "409"}
    if method == "post":
        statuses |= {"404", "429"}
    if method == "post" or "requestBody" in operation:
        statuses |= {"400", "413", "415", "422"}
    if operation.get("parameters"):
        statuses |= {"422", "400"} if path.startswith(_OPENAIS) else {"422"}
    if path.endswith(_OF_CLIPS):
        statuses |= {"409", "410"}
    if path.endswith("/answer"):
        statuses.add("default")
    error = _schema(VideoError if path.startswith(_OPENAIS) else Error)
    for status in sorted(statuses):
        said = responses.get(status, {})
        described = said.get("description", "Validation Error")
        responses[status] = {
            **said,
            "description": _REASONS[status] if described == "Validation Error" else described,
            "content": {"application/json": {"schema": error}},
        }


def _schema(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}
