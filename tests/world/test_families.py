"""Who makes what is asked of the families themselves."""

from __future__ import annotations

import re
import runpy
from dataclasses import replace
from pathlib import Path

import pytest

from cosmorama.errors import InvalidRequestError
from cosmorama.request import MODES, Capabilities, Control, GenerationRequest
from cosmorama.resolve import resolve
from cosmorama.world import registry
from cosmorama.world.cosmos.families import FAMILIES
from cosmorama.world.cosmos3.sampling import Cosmos3Sampling
from cosmorama.world.families import fullest, makers, taken_by
from cosmorama.world.generic.pipeline import GenericSampling
from tests.world.test_rooms import graph


def test_every_family_that_is_named_has_it() -> None:
    own = {family.family: family for family in fullest()}
    for what, families in makers():
        assert what not in MODES
        assert families
        for family in families:
            assert what in taken_by(own[family])
    named = dict(makers())
    assert {"transfer", "policy", "forward_dynamics", "inverse_dynamics", "edge", "1"} <= named.keys()
    for family in fullest():
        for what in taken_by(family):
            assert what in MODES or family.family in named[what]


def test_a_refusal_names_the_families_that_take_it_and_no_other() -> None:
    small = Capabilities(model="small", elsewhere=makers())
    asked = GenerationRequest(prompt="a", video=b"x", controls=(Control("edge"),))
    families = " or ".join(dict(makers())["transfer"])
    with pytest.raises(InvalidRequestError, match=f"for small; models of the family {families} take it"):
        resolve(asked, small)
    nobody = replace(small, elsewhere=())
    with pytest.raises(InvalidRequestError) as caught:
        resolve(asked, nobody)
    assert "family" not in str(caught.value)


def test_the_table_in_the_docs_is_what_the_families_say() -> None:
    assert Path("docs/models.md").read_text() == runpy.run_path("tools/families", run_name="tools")["page"]()


def test_the_registry_knows_every_pipeline_of_the_table() -> None:
    assert {*FAMILIES} == registry._LOADERS["cosmos"]


def test_a_family_is_read_in_the_five_files_that_the_docs_name() -> None:
    """All modules of its room that its samplings lead to, and those that say what it takes and load it."""
    rows = re.findall(r"\| `(\w+)/`: (.+) \|", Path("docs/architecture.md").read_text())
    told = [{f"{room}.{file}" for file in re.findall(r"`(\w+)`", files)} for room, files in rows]
    needed = graph()
    for kind in (*(family.sampling for family in FAMILIES.values()), Cosmos3Sampling, GenericSampling):
        first = kind.__module__.removeprefix("cosmorama.world.")
        room = first.partition(".")[0]
        found = {first} | {f"{room}.{name}" for name in ("capabilities", "load") if f"{room}.{name}" in needed}
        while more := {other for name in found for other in needed[name] if other.startswith(f"{room}.")} - found:
            found |= more
        found |= {f"{room}.families"} & needed.keys()
        assert found in told, f"{kind.__name__}: {sorted(found)}"
        assert len(found) <= 5
    rooms = ("cosmos.", "cosmos3.", "generic.")
    assert set().union(*told) == {name for name in needed if name.startswith(rooms)}, "none is left out"
