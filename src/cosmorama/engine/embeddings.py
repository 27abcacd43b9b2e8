"""Prompt embeddings, kept across requests: the same negative prompt is read once, not once per request."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from cosmorama.world.base import TextEmbedding


class EmbeddingCache:
    """The most recently used embeddings, up to `max_bytes`. A cached embedding is the very tensor computed before."""

    def __init__(self, encode: Callable[[str], TextEmbedding], max_bytes: int = 256 * 2**20) -> None:
        self._encode = encode
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, TextEmbedding] = OrderedDict()
        self._bytes = 0

    def __call__(self, prompt: str) -> TextEmbedding:
        """The embedding of `prompt`, computed at most once while it is remembered."""
        if prompt in self._entries:
            self._entries.move_to_end(prompt)
            return self._entries[prompt]
        embedding = self._encode(prompt)
        self._entries[prompt] = embedding
        self._bytes += embedding.states.nbytes
        while self._bytes > self._max_bytes and len(self._entries) > 1:
            _, dropped = self._entries.popitem(last=False)
            self._bytes -= dropped.states.nbytes
        return embedding
