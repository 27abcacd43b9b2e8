"""What the NIM wire formats have in common in their answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import Request, Response

from cosmorama.api.clips import ClipFile, ClipJSON
from cosmorama.engine.outcome import Outcome
from cosmorama.media.write import mime_type
from cosmorama.request import GenerationRequest


def clip_answer(
    request: Request, generation: GenerationRequest, outcome: Outcome, fields: Mapping[str, Any], *, name: str
) -> Response:
    """The clip as base64 in the field `name` of a JSON object, or the file itself for who accepts that and not JSON.

    Args:
        request: Its `Accept` header decides: `video/mp4`, or any video (image for stills) without JSON, asks for the
            file.
        generation: What was asked for.
        outcome: Its file is deleted once the answer is sent.
        fields: The other fields of the JSON object.
        name: `b64_video` or `b64_image`.
    """
    media_type = mime_type(generation.output)
    kind = "image/" if name == "b64_image" else "video/"
    accept = request.headers.get("accept", "")
    if kind in accept and "application/json" not in accept:
        return ClipFile(outcome, media_type)
    return ClipJSON(name, outcome.path, fields)


def told_answer(request: Request, generation: GenerationRequest, outcome: Outcome) -> Response:
    """`{"b64_video", "seed", "upsampled_prompt"}`: the clip, and the seed and the text that were used."""
    fields = {"seed": outcome.seed, "upsampled_prompt": outcome.prompt}
    return clip_answer(request, generation, outcome, fields, name="b64_video")
