"""The settings page lists every setting, by its name, upstream name and default."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import AliasChoices, ValidationError

from cosmorama.settings import Settings
from cosmorama.upstream import WITHOUT_EFFECT

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


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_every_upstream_name_without_effect_is_documented(name: str) -> None:
    assert PAGE.count(f"| `{name}` |") == 1


def test_tiles_are_of_a_side_that_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSMORAMA_VAE_TILING", "256")
    assert Settings().vae_tiling == 256
    monkeypatch.setenv("COSMORAMA_VAE_TILING", "100")
    with pytest.raises(ValidationError, match="vae_tiling is 100; it must be one of 0, 128, 192, 256, 384, 512, 768"):
        Settings()
