"""One call to an OpenAI-compatible chat endpoint, which upsampling and captioning both use, and its answer cut."""

from __future__ import annotations

import base64
import io
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cosmorama.errors import CosmoramaError

MAX_RESPONSE_BYTES = 1 << 20
"""Far above any answer of a few hundred words; what is larger is not an answer."""

_MAX_SIDE_PX = 768
_THINKING = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
_SENTENCE_END = re.compile(r"[.!?][\"'”’)]*(?=\s|$)")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


class ChatError(CosmoramaError):
    """A chat endpoint that could not be reached or did not answer with a text (HTTP 502). Never holds the API key."""

    status = 502
    kind = "chat_endpoint_error"
    answered = 0
    """The endpoint's own HTTP status, where it is why."""


@dataclass(frozen=True, slots=True)
class ChatEndpoint:
    """An OpenAI-compatible server.

    Attributes:
        url: Its base, such as `http://localhost:11434/v1`; `/chat/completions` is added where it is not there.
        model: The model's name there.
        api_key: Sent as a bearer token, never shown.
        timeout_s: For the whole call, not for each read.
        max_tokens: The longest answer asked for.
        options: Other fields of the body, such as `temperature`; they win, and those that are None are left out.
    """

    url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    timeout_s: float = 30
    max_tokens: int = 512
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            url = httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise ValueError(f"{self.url!r} is not a URL") from error
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError(f"{self.url!r} is not an http(s) URL")
        if url.userinfo:
            # A URL is shown in logs and settings, a key must not be.
            raise ValueError("a chat endpoint's URL may not hold a password; give it as api_key")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise ValueError("the api_key holds characters that no HTTP header can carry")

    @property
    def host(self) -> str:
        """The server's name, for messages."""
        return httpx.URL(self.url).host


def jpeg_data_url(frame: NDArray[np.uint8]) -> str:
    """A picture, uint8 `[H, W, 3]`, as a data URL of a JPEG with sides of at most 768 pixels."""
    image = Image.fromarray(np.ascontiguousarray(frame))
    image.thumbnail((_MAX_SIDE_PX, _MAX_SIDE_PX))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def chat(endpoint: ChatEndpoint, instruction: str, text: str, *, images: Sequence[str] = ()) -> str:
    """Ask `endpoint` to follow `instruction` on a text, and on images given as data URLs.

    Raises:
        ChatError: on a timeout, a refused connection, any status but 200, or an answer without text.
    """
    parts = [{"type": "text", "text": text}, *({"type": "image_url", "image_url": {"url": url}} for url in images)]
    body = {
        "model": endpoint.model,
        "messages": [
            *([{"role": "system", "content": instruction}] if instruction else []),
            {"role": "user", "content": parts if images else text},
        ],
        "max_tokens": endpoint.max_tokens,
        "temperature": 0.01,
        **endpoint.options,
    }
    body = {name: value for name, value in body.items() if value is not None}
    return _text_of(_post(endpoint, body), endpoint.host)


def _post(endpoint: ChatEndpoint, body: dict[str, Any]) -> bytes:
    base = httpx.URL(endpoint.url)
    path = base.path.rstrip("/")
    url = base.copy_with(path=path if path.endswith("/chat/completions") else path + "/chat/completions")
    # An identity encoding keeps the size limit a limit: nothing small can unfold into something large.
    headers = {"Accept-Encoding": "identity"}
    if endpoint.api_key:
        headers["Authorization"] = f"Bearer {endpoint.api_key}"
    deadline = time.monotonic() + endpoint.timeout_s
    received = bytearray()
    try:
        # Proxies and .netrc of the environment stay out, and a redirect must not carry the key elsewhere.
        with (
            httpx.Client(trust_env=False, follow_redirects=False, timeout=endpoint.timeout_s) as client,
            client.stream("POST", url, json=body, headers=headers) as response,
        ):
            if response.status_code != 200:
                error = ChatError(f"{endpoint.host} answered with HTTP {response.status_code}")
                error.answered = response.status_code
                raise error
            for chunk in response.iter_raw():
                received += chunk
                if len(received) > MAX_RESPONSE_BYTES:
                    raise ChatError(f"{endpoint.host} answered with more than {MAX_RESPONSE_BYTES} bytes")
                if time.monotonic() > deadline:
                    raise ChatError(f"{endpoint.host} did not answer within {endpoint.timeout_s:g} s")
    except httpx.TimeoutException:
        raise ChatError(f"{endpoint.host} did not answer within {endpoint.timeout_s:g} s") from None
    except httpx.HTTPError as error:
        # Only the kind: the message of a protocol error may quote the headers.
        raise ChatError(f"{endpoint.host} could not be asked ({type(error).__name__})") from None
    return bytes(received)


def _text_of(answer: bytes, host: str) -> str:
    try:
        content = json.loads(answer)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        raise ChatError(f"{host} answered with something that is not a chat completion") from None
    if not isinstance(content, str):
        raise ChatError(f"{host} answered without a text")
    # Reasoning models of some servers leave their thoughts in the text.
    text = _CONTROL.sub("", _THINKING.sub("", content)).strip()
    if not text:
        raise ChatError(f"{host} answered with an empty text")
    return text


def within_words(text: str, limit: int) -> str:
    """The text on one line, cut at the last sentence end that leaves at most `limit` words (else at the word)."""
    words = text.split()
    kept = " ".join(words[:limit])
    if len(words) <= limit:
        return kept
    ends = [match.end() for match in _SENTENCE_END.finditer(kept)]
    return kept[: ends[-1]] if ends else kept
