"""Reading a body as the server does, without a server."""

from __future__ import annotations

from typing import Any

import pytest

from cosmorama.api.dialects import SHAPED
from cosmorama.api.dialects.base import choose, worded
from cosmorama.errors import CosmoramaError
from cosmorama.request import Capabilities, GenerationRequest
from cosmorama.resolve import resolve
from cosmorama.settings import Settings
from cosmorama.world.families import makers

MICROCOSM = Capabilities(model="microcosm", elsewhere=makers())


def shape_of(body: dict[str, Any]) -> str:
    """The dialect that a body is taken for."""
    return choose(SHAPED, body, None).name


def read(
    body: dict[str, Any], *, model: Capabilities = MICROCOSM, dialect: str | None = None, **settings: Any
) -> GenerationRequest:
    """The resolved request of a body, or the error that a client would be answered with."""
    spoken = choose(SHAPED, body, dialect)
    request = spoken.parse(body, Settings(**settings))
    try:
        return resolve(request, model)
    except CosmoramaError as error:
        raise worded(error, spoken.names_of(body)) from None


def refusal(body: dict[str, Any], **how: Any) -> str:
    """The message that a body is refused with, which must be the client's mistake."""
    with pytest.raises(CosmoramaError) as caught:
        read(body, **how)
    assert caught.value.status == 422, caught.value
    return str(caught.value)
