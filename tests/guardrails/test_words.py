"""Blocked words: whole words in any dress, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cosmorama.errors import GuardrailUnavailableError
from cosmorama.guardrails.words import BlockedWords


@pytest.fixture(scope="module")
def blocked(tmp_path_factory: pytest.TempPathFactory) -> BlockedWords:
    path = tmp_path_factory.mktemp("words") / "blocked.txt"
    path.write_text("\ufeff# what we do not make\ngun\n\n  Hit and Run \ncafé\n", "utf-8")
    return BlockedWords(path)


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("A robot holds a GUN.", "gun"),
        ("gun", "gun"),
        ("a hit-and-run\nat night", "Hit and Run"),
        ("two people in a CAFE\N{COMBINING ACUTE ACCENT}", "café"),
        ("a \N{FULLWIDTH LATIN SMALL LETTER G}un", "gun"),
        ("a g\N{ZERO WIDTH SPACE}u\N{SOFT HYPHEN}n", "gun"),
        ("_gun_ or gun_", "gun"),
        ("hit_and_run", "Hit and Run"),
        ("hit\N{ZERO WIDTH SPACE}and\N{ZERO WIDTH SPACE}run", "Hit and Run"),
        ("a g\N{VARIATION SELECTOR-16}u\N{COMBINING LOW LINE}n\N{HANGUL FILLER}", "gun"),
    ],
)
def test_a_blocked_phrase_is_named(blocked: BlockedWords, prompt: str, found: str) -> None:
    answer = blocked(prompt)
    assert answer is not None
    assert repr(found) in answer


@pytest.mark.parametrize("prompt", ["", "it has begun", "guns", "a hit and a run", "run and hit", "# what we do not"])
def test_other_words_pass(blocked: BlockedWords, prompt: str) -> None:
    assert blocked(prompt) is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=st.text(), after=st.text(), mark=st.sampled_from(" ,.!?-\n\t"))
def test_a_blocked_word_is_found_in_any_text(blocked: BlockedWords, before: str, after: str, mark: str) -> None:
    assert blocked(f"{before}{mark}Gun{mark}{after}") is not None


@pytest.mark.parametrize("content", [None, b"", b"# nothing\n", b"...\n", b"\xff\xfe"])
def test_a_file_without_words_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "words.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(GuardrailUnavailableError, match=r"blocked_words: .*words\.txt"):
        BlockedWords(path)
