"""Control clips on the wire, as Transfer2.5 has them at the top of its body and Cosmos3 in its `transfer` object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from cosmorama.api.body import WireModel
from cosmorama.errors import InvalidRequestError, Problem
from cosmorama.request import CONTROL_KINDS, Control, ControlKind

Preset = Literal["very_low", "low", "medium", "high", "very_high"]


class ControlParams(WireModel):
    """One control: how strongly it acts, and its clip."""

    control_weight: float = Field(1.0, ge=0, description="Weights of more than 1 in sum are scaled to 1.")
    control: str | None = Field(None, description="URL, data URL or base64 of the control clip; null computes it.")
    mask: str | None = Field(None, description="Not supported: null.")


class EdgeParams(ControlParams):
    """Edges; `preset_edge_threshold` is how strong one must be to count."""

    preset_edge_threshold: Preset = "medium"


class VisParams(ControlParams):
    """A blurred picture; `preset_blur_strength` is how blurred."""

    preset_blur_strength: Preset = "medium"


def controls(given: Mapping[ControlKind, ControlParams | None]) -> tuple[Control, ...]:
    """The controls of a request, their weights scaled so that they add up to 1 at most.

    Raises:
        InvalidRequestError: none is given, or one has a mask.
    """
    found = {kind: params for kind, params in given.items() if params is not None}
    if not found:
        raise InvalidRequestError(Problem("controls", None, f"at least one of {', '.join(CONTROL_KINDS)}"))
    masks = [
        Problem(f"{kind}.mask", params.mask, "null: controls act on the whole picture here")
        for kind, params in found.items()
        if params.mask is not None
    ]
    if masks:
        raise InvalidRequestError(*masks)
    total = max(1.0, sum(params.control_weight for params in found.values()))
    return tuple(
        Control(kind, params.control_weight / total, params.control, _preset(params)) for kind, params in found.items()
    )


def _preset(params: ControlParams) -> Preset:
    if isinstance(params, EdgeParams):
        return params.preset_edge_threshold
    return params.preset_blur_strength if isinstance(params, VisParams) else "medium"
