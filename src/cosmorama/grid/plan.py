"""The requests of a grid: one for every combination of the values of its axes."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from typing import Any, Literal, get_type_hints

from pydantic import TypeAdapter, ValidationError

from cosmorama.errors import InvalidRequestError, Problem
from cosmorama.request import INWARD, MAX_SEED, Adapter, Control, GenerationRequest, Output

MAX_CELLS = 400
_RUN = re.compile(r"(-?\d+(?:\.\d+)?)\.\.(-?\d+(?:\.\d+)?)(?:/(\d+(?:\.\d+)?))?")
_INNER: dict[str, Any] = {"controls": Control, "adapters": Adapter, "output": Output}
_NO_AXIS = frozenset({"image", "video", "action", *INWARD, *_INNER})


@dataclass(frozen=True, slots=True)
class Axis:
    """A knob, by its name in a request, and the values it is given.

    Inner knobs are `output.quality`, `controls.edge.weight` (by kind) and `adapters.night.scale` (by name).
    """

    name: Literal["x", "y", "z"]
    knob: str
    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """One clip of a grid.

    Attributes:
        place: Which value of each axis it has, from 0, in the order of the axes.
        name: Unique in its grid and good for a file name, such as `guidance_scale-4_seed-1`.
        request: What makes it.
    """

    place: tuple[int, ...]
    name: str
    request: GenerationRequest


def parse_axis(name: Literal["x", "y", "z"], text: str) -> Axis:
    """An axis from `KNOB=VALUE,VALUE,...`; where a value holds commas, `|` stands between them.

    `1..5` is 1, 2, 3, 4, 5, and `0..1/0.25` takes steps of 0.25.

    Raises:
        InvalidRequestError: under the name of the option: no such knob, no value, or one that is not of its type.
    """
    option = f"--{name}"
    knob, equals, rest = text.partition("=")
    knob = knob.strip()
    if not equals or not rest.strip():
        raise InvalidRequestError(Problem(option, text, "KNOB=VALUE,VALUE,... such as guidance_scale=1,4,7"))
    parts = [part.strip() for part in rest.split("|" if "|" in rest else ",")]
    adapter = _type_of(knob, option)
    values = []
    for part in itertools.chain.from_iterable(_run(part, option) for part in parts if part):
        try:
            value = _read(part)
            typed = adapter.validate_python(value, strict=True)
            # A whole number stays as it was written, also where the knob takes others.
            values.append(value if isinstance(value, int) else typed)
        except ValidationError:
            try:
                values.append(adapter.validate_python(part, strict=True))
            except ValidationError as error:
                expected = error.errors()[0]["msg"].removeprefix("Input should be ")
                raise InvalidRequestError(Problem(f"{option} {knob}", part, expected)) from None
    return Axis(name, knob, tuple(values))


def cells(request: GenerationRequest, axes: Sequence[Axis]) -> list[Cell]:
    """Every combination, the last axis changing fastest. Where the seed is open, all have the same one, drawn from the
    request and the axes: the same grid is the same clips.

    Raises:
        InvalidRequestError: more than `MAX_CELLS`, or a knob on two axes.
    """
    knobs = [axis.knob for axis in axes]
    for axis in axes:
        if knobs.count(axis.knob) > 1:
            raise InvalidRequestError(Problem(f"--{axis.name}", axis.knob, "a knob that no other axis has"))
    count = 1
    for axis in axes:
        count *= len(axis.values)
    if count > MAX_CELLS:
        raise InvalidRequestError(Problem("axes", f"{count} combinations", f"at most {MAX_CELLS}"))
    if request.seed is None and "seed" not in knobs:
        digest = sha256(repr((request, axes)).encode()).digest()
        request = replace(request, seed=int.from_bytes(digest[:8]) % (MAX_SEED + 1))
    found = []
    for place in itertools.product(*(range(len(axis.values)) for axis in axes)):
        made, names = request, []
        for axis, at in zip(axes, place, strict=True):
            made = _with(made, axis.knob, axis.values[at])
            words = re.sub(r"[^A-Za-z0-9.-]+", "-", str(axis.values[at])).strip("-.")
            # A prompt is not repeated in the name, and values that read the same there are still told apart.
            names.append(f"{axis.knob}-{words}" if 0 < len(words) <= 20 else f"{axis.knob}-{at}")
        name = "_".join(names)
        found.append(Cell(place, name if len(name) <= 90 else "_".join(map(str, ("cell", *place))), made))
    if len({cell.name for cell in found}) < len(found):
        found = [replace(cell, name="_".join(map(str, ("cell", *cell.place)))) for cell in found]
    return found


def labels(grid: str, axes: Sequence[Axis], place: Sequence[int]) -> dict[str, str]:
    """The metadata by which the studio puts the jobs of a grid together again."""
    index = 0
    for axis, at in zip(axes, place, strict=True):
        index = index * len(axis.values) + at
    size = "x".join(str(len(axis.values)) for axis in axes)
    values = {
        f"grid_{axis.name}": f"{axis.knob}={str(axis.values[at])[:400]}" for axis, at in zip(axes, place, strict=True)
    }
    return {"grid": grid, "grid_cell": str(index), "grid_size": size, **values}


def _run(part: str, option: str) -> list[str]:
    match = _RUN.fullmatch(part)
    if match is None:
        return [part]
    start, stop, step = float(match[1]), float(match[2]), float(match[3] or 1)
    steps = (stop - start) / step if step else -1
    if not 0 <= steps <= MAX_CELLS:
        raise InvalidRequestError(Problem(option, part, f"a run upwards of at most {MAX_CELLS} values"))
    return [f"{start + step * at:.6f}".rstrip("0").rstrip(".") for at in range(int(steps + 1e-9) + 1)]


def _read(part: str) -> Any:
    try:
        return json.loads(part)
    except ValueError:
        return part


@cache
def _type_of(knob: str, option: str) -> TypeAdapter[Any]:
    outer, *inner = knob.split(".")
    owner, name = (GenerationRequest, outer) if not inner else (_INNER.get(outer), inner[-1])
    hints = {} if owner is None else get_type_hints(owner)
    depth = {"output": 1, "controls": 2, "adapters": 2}.get(outer, 0)
    if name not in hints or len(inner) != depth or (not inner and outer in _NO_AXIS) or name == "source":
        known = sorted(get_type_hints(GenerationRequest).keys() - _NO_AXIS)
        accepted = f"{', '.join(known)}, output.quality, controls.KIND.weight or adapters.NAME.scale"
        raise InvalidRequestError(Problem(option, knob, accepted))
    return TypeAdapter(hints[name])


def _with(request: GenerationRequest, knob: str, value: Any) -> GenerationRequest:
    outer, *inner = knob.split(".")
    if not inner:
        return replace(request, **{outer: value})
    if outer == "output":
        return replace(request, output=replace(request.output, **{inner[0]: value}))
    which, field = inner
    key = "kind" if outer == "controls" else "name"
    held = getattr(request, outer)
    if not any(getattr(one, key) == which for one in held):
        held = (*held, _INNER[outer](which))
    changed: Any = tuple(replace(one, **{field: value}) if getattr(one, key) == which else one for one in held)
    return replace(request, **{outer: changed})
