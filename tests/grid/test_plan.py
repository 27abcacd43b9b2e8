"""Axes as they are written, and the requests that come of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cosmorama.errors import InvalidRequestError
from cosmorama.grid.plan import MAX_CELLS, Axis, cells, labels, parse_axis
from cosmorama.request import Adapter, Control, GenerationRequest

REQUEST = GenerationRequest(prompt="a red ball")


@pytest.mark.parametrize(
    ("text", "knob", "values"),
    [
        ("guidance_scale=1,4, 7.5", "guidance_scale", (1, 4, 7.5)),
        ("seed=1..4", "seed", (1, 2, 3, 4)),
        ("guidance_rescale=0..1/0.25", "guidance_rescale", (0, 0.25, 0.5, 0.75, 1)),
        ("steps=10", "steps", (10,)),
        ("solver=euler,unipc", "solver", ("euler", "unipc")),
        ("prompt=a ball, red|a cube", "prompt", ("a ball, red", "a cube")),
        ("prompt=7,8", "prompt", ("7", "8")),
        ("prompt_upsampling=true,false", "prompt_upsampling", (True, False)),
        ("output.quality=1,9", "output.quality", (1, 9)),
        ("controls.edge.weight=0.2,1", "controls.edge.weight", (0.2, 1)),
        ("adapters.night.scale=0,1.5", "adapters.night.scale", (0, 1.5)),
    ],
)
def test_values_have_the_type_of_their_knob(text: str, knob: str, values: tuple[object, ...]) -> None:
    assert parse_axis("x", text) == Axis("x", knob, values)


@pytest.mark.parametrize(
    "text",
    [
        "guidance_scale",
        "guidance_scale=",
        "=1,2",
        "stepps=1",
        "steps=1.5",
        "steps=many",
        "seed=5..1",
        "seed=0..1000000",
        "solver=magic",
        "image=a.png",
        "output=mp4",
        "output.colour=1",
        "controls.weight=1",
        "controls.edge.source=a.mp4",
        "left_open=1",
    ],
)
def test_what_is_no_axis_is_told_under_the_option(text: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_axis("y", text)
    assert caught.value.problems[0].field.startswith("--y")


def test_every_combination_with_one_seed_for_all() -> None:
    axes = [parse_axis("y", "guidance_scale=1,7"), parse_axis("x", "steps=2,3,4")]
    made = cells(REQUEST, axes)
    assert [(cell.request.guidance_scale, cell.request.steps) for cell in made] == [
        (guidance, steps) for guidance in (1, 7) for steps in (2, 3, 4)
    ]
    [seed] = {cell.request.seed for cell in made}
    assert seed is not None
    assert [cell.name for cell in made][:2] == ["guidance_scale-1_steps-2", "guidance_scale-1_steps-3"]
    assert made == cells(REQUEST, axes)
    assert cells(replace(REQUEST, seed=5), axes)[0].request.seed == 5
    assert [cell.request.seed for cell in cells(REQUEST, [parse_axis("x", "seed=8,9")])] == [8, 9]


def test_inner_knobs_are_added_where_they_are_missing() -> None:
    given = replace(REQUEST, controls=(Control("edge"), Control("vis", 0.5)))
    [made] = cells(given, [parse_axis("x", "controls.edge.weight=0.25")])
    assert made.request.controls == (Control("edge", 0.25), Control("vis", 0.5))
    [made] = cells(REQUEST, [parse_axis("x", "adapters.night.scale=0.5")])
    assert made.request.adapters == (Adapter("night", 0.5),)


def test_names_are_unique_and_fit_for_files() -> None:
    long = "a very long prompt that no file should be called by"
    made = cells(REQUEST, [parse_axis("y", f"prompt={long}|{long}!"), parse_axis("x", "output.quality=1,2")])
    names = [cell.name for cell in made]
    assert len(set(names)) == 4
    assert all(name.replace("-", "").replace("_", "").replace(".", "").isalnum() and len(name) <= 90 for name in names)
    same = cells(REQUEST, [parse_axis("x", "prompt=a b|a-b|a/b")])
    assert len({cell.name for cell in same}) == 3


def test_too_many_and_the_same_knob_twice_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match=f"at most {MAX_CELLS}"):
        cells(REQUEST, [parse_axis("x", "seed=1..300"), parse_axis("y", "steps=1,2")])
    with pytest.raises(InvalidRequestError, match="no other axis"):
        cells(REQUEST, [parse_axis("x", "seed=1"), parse_axis("y", "seed=2")])


def test_labels_place_a_job_in_its_grid() -> None:
    axes = [parse_axis("x", "guidance_scale=1,4,7"), parse_axis("y", "seed=1,2")]
    assert labels("grid-a", axes, (2, 1)) == {
        "grid": "grid-a",
        "grid_cell": "5",
        "grid_size": "3x2",
        "grid_x": "guidance_scale=7",
        "grid_y": "seed=2",
    }
