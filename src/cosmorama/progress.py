"""What a running generation tells about itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Stage = Literal["queued", "prepare", "encode", "denoise", "decode", "done"]


@dataclass(frozen=True, slots=True)
class Progress:
    """A point in a generation: `step` of `total` in `stage` is complete (denoising steps, or frames when decoding)."""

    stage: Stage
    step: int = 0
    total: int = 0
    share: float | None = field(default=None, compare=False)
    """Part of the denoising that is done, 0 to 1, where steps are of different lengths; None: as the steps say."""
    remaining_s: float | None = field(default=None, compare=False)
    """Estimated seconds of work left, from measured ones; None before anything was measured."""


ProgressCallback = Callable[[Progress], None]
