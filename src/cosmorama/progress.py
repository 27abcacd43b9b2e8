"""What a running generation tells about itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Stage = Literal["queued", "prepare", "encode", "denoise", "decode", "done"]


@dataclass(frozen=True, slots=True)
class Progress:
    """A point in a generation: `step` of `total` in `stage` is complete (denoising steps, or frames when decoding)."""

    stage: Stage
    step: int = 0
    total: int = 0


ProgressCallback = Callable[[Progress], None]
