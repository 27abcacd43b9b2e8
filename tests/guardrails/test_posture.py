"""Which guardrails ran, on what, and what each decided."""

from __future__ import annotations

from pathlib import Path

import pytest

from cosmorama.engine.engine import Engine
from cosmorama.engine.outcome import Decision
from cosmorama.errors import PromptRefusedError
from cosmorama.guardrails.checks import Guardrails
from cosmorama.guardrails.words import BlockedWords
from cosmorama.request import DEFAULT_NEGATIVE_PROMPT, GenerationRequest
from cosmorama.world.microcosm.sampling import CosmosFlowWorld

REQUEST = GenerationRequest(
    prompt="a red ball", frames=1, steps=1, width=960, height=704, seed=1, prompt_upsampling=False, guidance_scale=1.0
)


@pytest.fixture
def words(tmp_path: Path) -> BlockedWords:
    path = tmp_path / "words.txt"
    path.write_text("ugly scenes\nhit and run\n")
    return BlockedWords(path)


def with_checks(world: CosmosFlowWorld, guardrails: Guardrails, folder: Path, **changes: object) -> object:
    from dataclasses import replace

    engine = Engine(world, guardrails=guardrails)
    try:
        return engine.make(replace(REQUEST, **changes), folder / "clip.mp4")
    finally:
        engine.close()


def test_every_check_is_told(tiny_world: CosmosFlowWorld, words: BlockedWords, tmp_path: Path) -> None:
    def shown(frames: object) -> object:
        return frames

    guardrails = Guardrails((words,), shown)
    outcome = with_checks(tiny_world, guardrails, tmp_path, negative_prompt="blurry")
    assert words.about.startswith("blocked words, 2 phrases (sha256 ")
    assert outcome.checks == (
        Decision(words.about, "prompt", "passed"),
        Decision(words.about, "negative prompt", "passed"),
        Decision("shown", "frames", "passed"),
    )


def test_no_guardrail_is_told_as_none(tiny_world: CosmosFlowWorld, tmp_path: Path) -> None:
    assert with_checks(tiny_world, Guardrails(), tmp_path).checks == ()


def test_negative_prompts_are_checked_and_the_vendors_own_passes(
    tiny_world: CosmosFlowWorld, words: BlockedWords, tmp_path: Path
) -> None:
    assert "ugly scenes" in DEFAULT_NEGATIVE_PROMPT
    for own in (None, DEFAULT_NEGATIVE_PROMPT):
        outcome = with_checks(tiny_world, Guardrails((words,)), tmp_path, negative_prompt=own)
        assert [decision.on for decision in outcome.checks] == ["prompt"]
    with pytest.raises(PromptRefusedError, match="the negative prompt contains 'hit and run'"):
        with_checks(tiny_world, Guardrails((words,)), tmp_path, negative_prompt="a hit-and-run")


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a red ball", None),
        (
            "satin mannequin",
            "nothing of the prompt was understood: this model knows a few words only, and none of these",
        ),
        ("the red satin of a mannequin", "1 of the 6 words of the prompt were understood: this model knows a few only"),
        ("red " * 300, "the first 95 of the 300 words of the prompt that this model knows were used"),
    ],
)
def test_what_of_a_prompt_was_not_understood_is_said(
    tiny_world: CosmosFlowWorld, tmp_path: Path, prompt: str, said: str | None
) -> None:
    outcome = with_checks(tiny_world, Guardrails(), tmp_path, prompt=prompt)
    assert outcome.warnings == (() if said is None else (said,))
