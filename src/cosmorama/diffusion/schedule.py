"""Noise schedules: the levels a sampler visits, as coefficients of `x = alpha * x0 + sigma * noise`.

Levels are plain Python floats (float64), so that a schedule is exact, hashable and free of devices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Parametrization = Literal["flow", "edm"]

_LARGEST_FLOW_SIGMA = 1 - 1e-6  # as in diffusers; keeps log(alpha) finite where the path starts at pure noise


@dataclass(frozen=True, slots=True)
class Schedule:
    """`steps + 1` noise levels, falling. The last one is 0, or the small one that a checkpoint is sampled down to.

    `flow`: alpha = 1 - sigma, sigma in [0, 1] (rectified flow, arXiv 2209.03003). `edm`: alpha = 1 (arXiv 2206.00364).
    """

    sigmas: tuple[float, ...]
    parametrization: Parametrization = "flow"

    @property
    def steps(self) -> int:
        """How many steps lead from the first level to the last."""
        return len(self.sigmas) - 1

    def alpha(self, index: int) -> float:
        """The factor of the clean signal at level `index`."""
        return 1.0 if self.parametrization == "edm" else 1.0 - self.sigmas[index]

    def log_snr(self, index: int) -> float:
        """lambda = log(alpha / sigma) at level `index`; +inf at the last one (arXiv 2206.00927)."""
        sigma = self.sigmas[index]
        if sigma == 0:
            return math.inf
        if self.parametrization == "edm":
            return -math.log(sigma)
        sigma = min(sigma, _LARGEST_FLOW_SIGMA)
        return math.log1p(-sigma) - math.log(sigma)


def flow_schedule(steps: int, *, shift: float = 1.0) -> Schedule:
    """Evenly spaced flow times 1 to 0, shifted towards the noisy end: `shift * t / (1 + (shift - 1) * t)`.

    Source of the shift: arXiv 2403.03206, section 5.3.2. `steps` >= 1, `shift` > 0.
    """
    times = (1 - i / steps for i in range(steps + 1))
    return Schedule(tuple(shift * t / (1 + (shift - 1) * t) for t in times))


def karras_sigmas(
    steps: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> tuple[float, ...]:
    """EDM noise levels from `sigma_max` to `sigma_min`, then 0 (arXiv 2206.00364, equation 5)."""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    ramp = (i / max(steps - 1, 1) for i in range(steps))
    return (*((high + r * (low - high)) ** rho for r in ramp), 0.0)


def karras_flow_schedule(steps: int) -> Schedule:
    """Karras levels visited by a flow model: the flow time with the same signal-to-noise ratio, `s / (1 + s)`."""
    return Schedule(tuple(s / (1 + s) for s in karras_sigmas(steps)))
