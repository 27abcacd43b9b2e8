"""The settings page lists every setting, by its name, upstream name and default."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import AliasChoices

from cosmorama.settings import Settings

PAGE = (Path(__file__).parents[1] / "docs" / "settings.md").read_text()


@pytest.mark.parametrize("name", [name for name, field in Settings.model_fields.items() if not field.exclude])
def test_every_setting_is_documented(name: str) -> None:
    field = Settings.model_fields[name]
    rows = [line for line in PAGE.splitlines() if line.startswith(f"| `COSMORAMA_{name.upper()}` |")]
    assert len(rows) == 1
    alias = field.validation_alias
    upstream = (
        [str(choice) for choice in alias.choices if "NIM_" in str(choice)] if isinstance(alias, AliasChoices) else []
    )
    assert all(f"`{choice}`" in rows[0] for choice in upstream)
    if isinstance(field.default, (bool, int, str)):
        assert f"| {str(field.default).lower()} |" in rows[0]
