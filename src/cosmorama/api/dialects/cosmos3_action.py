"""Actions of robots and vehicles on the Cosmos3 wire, in and out.

The names of the fields are those of NVIDIA's open Cosmos3 tools; the container's own are not published.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from cosmorama.api.body import WireModel
from cosmorama.engine.outcome import Outcome
from cosmorama.errors import InvalidRequestError, Problem
from cosmorama.request import Action, ActionDomain, GenerationRequest

DOMAINS = (
    ActionDomain(1, "av", 9),
    ActionDomain(6, "umi", 10),
    ActionDomain(7, "bridge_orig_lerobot", 10),
    ActionDomain(8, "droid_lerobot", 10),
)
DEFAULT_STEPS = 16
MAX_STEPS = 396
"""A clip has one frame more than actions, and 397 are the most that Cosmos3 makes."""


class ActionParams(WireModel):
    """Whose actions, and for forward dynamics the actions themselves."""

    domain_name: str | None = Field(None, description="av, umi, bridge_orig_lerobot or droid_lerobot.")
    domain_id: int | None = Field(None, description="The same by number: 1, 6, 7 or 8.")
    action_chunk_size: int | None = Field(None, ge=4, le=MAX_STEPS, description="A multiple of 4; frames are one more.")
    raw_action_dim: int | None = Field(None, description="Numbers per action; only the domain's own is accepted.")
    action: list[list[float]] | None = Field(None, description="One row of numbers per step, for forward dynamics.")


def action_of(params: ActionParams, mode: str) -> Action:
    """What a body says of actions.

    Raises:
        InvalidRequestError: naming the field of `action_params` that is wrong.
    """
    domain = _domain(params)
    problems = []
    rows = params.action
    if rows is None and mode == "forward_dynamics":
        problems.append(Problem("action_params.action", None, "one row of numbers per step for forward_dynamics"))
    if rows is not None and mode != "forward_dynamics":
        problems.append(Problem("action_params.action", f"{len(rows)} rows", f"no value: {mode} answers with them"))
    if rows is not None and any(len(row) != domain.width for row in rows):
        widths = sorted({len(row) for row in rows})
        accepted = f"rows of {domain.width} numbers for {domain.name}"
        problems.append(Problem("action_params.action", f"rows of {', '.join(map(str, widths))} numbers", accepted))
    if params.raw_action_dim not in (None, domain.width):
        problems.append(Problem("action_params.raw_action_dim", params.raw_action_dim, f"{domain.width}"))
    steps = params.action_chunk_size or (DEFAULT_STEPS if rows is None else len(rows))
    if steps % 4 or not 4 <= steps <= MAX_STEPS:
        field = "action_params.action_chunk_size" if params.action_chunk_size else "action_params.action"
        problems.append(Problem(field, f"{steps} actions", f"a multiple of 4 from 4 to {MAX_STEPS}"))
    elif rows is not None and len(rows) != steps:
        problems.append(Problem("action_params.action", f"{len(rows)} rows", f"{steps} rows, the action_chunk_size"))
    if problems:
        raise InvalidRequestError(*problems)
    values = None if rows is None else tuple(tuple(row) for row in rows)
    return Action(domain=domain.id, values=values, steps=steps)


def action_answer(generation: GenerationRequest, outcome: Outcome) -> dict[str, Any] | None:
    """The predicted actions as clients read them; None where the model predicted none."""
    if generation.action is None or outcome.action is None:
        return None
    rows = [list(row) for row in outcome.action]
    width = len(rows[0]) if rows else 0
    return {
        "data": rows,
        "shape": [len(rows), width],
        "dtype": "float32",
        "raw_action_dim": width,
        "action_mode": generation.mode,
        "domain_id": generation.action.domain,
    }


def _domain(params: ActionParams) -> ActionDomain:
    named = ", ".join(f"{domain.name} ({domain.id})" for domain in DOMAINS)
    found = [domain for domain in DOMAINS if params.domain_name == domain.name or params.domain_id == domain.id]
    if params.domain_name is None and params.domain_id is None:
        raise InvalidRequestError(Problem("action_params.domain_name", None, f"one of {named}"))
    if len(found) == 1:
        agrees = params.domain_name in (None, found[0].name) and params.domain_id in (None, found[0].id)
        if agrees:
            return found[0]
    field, value = (
        ("domain_id", params.domain_id) if params.domain_name is None else ("domain_name", params.domain_name)
    )
    accepted = f"one of {named}, and domain_id its number where both are given"
    raise InvalidRequestError(Problem(f"action_params.{field}", value, accepted))
