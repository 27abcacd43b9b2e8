"""What a finished generation is, apart from the engine so that a process without the model can know it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class Decision:
    """What a guardrail decided of one thing.

    Attributes:
        check: Which one, and with which rule or weights.
        on: `prompt`, `expanded prompt`, `description`, `negative prompt` or `frames`.
        decided: `passed`, or `altered` for frames of which something was covered. What is refused makes no outcome.
    """

    check: str
    on: str
    decided: Literal["passed", "altered"]


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
    action: tuple[tuple[float, ...], ...] | None = None
    """Actions `[steps][numbers]` that the model predicted, for policy and inverse dynamics."""
    counts: dict[str, int] = field(default_factory=dict)
    """What was done besides, by name: `steps`, network `evaluations`, `prompt_tokens`, `text_cache_hits`,
    `text_cache_misses`; of guardrails, 1 each: `prompts_passed`, `clips_passed`, `clips_altered`."""
    warnings: tuple[str, ...] = ()
    """What was fitted, replaced, cut or ignored, in words for whoever sent the request."""
    checks: tuple[Decision, ...] = ()
    """Every guardrail that ran, on everything that it looked at; none: this server has none."""
