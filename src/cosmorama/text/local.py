"""A transformers checkpoint in a folder as a chat endpoint of this machine's own, in a process of its own.

The process answers `POST /v1/chat/completions` on the loopback interface, to whoever has a token that only this server
knows, and ends with the process that started it. So everything that asks an endpoint elsewhere asks this one too.
"""

from __future__ import annotations

import base64
import hmac
import io
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pydantic import HttpUrl, SecretStr

from cosmorama.errors import ModelNotFoundError
from cosmorama.settings import Settings

_MAX_BODY_BYTES = 16 << 20
LOCAL_S = 300.0
"""How long a checkpoint on this machine may write, where nothing else is set: it may have to load first."""
_SAMPLED_ABOVE = 0.05
"""Temperatures up to this one mean the likeliest token, so that the same request gives the same text."""


class LocalChat:
    """The process of one checkpoint. Answers wait for it to load.

    Args:
        folder: Of a causal language model, or of one that takes pictures too, with its tokenizer or processor.
        device: As `Settings.device`.

    Raises:
        ModelNotFoundError: the folder has no config.json, or transformers is not installed.
    """

    def __init__(self, folder: Path, device: str) -> None:
        if not (folder / "config.json").is_file():
            raise ModelNotFoundError(f"{folder} is no checkpoint of transformers: missing config.json")
        try:
            import transformers  # noqa: F401
        except ImportError as error:
            raise ModelNotFoundError(
                f"{folder} needs transformers, which `pip install '.[cosmos]'` brings: {error}"
            ) from error
        self.token = secrets.token_urlsafe(32)
        command = [sys.executable, "-m", "cosmorama.text.local", str(folder), device]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(self.token.encode() + b"\n")
        self._process.stdin.flush()
        port = self._process.stdout.readline().strip()
        if not port.isdigit():
            raise ModelNotFoundError(f"the process for {folder} ended with code {self._process.wait()}")
        self.url = f"http://127.0.0.1:{int(port)}/v1"

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def with_local_chats(settings: Settings) -> tuple[Settings, tuple[LocalChat, ...]]:
    """Settings in which checkpoints that write texts have become endpoints, and the processes that these are.

    Raises:
        ModelNotFoundError: one cannot be started.
    """
    chats: dict[Path, LocalChat] = {}
    for name in ("prompt_upsampling", "captioning"):
        folder: Path | None = getattr(settings, f"{name}_checkpoint")
        if folder is None:
            continue
        if folder not in chats:
            chats[folder] = LocalChat(folder, settings.device)
        chosen: dict[str, Any] = {
            f"{name}_checkpoint": None,
            f"{name}_endpoint_url": HttpUrl(chats[folder].url),
            f"{name}_model": folder.name,
            f"{name}_api_key": SecretStr(chats[folder].token),
        }
        if f"{name}_timeout_s" not in settings.model_fields_set:
            chosen[f"{name}_timeout_s"] = LOCAL_S
        settings = settings.model_copy(update=chosen)
    return settings, tuple(chats.values())


class _Model:
    """What answers. Loads on a thread; texts are written one at a time."""

    def __init__(self, folder: Path, device: str) -> None:
        self._lock = threading.Lock()
        self._loaded = threading.Event()
        self.failure: str | None = None
        threading.Thread(target=self._load, args=(folder, device), daemon=True).start()

    def _load(self, folder: Path, device: str) -> None:
        try:
            import torch
            from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor
            from transformers import AutoTokenizer as Tokenizer

            own: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
            config = AutoConfig.from_pretrained(folder, **own)
            self.sees = type(config) in AutoModelForImageTextToText._model_mapping
            reader, kind = (
                (AutoProcessor, AutoModelForImageTextToText) if self.sees else (Tokenizer, AutoModelForCausalLM)
            )
            self._reader = reader.from_pretrained(folder, **own)
            model = kind.from_pretrained(folder, **own, use_safetensors=True, dtype="auto")
            place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
            self._model = model.to(place).eval()
        except Exception as error:  # noqa: BLE001  # whatever fails in the child is told to its parent
            self.failure = f"{folder} cannot be loaded: {type(error).__name__}: {error}"
            print(self.failure, file=sys.stderr, flush=True)
        self._loaded.set()

    def answer(self, messages: Sequence[Mapping[str, Any]], body: Mapping[str, Any]) -> str:
        """The text that goes on from a chat.

        Raises:
            ValueError: it holds a picture, and the model sees none.
            RuntimeError: the model could not be loaded.
        """
        import torch

        self._loaded.wait()
        if self.failure is not None:
            raise RuntimeError(self.failure)
        turns = [{"role": turn["role"], "content": self._parts(turn["content"])} for turn in messages]
        temperature = float(body.get("temperature", 0))
        sampled = temperature > _SAMPLED_ABOVE
        chosen = {name: body[name] for name in ("top_p", "top_k") if body.get(name) is not None}
        how = {"do_sample": True, "temperature": temperature, **chosen} if sampled else {"do_sample": False}
        with self._lock, torch.inference_mode():
            torch.manual_seed(0)
            inputs = self._reader.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            ).to(self._model.device)
            made = self._model.generate(**inputs, max_new_tokens=int(body.get("max_tokens", 512)), **how)
        text: str = self._reader.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return text

    def _parts(self, content: Any) -> Any:
        """A turn's content as templates take it: a text, or for models that see, parts with pictures decoded."""
        from PIL import Image

        if not self.sees:
            if not isinstance(content, str):
                raise ValueError("this model sees no pictures")
            return content
        if isinstance(content, str):
            return [{"type": "text", "text": content}]
        parts = []
        for part in content:
            if part["type"] == "image_url":
                data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
                parts.append({"type": "image", "image": Image.open(io.BytesIO(data)).convert("RGB")})
            else:
                parts.append(part)
        return parts


def _handler(model: _Model, token: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            given = self.headers.get("Authorization", "").removeprefix("Bearer ")
            length = int(self.headers.get("Content-Length") or 0)
            if not hmac.compare_digest(given.encode(), token.encode()):
                return self._say(401, {"error": "no key"})
            if self.path != "/v1/chat/completions" or not 0 < length <= _MAX_BODY_BYTES:
                return self._say(404, {"error": "POST /v1/chat/completions"})
            try:
                body = json.loads(self.rfile.read(length))
                text = model.answer(body["messages"], body)
            except (ValueError, KeyError, TypeError) as error:
                return self._say(400, {"error": str(error)})
            except Exception as error:  # noqa: BLE001  # whatever fails in the child is told to its parent
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
                return self._say(500, {"error": f"{type(error).__name__}: {error}"})
            return self._say(200, {"choices": [{"message": {"role": "assistant", "content": text}}]})

        def _say(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: prompts and keys stay out of logs."""

    return Handler


def main() -> None:
    """Serve the checkpoint of the first argument on the device of the second, until standard input ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group; the server decides
        signal.signal(number, signal.SIG_IGN)
    folder, device = sys.argv[1:3]
    token = sys.stdin.readline().strip()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(_Model(Path(folder), device), token))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()
    os._exit(0)  # a text may be half written


if __name__ == "__main__":
    main()
