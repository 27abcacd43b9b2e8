"""Words and phrases that an operator does not want in prompts."""

from __future__ import annotations

import re
import unicodedata
from hashlib import sha256
from pathlib import Path

from cosmorama.errors import GuardrailUnavailableError

_WORD = re.compile(r"[^\W_]+")
_UNSEEN = ("Cf", "Mn", "Me")
"""Categories of what has no width of its own: joiners, selectors, and accents that are no part of a letter."""


class BlockedWords:
    """Looks for whole words, whatever their case, accents' encoding and punctuation: "gun" is not in "begun".

    Args:
        path: UTF-8 text, one word or phrase per line; empty lines and those that begin with # are skipped.

    Raises:
        GuardrailUnavailableError: the file cannot be read, or holds none.
    """

    def __init__(self, path: Path) -> None:
        try:
            lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise GuardrailUnavailableError(f"blocked_words: {path} cannot be read: {error}") from error
        phrases = {_spaced(line): line for line in lines if not line.startswith("#")}
        self._phrases = {words: line for words, line in phrases.items() if words.strip()}
        if not self._phrases:
            raise GuardrailUnavailableError(f"blocked_words: {path} has no words; expected a phrase per line")
        digest = sha256("\n".join(sorted(self._phrases)).encode()).hexdigest()[:12]
        self.about = f"blocked words, {len(self._phrases)} phrases (sha256 {digest})"

    def __call__(self, prompt: str) -> str | None:
        """Which phrase a prompt contains, if any; see `PromptCheck`."""
        # What is not seen may stand within a word or between two.
        words = _spaced(prompt) + _spaced(prompt, unseen=" ")
        found = next((line for phrase, line in self._phrases.items() if phrase in words), None)
        return None if found is None else f"contains {found!r}, which this server does not accept; leave it out"


def _spaced(text: str, unseen: str = "") -> str:
    """The words of a text in one form, a space before and after each."""
    plain = unicodedata.normalize("NFKC", text).replace("\N{HANGUL JUNGSEONG FILLER}", unseen)
    seen = "".join(unseen if unicodedata.category(letter) in _UNSEEN else letter for letter in plain)
    return f" {' '.join(_WORD.findall(seen.casefold()))} "
