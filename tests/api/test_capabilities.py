"""The capabilities that the server shows are those it enforces."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import TypeAdapter

from cosmorama.api.app import create_app
from cosmorama.api.info import KNOB_DESCRIPTIONS, Knob, knobs
from cosmorama.errors import InvalidRequestError
from cosmorama.request import Capabilities, Defaults, GenerationRequest, Output, Range
from cosmorama.resolve import resolve
from cosmorama.settings import Settings
from tests.api.conftest import Server

MODEL = Capabilities(
    model="example",
    flow_shift=Range(1, 12),
    size_multiple=16,
    controls=("edge", "depth"),
    adapters=("night",),
    vae_tiles=(128, 256),
    defaults=Defaults(vae_tiling=256),
)
PROMPT = GenerationRequest(prompt="a red ball")


def accepts(field: str, value: Any) -> bool:
    """Whether `resolve` takes a value that was sent under a knob's name."""
    owner, _, inner = field.partition(".")
    changed: dict[str, Any] = {owner: replace(Output(), **{inner: value}) if owner == "output" else value}
    if field == "guidance_interval":
        changed = {field: (min(value, 0.5), max(value, 0.5))}
    try:
        resolve(replace(PROMPT, **changed), MODEL)
    except InvalidRequestError as error:
        refused = {problem.field for problem in error.problems}
    else:
        return True
    assert refused == {field}
    return False


NUMBERS = [name for name, knob in knobs(MODEL).items() if knob.minimum is not None and "controls" not in name]


@pytest.mark.parametrize("name", NUMBERS)
def test_ranges_are_the_enforced_ones(name: str) -> None:
    knob = knobs(MODEL)[name]
    assert knob.minimum is not None
    assert knob.maximum is not None
    number = int if knob.type == "integer" else float
    assert accepts(name, number(knob.minimum))
    assert accepts(name, number(knob.maximum))
    assert not accepts(name, number(knob.minimum) - 1)
    assert not accepts(name, number(knob.maximum) + 1)


def test_defaults_are_accepted() -> None:
    defaults = {
        name: knob.default for name, knob in knobs(MODEL).items() if "." not in name and knob.default is not None
    }
    resolve(replace(PROMPT, **defaults), MODEL)


def test_a_knob_that_the_model_lacks_is_left_out() -> None:
    own = {"flow_shift", "controls.kind", "adapters.name", "vae_tiling"}
    assert own <= knobs(MODEL).keys()
    assert not own & knobs(Capabilities(model="plain")).keys()


def test_tiles_are_the_enforced_ones_and_their_default_the_servers() -> None:
    knob = knobs(MODEL)["vae_tiling"]
    assert knob.choices == (0, 128, 256)
    assert knob.default == resolve(PROMPT, MODEL).vae_tiling == 256
    assert all(accepts("vae_tiling", tile) for tile in knob.choices)
    assert not accepts("vae_tiling", 192)


def test_the_answer_is_the_models_own_and_is_typed(server: Server) -> None:
    answer = server.client.get("/v1/capabilities")
    body = answer.json()
    assert body["knobs"]["steps"] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 50,
        "choices": None,
        "multiple_of": None,
        "default": body["defaults"]["steps"],
        "description": KNOB_DESCRIPTIONS["steps"],
    }
    own = TypeAdapter(Capabilities).validate_python({name: value for name, value in body.items() if name != "knobs"})
    assert body["knobs"] == TypeAdapter(dict[str, Knob]).dump_python(knobs(own), mode="json")


def test_the_openapi_document_has_its_schema() -> None:
    document = create_app(Settings()).openapi()
    answer = document["paths"]["/v1/capabilities"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    schema = document["components"]["schemas"][answer["$ref"].rpartition("/")[2]]
    assert {"sizes", "frames", "fps", "guidance_scale", "steps", "solvers", "modes", "knobs"} <= schema[
        "properties"
    ].keys()
