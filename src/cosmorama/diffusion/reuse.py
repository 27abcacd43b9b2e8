"""Step reuse: where the network's answer would hardly differ from its last one, the last one is held.

How much an answer changes per step is measured at every evaluation; it is held for as long as the change expected since
then stays below a threshold. That is the idea of TeaCache (arXiv 2411.19108) and EasyCache (arXiv 2507.02860), applied
to the clean estimate, so that it needs nothing of a model but its answers. For a first-order solver holding the clean
estimate is exactly one longer step, so the threshold chooses the steps: short ones while a clip takes shape, longer
ones when it only gets finer. A straight line through the last two answers foretold the next one worse than the last
one alone: measured on Microcosm, what an answer changes by from step to step has no direction.

Two quantities are held apart: the answer to the prompt, and what guidance adds to it, which changes less (as in
FasterCache, arXiv 2410.19355), so that the negative prompt is asked for less often.

Like a solver it is a pure function: what it remembers belongs to the rollout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import Tensor

from cosmorama.diffusion.guidance import Guidance
from cosmorama.diffusion.schedule import Schedule

FIRST_STEPS = 3
"""Always evaluated: what a clip shows and how it moves is decided in them."""
LAST_STEPS = 1
"""Always evaluated: the clip is their answer."""
MOST_IN_A_ROW = 4
"""For so many steps in a row an answer is held at most."""

Evaluate = Callable[[bool], Tensor]
"""Asks the network for its clean estimate: for the prompt, or (True) for the negative prompt."""


@dataclass(frozen=True, slots=True)
class Held:
    """A quantity that is evaluated at some steps and held at the others.

    Attributes:
        value: What was found last.
        rate: Its change per step, as measured at the last evaluation, relative to the size of the guided estimate.
        steps: For how many steps it has been held.
    """

    value: Tensor | None = None
    rate: float = math.inf
    steps: int = 0

    @property
    def change(self) -> float:
        """Expected change since the last evaluation, relative to the size of the guided estimate."""
        return self.rate * (self.steps + 1) if self.steps < MOST_IN_A_ROW else math.inf

    def again(self) -> Held:
        """After a step at which it was held."""
        return replace(self, steps=self.steps + 1)

    def evaluated(self, value: Tensor, size: float, weight: float = 1.0) -> Held:
        """After an evaluation. `size`: norm of the guided estimate; `weight`: with which the value goes into it."""
        if self.value is None:
            return Held(value)
        change = float((value - self.value).norm()) * weight / max(size, 1e-12)
        return Held(value, change / (self.steps + 1))


@dataclass(frozen=True, slots=True)
class Memory:
    """What a rollout remembers for reuse: the answer to the prompt, and its difference from the negative prompt's."""

    answer: Held = field(default_factory=Held)
    difference: Held = field(default_factory=Held)


def estimate(
    evaluate: Evaluate, guidance: Guidance, schedule: Schedule, index: int, threshold: float, memory: Memory
) -> tuple[Tensor, Memory]:
    """The guided clean estimate at level `index`, from as few evaluations as the threshold lets.

    Args:
        evaluate: The network.
        guidance: How its two answers are combined.
        schedule: The rollout's levels.
        index: The present one.
        threshold: Accepted change of the guided estimate since its parts were evaluated, relative to its size; 0
            evaluates everything.
        memory: As the call for the level before returned it.
    """
    guided = guidance.acts_at(index, schedule.steps)
    if threshold == 0:
        answer = evaluate(False)
        return (guidance.combine(answer, evaluate(True)) if guided else answer), memory
    held, difference = memory.answer, memory.difference
    free = FIRST_STEPS <= index < schedule.steps - LAST_STEPS
    difference_change = difference.change if guided else 0.0
    if free and held.value is not None and held.change + difference_change <= threshold:
        answer, held = held.value, held.again()
    else:
        answer = evaluate(False)
        held = held.evaluated(answer, float(answer.norm()))
    if not guided:
        return answer, Memory(held)
    if free and difference.value is not None and difference_change <= threshold:
        difference = difference.again()
    else:
        found = answer - evaluate(True)
        difference = difference.evaluated(found, float(answer.norm()), abs(guidance.weight - 1))
    assert difference.value is not None
    return guidance.combine(answer, answer - difference.value), Memory(held, difference)
