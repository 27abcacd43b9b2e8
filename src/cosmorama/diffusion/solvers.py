"""Solvers of the sampling equation, as pure functions of where a rollout is and what the model predicted.

Each takes the latents at level `index`, the model's prediction of the clean latents there (`denoised`), the rollout's
own `History`, and returns the latents at level `index + 1` with the history for the next call. Nothing is kept between
calls, so any number of rollouts can be advanced in any order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cosmorama.diffusion.schedule import Schedule
from cosmorama.request import Solver


@dataclass(frozen=True, slots=True)
class History:
    """What a multistep solver remembers: previous predictions, newest first, and where the last step started."""

    denoised: tuple[Tensor, ...] = ()
    latents: Tensor | None = None


SolverStep = Callable[[Tensor, Tensor, Schedule, int, History], tuple[Tensor, History]]


def euler(
    latents: Tensor, denoised: Tensor, schedule: Schedule, index: int, history: History
) -> tuple[Tensor, History]:
    """First-order step along `(x - x0) / sigma`, the same for flow and EDM (arXiv 2206.00364, algorithm 1)."""
    ratio = schedule.sigmas[index + 1] / schedule.sigmas[index]
    if ratio == 0:
        return denoised * schedule.alpha(index + 1), history
    alpha = schedule.alpha(index + 1) - schedule.alpha(index) * ratio
    return latents * ratio + denoised * alpha, history


def dpmpp_2m(
    latents: Tensor, denoised: Tensor, schedule: Schedule, index: int, history: History
) -> tuple[Tensor, History]:
    """DPM-Solver++(2M), second-order multistep with data prediction (arXiv 2211.01095, algorithm 2)."""
    estimate = denoised
    last = index == schedule.steps - 1  # the step to sigma = 0 has infinite length in log-SNR: first order there
    if history.denoised and not last:
        h = schedule.log_snr(index + 1) - schedule.log_snr(index)
        h_previous = schedule.log_snr(index) - schedule.log_snr(index - 1)
        estimate = denoised + (denoised - history.denoised[0]) * (h / (2 * h_previous))
    return _exponential_step(latents, estimate, schedule, index), History((denoised,))


def unipc(
    latents: Tensor, denoised: Tensor, schedule: Schedule, index: int, history: History
) -> tuple[Tensor, History]:
    """UniPC of order 2 with B2(h) and data prediction: correct the latents just reached, then predict the next.

    Source: arXiv 2302.04867, algorithms 5 and 7. The order falls to 1 on the first and on the last step.
    """
    if history.latents is not None:
        latents = _unipc_correct(denoised, schedule, index, history)
    order = min(2, len(history.denoised) + 1, schedule.steps - index)
    following = _exponential_step(latents, denoised, schedule, index)
    if order == 2:
        h = schedule.log_snr(index + 1) - schedule.log_snr(index)
        r = (schedule.log_snr(index - 1) - schedule.log_snr(index)) / h
        slope = (history.denoised[0] - denoised) / r
        following = following - slope * (0.5 * schedule.alpha(index + 1) * math.expm1(-h))
    return following, History((denoised, *history.denoised[:1]), latents)


SOLVER_STEPS: dict[Solver, SolverStep] = {"euler": euler, "edm_euler": euler, "dpmpp_2m": dpmpp_2m, "unipc": unipc}
"""`edm_euler` is Euler on Karras-spaced levels: the family chooses the schedule, the step is the same."""


def _exponential_step(latents: Tensor, denoised: Tensor, schedule: Schedule, index: int) -> Tensor:
    """Exact solution over one step for a constant prediction (DDIM; arXiv 2211.01095, equation 9)."""
    return euler(latents, denoised, schedule, index, History())[0]


def _unipc_correct(denoised: Tensor, schedule: Schedule, index: int, history: History) -> Tensor:
    assert history.latents is not None
    previous = history.denoised[0]
    start = index - 1
    h = schedule.log_snr(index) - schedule.log_snr(start)
    b_h = math.expm1(-h)
    corrected = _exponential_step(history.latents, previous, schedule, start)
    change = denoised - previous
    if len(history.denoised) == 1:
        residual = change * 0.5
    else:
        r = (schedule.log_snr(start - 1) - schedule.log_snr(start)) / h
        phi_2 = b_h / -h - 1
        phi_3 = phi_2 / -h - 0.5
        # Solve rho_0 + rho_1 = phi_2 / B, r * rho_0 + rho_1 = 2 * phi_3 / B for the two weights.
        b_0, b_1 = phi_2 / b_h, 2 * phi_3 / b_h
        rho_0 = (b_0 - b_1) / (1 - r)
        rho_1 = b_0 - rho_0
        residual = (history.denoised[1] - previous) * (rho_0 / r) + change * rho_1
    return corrected - residual * (schedule.alpha(index) * b_h)


def initial_noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal noise of `shape` from a CPU generator, so that a seed means the same on every device."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32)
