"""`POST /v1/infer`: generate a clip, in any of the wire formats that NIM for Cosmos has had on this path."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from cosmorama.api.body import body_limit, read_object
from cosmorama.api.dialects.base import choose, worded
from cosmorama.api.dialects.predict1_examples import EXAMPLES
from cosmorama.api.dialects.table import SHAPED
from cosmorama.api.generate import generate
from cosmorama.api.services import ServicesOf
from cosmorama.errors import InvalidRequestError, MediaError

_BODIES = [dialect.body.__name__ for dialect in reversed(SHAPED)]
_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in _BODIES]},
            "examples": EXAMPLES,
        }
    },
}
_ANSWER: dict[str, Any] = {
    "type": "object",
    "description": "What is in it depends on the wire format of the body; see docs/dialects.md.",
    "properties": {
        "b64_video": {"type": "string", "description": "The clip, in base64."},
        "b64_image": {"type": "string", "description": "For text2image: the picture, a JPEG in base64."},
        "seed": {"type": "integer", "description": "The seed that was used."},
        "upsampled_prompt": {"type": ["string", "null"], "description": "The text that was used."},
        "action": {"type": ["object", "null"], "description": "Actions that the model predicted."},
    },
}

router = APIRouter(tags=["generation"])


@router.post(
    "/v1/infer",
    summary="Generate a world from text, an image or a video",
    response_class=Response,
    responses={
        200: {
            "description": "The clip. With `Accept: video/mp4`, the file itself instead of JSON.",
            "content": {"application/json": {"schema": _ANSWER}, "video/mp4": {}, "image/jpeg": {}},
        }
    },
    openapi_extra={"requestBody": _BODY},
)
async def infer(request: Request, services: ServicesOf) -> Response:
    """Generate a clip and answer when it is finished. Going away cancels it."""
    settings = services.settings
    body = await read_object(request, body_limit(settings.max_input_bytes))
    dialect = choose(SHAPED, body, None if settings.dialect == "auto" else settings.dialect)
    generation = dialect.parse(body, settings)
    try:
        outcome = await generate(request, generation, services, dialect=dialect.name)
    except (InvalidRequestError, MediaError) as error:
        raise worded(error, dialect.wire_names) from None
    return dialect.answer(request, generation, outcome)
