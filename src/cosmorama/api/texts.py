"""`POST /v1/upsample` and `POST /v1/caption`: the text that a generation would be made of, to be read and edited first.

Both take the body of `POST /v1/infer`, in any of its formats, and make no clip. Inputs are read in processes that can
be ended, as those of generations are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from secrets import token_hex
from typing import Any

from fastapi import APIRouter, Request

from cosmorama import logs
from cosmorama.api.body import body_limit, read_object
from cosmorama.api.dialects import SHAPED
from cosmorama.api.dialects.base import choose, wording
from cosmorama.api.infer import request_body
from cosmorama.api.services import Services, ServicesOf, owner_of, while_wanted
from cosmorama.engine.children import Children
from cosmorama.engine.inputs import preparer_of
from cosmorama.engine.prepare import PreparedRequest
from cosmorama.errors import CosmoramaError, InvalidRequestError, Problem
from cosmorama.guardrails.checks import Guardrails
from cosmorama.guardrails.words import BlockedWords
from cosmorama.request import GenerationRequest
from cosmorama.resolve import resolve
from cosmorama.settings import Settings


class ElsewhereError(CosmoramaError):
    """What was asked for is done by other servers than this one (HTTP 501)."""

    status = 501
    kind = "not_here"


_TEXT: dict[int | str, dict[str, Any]] = {
    200: {"description": "The text, the model that it is for, and warnings where there are some."}
}

router = APIRouter(tags=["texts"])


@dataclass(slots=True)
class Writers:
    """The processes in which texts are written, which begin with the first one."""

    settings: Settings
    children: Children | None = None

    async def prepared(
        self, generation: GenerationRequest, services: Services, owner: str
    ) -> tuple[PreparedRequest, str]:
        """A request with its text, and the model that it is for.

        Raises:
            CosmoramaError: as a generation of it would.
            QueueFullError: too many of this owner are waited for.
        """
        model = services.supervisor.find(generation.model)
        capabilities = await services.supervisor.capabilities_of(model)
        resolved = resolve(generation, capabilities)
        if self.settings.text_guardrail and self.settings.role == "api":
            raise ElsewhereError("the text guardrail runs beside a model, and this server has none; ask one that has")
        if self.children is None:
            setup = partial(logs.configure, self.settings, "reader")
            self.children = Children(preparer_of(self.settings), setup=setup)
        name, given = f"text_{token_hex(8)}", (resolved.prompt or "").strip()
        turns = services.texts if resolved.mode == "text2world" else services.captions
        async with turns.turn(owner) as call:
            await self._pass(given, "prompt", services, model)
            try:
                prepared = await call(self.children.prepare, name, resolved, capabilities)
            except asyncio.CancelledError:
                self.children.stop(name)
                raise
            if prepared.prompt != given:
                await self._pass(prepared.prompt, "expanded prompt" if given else "description", services, model)
            return prepared, model

    async def _pass(self, text: str, called: str, services: Services, model: str) -> None:
        """Ask the guardrails: the networks are in the process of the model, the words may be anywhere."""
        if not self.settings.text_guardrail:
            if self.settings.blocked_words is not None:
                Guardrails((BlockedWords(self.settings.blocked_words),)).check_prompt(text, called)
        elif text:
            with services.supervisor.worker(model) as worker:
                await worker.check(text, called)

    def close(self) -> None:
        """End the processes."""
        if self.children is not None:
            self.children.close()


@router.post(
    "/v1/upsample", summary="Write a prompt out", responses=_TEXT, openapi_extra={"requestBody": request_body()}
)
async def upsample(request: Request, services: ServicesOf) -> dict[str, Any]:
    """The longer text that a prompt becomes before a clip is made of it, by the server's way of writing it out."""
    generation, _ = await _asked(request, services)
    given = (generation.prompt or "").strip()
    if not given:
        raise InvalidRequestError(Problem("prompt", generation.prompt, "a text to write out"))
    prepared, model = await _prepared(request, replace(generation, prompt_upsampling=True), services)
    return {
        "prompt": given,
        "upsampled_prompt": prepared.prompt,
        "model": model,
        "warnings": [*prepared.request.warnings, *prepared.warnings],
    }


@router.post(
    "/v1/caption",
    summary="Describe a picture or a clip",
    responses=_TEXT,
    openapi_extra={"requestBody": request_body()},
)
async def caption(request: Request, services: ServicesOf) -> dict[str, Any]:
    """The description that stands for a prompt where a picture or a clip comes without one."""
    generation, body = await _asked(request, services)
    if generation.image is None and generation.video is None:
        given = next((name for name in ("video", "input_reference") if name in body), generation.called("image"))
        raise InvalidRequestError(Problem(given, body.get(given), "a picture or a clip to describe"))
    described = replace(generation, prompt=None, prompt_upsampling=False)
    prepared, model = await _prepared(request, described, services)
    return {
        "caption": prepared.prompt,
        "model": model,
        "warnings": [*prepared.request.warnings, *prepared.warnings],
    }


async def _asked(request: Request, services: Services) -> tuple[GenerationRequest, Mapping[str, Any]]:
    settings = services.settings
    body = await read_object(request, body_limit(settings.max_input_bytes))
    dialect = choose(SHAPED, body, None if settings.dialect == "auto" else settings.dialect)
    # Size and rate decide nothing here that would be worth a refusal.
    return replace(dialect.read(body, settings), fit=True), body


async def _prepared(request: Request, generation: GenerationRequest, services: Services) -> tuple[PreparedRequest, str]:
    writers: Writers = request.app.state.writers
    with wording(generation):
        return await while_wanted(request, writers.prepared(generation, services, owner_of(request)))
