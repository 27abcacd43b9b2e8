"""One request with an engine to itself."""

from __future__ import annotations

from pathlib import Path

from cosmorama.engine.engine import Engine
from cosmorama.engine.outcome import Outcome
from cosmorama.errors import CosmoramaError
from cosmorama.progress import ProgressCallback
from cosmorama.request import GenerationRequest


def make_alone(
    engine: Engine, request: GenerationRequest, output: Path, *, on_progress: ProgressCallback | None = None
) -> Outcome:
    """Make one request, from its inputs to its file, on an engine that holds no other.

    Raises:
        CosmoramaError: what the request ended with.
    """
    engine.submit("alone", request, output=output, on_progress=on_progress)
    while engine.pending:
        if not engine.step():
            engine.wait()
    ((_, result),) = engine.finished()
    if isinstance(result, CosmoramaError):
        raise result
    return result
