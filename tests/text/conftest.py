import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class ChatServer:
    """The remote party: an OpenAI-compatible chat endpoint that answers, or fails, as told."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.status, self.answer, self.how = 200, b"", ""
        self.stopping = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                outer.paths.append(self.path)
                outer.headers.append(dict(self.headers))
                outer.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                if outer.how == "hang up":
                    return
                self.send_response(outer.status)
                if outer.how == "redirect":
                    self.send_header("Location", f"{outer.url}/elsewhere")
                if outer.how != "huge":
                    self.send_header("Content-Length", str(len(outer.answer)))
                self.end_headers()
                with contextlib.suppress(OSError):  # a client that has had enough
                    self._send()

            def _send(self):
                if outer.how == "slow":  # each byte comes in time, the whole does not
                    for byte in outer.answer:
                        if outer.stopping.wait(0.1):
                            return
                        self.wfile.write(bytes([byte]))
                elif outer.how == "huge":
                    while not outer.stopping.is_set():
                        self.wfile.write(b" " * 65536)
                else:
                    self.wfile.write(outer.answer)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def says(self, content) -> None:
        self.answer = json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()

    def fails(self, how: str) -> None:
        self.says({"empty": " \n", "null": None}.get(how, "A text that must not be used."))
        self.how = how
        self.status = {"status": 500, "redirect": 307}.get(how, 200)
        self.answer = {"not json": b"<html>", "no text": b'{"choices": []}'}.get(how, self.answer)

    def stop(self) -> None:
        self.stopping.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def chat_server():
    server = ChatServer()
    yield server
    server.stop()
