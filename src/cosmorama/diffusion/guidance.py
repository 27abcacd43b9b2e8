"""Classifier-free guidance (arXiv 2207.12598)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cosmorama.request import ResolvedRequest


@dataclass(frozen=True, slots=True)
class Guidance:
    """How strongly, and when, the prompt is amplified.

    Attributes:
        weight: `w` in `uncond + w * (cond - uncond)`; 1 means no guidance.
        interval: Fractions of the steps in which it acts (arXiv 2404.07724).
        rescale: 0 to 1, how far the result's spread is pulled back to the conditional one's (arXiv 2305.08891).
    """

    weight: float
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0

    @classmethod
    def of(cls, weight: float, request: ResolvedRequest) -> Guidance:
        """The request's, at the weight that its scale means to the model."""
        return cls(weight, request.guidance_interval, request.guidance_rescale)

    def acts_at(self, index: int, steps: int) -> bool:
        """Whether step `index` of `steps` needs the unconditional prediction at all."""
        start, end = self.interval
        return self.weight != 1 and start * steps <= index < end * steps

    def combine(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        """The guided prediction. Shapes `[B, C, T, H, W]`, all alike."""
        guided = unconditional + (conditional - unconditional) * self.weight
        if self.rescale == 0:
            return guided
        dims = tuple(range(1, guided.ndim))
        spread = conditional.std(dims, keepdim=True) / guided.std(dims, keepdim=True).clamp_min(1e-8)
        return guided * (self.rescale * spread + (1 - self.rescale))
