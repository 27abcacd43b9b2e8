"""One synchronous generation: its file while it is made, its time limit, and a client that may go away."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from fastapi import Request

from cosmorama.api.clips import discard, new_place
from cosmorama.api.errors import GenerationTimeoutError
from cosmorama.api.services import Services
from cosmorama.engine.outcome import Outcome
from cosmorama.errors import CancelledError
from cosmorama.request import GenerationRequest

log = logging.getLogger(__name__)


async def generate(request: Request, generation: GenerationRequest, services: Services) -> Outcome:
    """Generate a clip for the client behind `request`. The caller has to `discard` the clip.

    Raises:
        CosmoramaError: whatever the supervisor raises; nothing is left on the disk then.
        GenerationTimeoutError: the server's limit has passed.
        CancelledError: the client went away; the generation is cancelled too.
    """
    output = new_place(services.artifacts)
    made = asyncio.create_task(services.supervisor.generate(generation, output=output))
    gone = asyncio.create_task(_gone(request))
    limit_s = services.settings.request_timeout_s
    try:
        await asyncio.wait((made, gone), timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        if made.done():
            outcome = made.result()
            services.metrics.made(outcome)
            return outcome
        if gone.done():
            log.info("the client went away; its generation is cancelled")
            raise CancelledError("the client went away")
        raise GenerationTimeoutError(f"the generation was not finished within this server's limit of {limit_s:g} s")
    except BaseException:
        discard(output)
        raise
    finally:
        for task in (made, gone):
            if not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task


async def _gone(request: Request) -> None:
    # The body has been read, so the next thing that can be received is the client's leaving.
    while (await request.receive())["type"] != "http.disconnect":
        pass
