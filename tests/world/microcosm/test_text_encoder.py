"""Microcosm's text encoder: known words count, all others do not."""

import torch

from cosmorama.request import DEFAULT_NEGATIVE_PROMPT
from cosmorama.world.microcosm.text_encoder import MAX_TOKENS, TextEncoder

VOCABULARY = ["a", "ball", "floor", "green", "on", "red", "rolls"]


def _encoder() -> TextEncoder:
    torch.manual_seed(0)
    encoder: TextEncoder = TextEncoder(vocabulary=VOCABULARY, width=16, layers=2, heads=2)
    encoder.eval()
    return encoder


def test_unknown_words_case_and_punctuation_change_nothing() -> None:
    encoder = _encoder()
    plain, _ = encoder(["a red ball rolls on a green floor"])
    noisy, _ = encoder(["A RED, cinematic ball rolls (hyperrealistic) on a green floor!!!"])
    torch.testing.assert_close(plain, noisy)


def test_an_unknown_prompt_is_the_empty_prompt() -> None:
    encoder = _encoder()
    torch.testing.assert_close(encoder(["Überraschung 42"])[0], encoder([""])[0])


def test_padding_changes_nothing() -> None:
    encoder = _encoder()
    alone, _ = encoder(["red ball"])
    both, mask = encoder(["red ball", "a red ball rolls on a green floor"])
    assert mask.sum(1).tolist() == [3, 9]
    torch.testing.assert_close(both[:1, :3], alone, rtol=1e-4, atol=1e-5)


def test_long_prompts_are_cut() -> None:
    states, mask = _encoder()(["red ball " * 125])
    assert states.shape == (1, MAX_TOKENS, 16)
    assert bool(mask.all())


def test_the_default_negative_prompt_is_read() -> None:
    states, _ = _encoder()([DEFAULT_NEGATIVE_PROMPT])
    assert bool(states.isfinite().all())
