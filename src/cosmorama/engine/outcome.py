"""What a finished generation is, apart from the engine so that a process without the model can know it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished generation: the file, and what was really used to make it."""

    path: Path
    seed: int
    prompt: str
    width: int
    height: int
    frames: int
    fps: float
    timings: dict[str, float]
    """Seconds of work per stage."""
