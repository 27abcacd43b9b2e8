"""From settings to what prepares inputs: how they are fetched, described and expanded. Needs no torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import SecretStr

from cosmorama.engine.prepare import Preparer
from cosmorama.media.fetch import FetchPolicy
from cosmorama.settings import Settings
from cosmorama.text.captioning import Captioner, ChatCaptioner, PixelCaptioner
from cosmorama.text.chat import ChatEndpoint
from cosmorama.text.upsampling import ChatUpsampler, Upsampler, unchanged

STRUCTURED_S, STRUCTURED_TOKENS = 120.0, 8192
"""Limits of a caption in JSON, as upstream has them."""


def preparer_of(settings: Settings) -> Preparer:
    """What fetches, reads, describes and expands, as settings say."""
    policy = FetchPolicy(
        allow_urls=settings.allow_url_input,
        allow_private=settings.allow_private_urls,
        # Whoever sends a request is not on this machine: a path would read the server's own files.
        allow_files=False,
        max_bytes=settings.max_input_bytes,
        timeout_s=settings.url_timeout_s,
    )
    return Preparer(fetch=policy, upsampler=_upsampler(settings), captioner=_captioner(settings))


def _upsampler(settings: Settings) -> Upsampler | None:
    if not settings.prompt_upsampling:
        return unchanged
    if settings.prompt_upsampling_endpoint_url is None:
        return None
    endpoint = ChatEndpoint(
        str(settings.prompt_upsampling_endpoint_url),
        settings.prompt_upsampling_model or "",
        _revealed(settings.prompt_upsampling_api_key),
        settings.prompt_upsampling_timeout_s,
        settings.prompt_upsampling_max_tokens,
        _sampling(settings),
    )
    # Captions in JSON are long: what is not set is set for them.
    chosen = settings.model_fields_set
    options = dict(endpoint.options)
    if "prompt_upsampling_temperature" not in chosen and "temperature" not in settings.prompt_upsampling_extra_body:
        options["temperature"] = None  # the endpoint's own, as upstream has it
    longer = replace(
        endpoint,
        options=options,
        timeout_s=endpoint.timeout_s if "prompt_upsampling_timeout_s" in chosen else STRUCTURED_S,
        max_tokens=endpoint.max_tokens if "prompt_upsampling_max_tokens" in chosen else STRUCTURED_TOKENS,
    )
    return ChatUpsampler(endpoint, longer, style=settings.prompt_upsampling_template_style)


def _sampling(settings: Settings) -> dict[str, Any]:
    chosen = {
        "temperature": settings.prompt_upsampling_temperature,
        "top_p": settings.prompt_upsampling_top_p,
        "top_k": settings.prompt_upsampling_top_k,
    }
    return {
        **{name: value for name, value in chosen.items() if value is not None},
        **settings.prompt_upsampling_extra_body,
    }


def _captioner(settings: Settings) -> Captioner:
    if settings.captioning_endpoint_url is None:
        return PixelCaptioner()
    return ChatCaptioner(
        ChatEndpoint(
            str(settings.captioning_endpoint_url),
            settings.captioning_model or "",
            _revealed(settings.captioning_api_key),
            settings.captioning_timeout_s,
            settings.captioning_max_tokens,
        )
    )


def _revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
