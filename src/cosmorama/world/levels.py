"""Noise levels (sigmas) as the schedulers of checkpoints place them, and which schedulers are understood."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from cosmorama.diffusion.schedule import Schedule
from cosmorama.errors import ModelNotFoundError
from cosmorama.world.load.read import first_line

_NEEDED = {
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "predict_x0": True,
    "solver_order": 2,
    "solver_type": "bh2",
    "lower_order_final": True,
    "thresholding": False,
    "final_sigmas_type": "zero",
    "use_dynamic_shifting": False,
}
"""What `cosmorama.diffusion.solvers.unipc` and a flow schedule stand for; diffusers' other variants are refused."""
_TRIED_STEPS = 8
"""Of the schedule that a checkpoint's scheduler is tried with when it is loaded."""


@dataclass(frozen=True, slots=True)
class Levels:
    """A schedule, and what the network reads as the timestep at each of its levels but the last.

    UniPC's scheduler casts timesteps to integers, so they are not exactly 1000 times the noise level.
    """

    schedule: Schedule
    timesteps: tuple[float, ...]


def distilled_levels(config: Mapping[str, Any], sigmas: Sequence[float]) -> Levels:
    """The levels of a distilled model: its own, as its `FlowMatchEulerDiscreteScheduler` shifts them."""
    scheduler: Any = FlowMatchEulerDiscreteScheduler.from_config(dict(config))
    scheduler.set_timesteps(sigmas=list(sigmas))
    return Levels(Schedule(tuple(scheduler.sigmas.tolist())), tuple(scheduler.timesteps.tolist()))


def check_distilled(config: Mapping[str, Any], sigmas: object, where: str) -> tuple[float, ...]:
    """The levels of a distilled checkpoint, if it samples as is implemented.

    Raises:
        ModelNotFoundError: naming the value that is not supported.
    """
    if not isinstance(sigmas, list) or not sigmas or not all(isinstance(s, float | int) and 0 < s <= 1 for s in sigmas):
        raise ModelNotFoundError(f"{where}: distilled_sigmas is {sigmas!r}; it must list levels from 1 down to 0")
    needed = {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "stochastic_sampling": True,
        "use_dynamic_shifting": False,
        "invert_sigmas": False,
    }
    _check_values({**FlowMatchEulerDiscreteScheduler().config, **config}, needed, where)
    _check_levels(lambda: distilled_levels(config, sigmas), where)
    return tuple(map(float, sigmas))


def check_unipc(config: Mapping[str, Any], where: str) -> None:
    """Refuse a scheduler that samples differently from what is implemented.

    Raises:
        ModelNotFoundError: naming the value that is not supported.
    """
    named = {"_class_name": "UniPCMultistepScheduler"}
    _check_values({**UniPCMultistepScheduler().config, **named, **config}, named | _NEEDED, where)
    _check_levels(lambda: unipc_levels(config, _TRIED_STEPS), where)


def check_karras(config: Mapping[str, Any], where: str) -> None:
    """The same for Predict2, whose levels are Karras's whatever else its scheduler says."""
    if config.get("_class_name") != "FlowMatchEulerDiscreteScheduler" or not config.get("use_karras_sigmas"):
        raise ModelNotFoundError(f"{where}: only a FlowMatchEulerDiscreteScheduler with use_karras_sigmas is supported")


def check_edm(config: Mapping[str, Any], where: str) -> None:
    """The same for Predict1."""
    needed = {"_class_name": "EDMEulerScheduler", "sigma_schedule": "karras", "prediction_type": "epsilon"}
    _check_values(config, needed, where)
    data = config.get("sigma_data")
    if not isinstance(data, int | float) or not 0 < data < math.inf:
        raise ModelNotFoundError(f"{where}: sigma_data is {data!r}; it must be a number above 0")
    _check_levels(lambda: edm_levels(config, _TRIED_STEPS), where)


def _check_values(config: Mapping[str, Any], needed: Mapping[str, object], where: str) -> None:
    for name, value in needed.items():
        if config.get(name) != value:
            raise ModelNotFoundError(f"{where}: {name} is {config.get(name)!r}; only {value!r} is supported")


def _check_levels(make: Callable[[], Schedule | Levels], where: str) -> None:
    """Refuse a scheduler whose numbers give no levels to sample at: what it holds is not looked at before a request."""
    try:
        made = make()
    except Exception as error:  # whatever diffusers makes of them
        raise ModelNotFoundError(f"{where}: its numbers give no noise levels: {first_line(error)}") from error
    levels, timesteps = (made.schedule.sigmas, made.timesteps) if isinstance(made, Levels) else (made.sigmas, (1.0,))
    if not all(map(math.isfinite, levels)) or levels[-1] < 0 or sorted(levels, reverse=True) != list(levels):
        raise ModelNotFoundError(f"{where}: its numbers give noise levels that do not fall: {levels}")
    if not timesteps[0] > 0:
        raise ModelNotFoundError(f"{where}: its numbers give timesteps of nothing: {timesteps}")


def unipc_levels(
    config: Mapping[str, Any], steps: int, *, flow_shift: float | None = None, native: bool = False
) -> Levels:
    """The levels of a request.

    Args:
        config: The scheduler's own configuration.
        steps: At least 1.
        flow_shift: Replaces the checkpoint's. diffusers ignores it where Karras's levels are configured; here it means
            evenly spaced flow times with that shift.
        native: Space the flow times as `Cosmos3OmniPipeline` does with `use_native_flow_schedule`.
    """
    changes = {} if flow_shift is None else {"flow_shift": flow_shift, "use_karras_sigmas": False}
    scheduler: Any = UniPCMultistepScheduler.from_config(dict(config), **changes)
    if native:
        first = 1.0 - 1.0 / scheduler.config.num_train_timesteps
        scheduler.set_timesteps(steps, sigmas=np.linspace(first, 0.0, steps + 1)[:-1])
    else:
        scheduler.set_timesteps(steps)
    return Levels(Schedule(tuple(scheduler.sigmas.tolist())), tuple(scheduler.timesteps.tolist()))


def edm_levels(config: Mapping[str, Any], steps: int) -> Schedule:
    """The levels of an `EDMEulerScheduler`.

    Where it is configured to end at its smallest level, that level comes twice: a step that evaluates the network and
    multiplies the result by zero. Without it the schedule has a step less.
    """
    scheduler: Any = EDMEulerScheduler.from_config(dict(config))
    scheduler.set_timesteps(steps)
    levels = tuple(scheduler.sigmas.tolist())
    if levels[-1] == levels[-2]:
        levels = (*levels[:-1], 0.0) if steps == 1 else levels[:-1]
    return Schedule(levels, "edm")
