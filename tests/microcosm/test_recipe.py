"""docs/microcosm.md lists what `make microcosm` runs."""

from __future__ import annotations

import re
from pathlib import Path

from microcosm.__main__ import RECIPE

PAGE = Path(__file__).parents[2] / "docs" / "microcosm.md"


def test_the_recipe_is_the_one_in_the_docs() -> None:
    _, _, section = PAGE.read_text().partition("## Making it again")
    listed = re.findall(r"^python -m microcosm\.(.+?)(?:  +#.*)?$", section.partition("\n```\n")[0], re.MULTILINE)
    assert tuple(" ".join(line.split()) for line in listed) == RECIPE
