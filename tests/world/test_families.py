"""Who makes what is asked of the families themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cosmorama.errors import InvalidRequestError
from cosmorama.request import MODES, Capabilities, Control, GenerationRequest
from cosmorama.resolve import resolve
from cosmorama.world import registry
from cosmorama.world.cosmos.families import FAMILIES
from cosmorama.world.families import fullest, makers, table


def test_every_family_that_is_named_has_it() -> None:
    own = {family.family: family for family in fullest()}
    for what, families in makers():
        assert what not in MODES
        assert families
        for family in families:
            assert what in (*own[family].modes, *own[family].controls)
    named = dict(makers())
    assert {"transfer", "policy", "forward_dynamics", "inverse_dynamics", "edge"} <= named.keys()
    for family in fullest():
        for what in (*family.modes, *family.controls):
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
    begin, end = (
        "<!-- table of cosmorama.world.families: begin -->\n",
        "<!-- table of cosmorama.world.families: end -->",
    )
    written = Path("docs/models.md").read_text().partition(begin)[2].partition(end)[0]
    assert written == table(), "python -m cosmorama.world.families prints the table"


def test_the_registry_knows_every_pipeline_of_the_table() -> None:
    assert {*FAMILIES} == registry._LOADERS["cosmos"]
