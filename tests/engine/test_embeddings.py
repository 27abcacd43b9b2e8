"""Prompts are read once, and what was not read is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from cosmorama.engine.embeddings import EmbeddingCache, Reader
from cosmorama.world.registry import load_world
from tests.world.checkpoints import save_predict


@pytest.mark.parametrize("kind", ["predict1-text2world", "predict2-text2image", "predict2.5"])
def test_a_prompt_over_the_encoders_tokens_is_made_with_a_warning_that_says_how_many_were_used(
    tmp_path: Path, kind: str
) -> None:
    save_predict(kind, tmp_path / "model")
    world = load_world(str(tmp_path / "model"), device="cpu")
    assert world.capabilities.prompt_tokens == 512
    reader = Reader(EmbeddingCache(world.encode_text))
    reader("a red ball")
    assert reader.warnings == ()
    long = "a red ball rolls " * 400
    for _ in range(2):  # the second comes from the cache
        reader = Reader(EmbeddingCache(world.encode_text))
        reader(long)
        (said,) = reader.warnings
        assert "the first 512 were used" in said
        assert int(said.split()[2]) > 512
        assert len(said) < 200
