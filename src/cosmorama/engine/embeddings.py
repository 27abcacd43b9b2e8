"""Prompt embeddings, kept across requests: the same negative prompt is read once, not once per request."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from cosmorama.world.base import TextEmbedding

_SHOWN = 40


class EmbeddingCache:
    """The most recently used embeddings, up to `max_bytes`. A cached embedding is the very tensor computed before."""

    def __init__(self, encode: Callable[[str], TextEmbedding], max_bytes: int = 256 * 2**20) -> None:
        self._encode = encode
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, TextEmbedding] = OrderedDict()
        self._bytes = 0

    def __contains__(self, prompt: str) -> bool:
        return prompt in self._entries

    def __call__(self, prompt: str) -> TextEmbedding:
        """The embedding of `prompt`, computed at most once while it is remembered."""
        if prompt in self._entries:
            self._entries.move_to_end(prompt)
            return self._entries[prompt]
        embedding = self._encode(prompt)
        self._entries[prompt] = embedding
        self._bytes += embedding.nbytes
        while self._bytes > self._max_bytes and len(self._entries) > 1:
            _, dropped = self._entries.popitem(last=False)
            self._bytes -= dropped.nbytes
        return embedding


class Reader:
    """Reads the prompts of one request through the cache, and counts.

    Attributes:
        warnings: Of texts that were not read to their end.
        counts: Lookups that found the embedding, lookups that did not, and text tokens in what was read.
        notes: What was not read of a prompt, where something was not.
    """

    def __init__(self, cache: EmbeddingCache) -> None:
        self._cache = cache
        self.warnings: tuple[str, ...] = ()
        self.counts = {"text_cache_hits": 0, "text_cache_misses": 0, "prompt_tokens": 0}
        self.notes: dict[str, str] = {}

    def told(self, prompt: str) -> tuple[str, ...]:
        """What whoever sent the prompt is to be told of how it was read."""
        return (*self.warnings, *([self.notes[prompt]] if prompt in self.notes else []))

    def __call__(self, prompt: str) -> TextEmbedding:
        """The embedding of `prompt`."""
        self.counts["text_cache_hits" if prompt in self._cache else "text_cache_misses"] += 1
        embedding = self._cache(prompt)
        self.counts["prompt_tokens"] += embedding.states.shape[1]
        if embedding.note is not None:
            self.notes[prompt] = embedding.note
        if embedding.limit is not None and embedding.tokens > embedding.limit:
            beginning = prompt if len(prompt) <= _SHOWN else f"{prompt[:_SHOWN]}..."
            said = f"of the {embedding.tokens} tokens of {beginning!r} the first {embedding.limit} were used"
            self.warnings += (f"{said}: the model's text encoder reads no more",)
        return embedding
