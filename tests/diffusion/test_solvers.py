"""Solvers against diffusers' schedulers and against the exact solution of a problem with a known answer."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cosmorama.diffusion.schedule import Schedule, flow_schedule, karras_flow_schedule, karras_sigmas
from cosmorama.diffusion.solvers import SOLVER_STEPS, History, initial_noise

SHAPE = (1, 4, 2, 3, 3)
TARGET = torch.linspace(-1, 1, math.prod(SHAPE)).reshape(SHAPE)


def edm_schedule(steps: int) -> Schedule:
    """Karras levels for a model that works in EDM's own parametrization."""
    return Schedule(karras_sigmas(steps), "edm")


def denoiser(latents: Tensor, sigma: float) -> Tensor:
    """A smooth stand-in for a network: the clean signal it sees depends on the latents and on the level."""
    return torch.tanh(TARGET + 0.3 * latents) / (1 + 0.2 * sigma)


def integrate(solver: str, schedule: Schedule, latents: Tensor) -> Tensor:
    history = History()
    for index in range(schedule.steps):
        denoised = denoiser(latents, schedule.sigmas[index])
        latents, history = SOLVER_STEPS[solver](latents, denoised, schedule, index, history)
    return latents


def diffusers_flow(scheduler, schedule: Schedule, latents: Tensor) -> Tensor:
    for index, timestep in enumerate(scheduler.timesteps):
        sigma = schedule.sigmas[index]
        velocity = (latents - denoiser(latents, sigma)) / sigma
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
    return latents


def schedule_of(scheduler) -> Schedule:
    # In float64 the comparison is of formulas: diffusers solves for UniPC's weights in the dtype of its levels.
    scheduler.sigmas = scheduler.sigmas.double()
    return Schedule(tuple(float(s) for s in scheduler.sigmas))


def test_euler_is_diffusers_flow_match_euler() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[1 - i / 12 for i in range(12)])
    schedule = schedule_of(scheduler)
    noise = initial_noise(SHAPE, 3).double()
    torch.testing.assert_close(
        integrate("euler", schedule, noise), diffusers_flow(scheduler, schedule, noise), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 20, 35])
def test_unipc_is_diffusers_unipc(steps: int) -> None:
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=5.0,
        solver_order=2,
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(steps)
    schedule = schedule_of(scheduler)
    noise = initial_noise(SHAPE, 3).double()
    torch.testing.assert_close(
        integrate("unipc", schedule, noise), diffusers_flow(scheduler, schedule, noise), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("steps", [2, 5, 20, 35])
def test_dpmpp_2m_is_diffusers_dpmpp_2m(steps: int) -> None:
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0, algorithm_type="dpmsolver++"
    )
    scheduler.set_timesteps(steps)
    schedule = schedule_of(scheduler)
    noise = initial_noise(SHAPE, 3).double()
    torch.testing.assert_close(
        integrate("dpmpp_2m", schedule, noise), diffusers_flow(scheduler, schedule, noise), rtol=1e-6, atol=1e-7
    )


def test_euler_on_edm_levels_is_diffusers_edm_euler() -> None:
    scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, prediction_type="epsilon")
    scheduler.set_timesteps(12)
    theirs = ours = initial_noise(SHAPE, 3) * 80
    schedule = edm_schedule(12)
    assert schedule.sigmas == pytest.approx([float(s) for s in scheduler.sigmas], rel=1e-5)
    history = History()
    for index, timestep in enumerate(scheduler.timesteps):
        sigma = schedule.sigmas[index]
        # diffusers wants the raw network output F; invert its preconditioning x0 = c_skip * x + c_out * F.
        c_skip = 0.25 / (sigma**2 + 0.25)
        c_out = sigma * 0.5 / (sigma**2 + 0.25) ** 0.5
        scheduler.scale_model_input(theirs, timestep)
        raw = (denoiser(theirs, sigma) - c_skip * theirs) / c_out
        theirs = scheduler.step(raw, timestep, theirs, return_dict=False)[0]
        ours, history = SOLVER_STEPS["edm_euler"](ours, denoiser(ours, sigma), schedule, index, history)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("solver", ["unipc", "dpmpp_2m"])
def test_second_order_solvers_beat_euler(solver: str) -> None:
    def between(steps: int) -> Schedule:
        # Neither end at pure noise or at none, where every solver takes a first-order step.
        return Schedule(tuple(0.8 * 0.05 ** (i / steps) for i in range(steps + 1)))

    noise = initial_noise(SHAPE, 3).double()
    truth = integrate("euler", between(3000), noise)
    error = (integrate(solver, between(16), noise) - truth).abs().max()
    assert error < 0.3 * (integrate("euler", between(16), noise) - truth).abs().max()


@pytest.mark.parametrize("solver", sorted(SOLVER_STEPS))
@pytest.mark.parametrize("steps", [1, 2, 3, 50])
@pytest.mark.parametrize("make", [lambda n: flow_schedule(n, shift=5.0), karras_flow_schedule, edm_schedule])
def test_any_solver_lands_on_the_last_prediction(solver: str, steps: int, make) -> None:
    schedule = make(steps)
    result = integrate(solver, schedule, initial_noise(SHAPE, 0) * schedule.sigmas[0])
    assert torch.isfinite(result).all()
    assert result.abs().max() <= 1.0


@given(steps=st.integers(1, 100), shift=st.floats(0.2, 20))
def test_flow_schedule_falls_from_one_to_zero(steps: int, shift: float) -> None:
    sigmas = flow_schedule(steps, shift=shift).sigmas
    assert len(sigmas) == steps + 1
    assert sigmas[0] == pytest.approx(1)
    assert sigmas[-1] == 0
    assert all(a > b for a, b in itertools.pairwise(sigmas))


@given(steps=st.integers(1, 100))
def test_karras_levels_keep_the_signal_to_noise_ratio_in_flow_coordinates(steps: int) -> None:
    edm, flow = edm_schedule(steps), karras_flow_schedule(steps)
    for index in range(steps):
        assert edm.log_snr(index) == pytest.approx(flow.log_snr(index), abs=1e-9)


@given(seed=st.integers(0, 2**32 - 1))
def test_noise_is_a_function_of_the_seed(seed: int) -> None:
    assert torch.equal(initial_noise(SHAPE, seed), initial_noise(SHAPE, seed))
    assert not torch.equal(initial_noise(SHAPE, seed), initial_noise(SHAPE, (seed + 1) % 2**32))
