"""One small clip before a worker takes requests: what a process does once (kernels, buffers, codecs) is done then."""

from __future__ import annotations

import io
import logging
import tempfile
import time
from pathlib import Path

from PIL import Image

from cosmorama.engine.engine import Engine
from cosmorama.errors import CosmoramaError
from cosmorama.request import Capabilities, GenerationRequest

log = logging.getLogger(__name__)

STEPS = 2


def warm_up(engine: Engine) -> None:
    """Make a clip and throw it away. One that cannot be made is logged; requests then find out for themselves."""
    request = small_request(engine.capabilities)
    if request is None:
        log.warning("no warm-up: %s makes clips only from other clips", engine.capabilities.model)
        return
    started = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as folder:
            engine.make(request, Path(folder) / "clip")
    except CosmoramaError as error:
        log.warning("the warm-up failed: %s", error)
    else:
        log.info("warmed up in %.1f s", time.perf_counter() - started)


def small_request(capabilities: Capabilities) -> GenerationRequest | None:
    """Two steps at the smallest size that a model names, from text or else from a picture; None: it takes neither."""
    if not {"text2world", "image2world"} & {*capabilities.modes}:
        return None
    size = min(capabilities.sizes, key=lambda size: size.width * size.height)
    return GenerationRequest(
        prompt="a ball",
        prompt_upsampling=False,
        image=None if "text2world" in capabilities.modes else _grey(size.width, size.height),
        width=size.width,
        height=size.height,
        # With a picture given, one frame alone would leave nothing to make.
        frames=min(capabilities.frames.multiple + 1, capabilities.frames.maximum),
        steps=int(max(STEPS, capabilities.steps.low)),
        seed=0,
    )


def _grey(width: int, height: int) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (width, height), (128, 128, 128)).save(written, "PNG")
    return written.getvalue()
