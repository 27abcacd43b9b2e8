"""The hub's cache as downloads leave it, and a hub to download from: the published repositories with small weights."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

Files = Mapping[str, bytes]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def commit_of(repository: str, revision: str) -> str:
    return hashlib.sha1(f"{repository}@{revision}".encode()).hexdigest()


def publish(cache: Path, repository: str, revision: str, files: Files) -> Path:
    """Lay a revision out in a cache: contents in blobs, names as links to them, the branch in refs."""
    kept = cache / f"models--{repository.replace('/', '--')}"
    commit = commit_of(repository, revision)
    snapshot = kept / "snapshots" / commit
    for name, content in files.items():
        blob = kept / "blobs" / hashlib.sha256(content).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(*[".."] * (len(link.relative_to(kept).parts) - 1)) / "blobs" / blob.name)
    reference = kept / "refs" / revision
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(commit)
    return snapshot


class FakeHub:
    """Repositories that the hub's library can download from.

    Attributes:
        revisions: The files of each repository's revisions.
        gated: Repositories that nobody has leave to read.
        served: Bytes of contents that were sent.
        break_after: A connection ends after so many bytes of a file of weights; None: never.
    """

    def __init__(self, revisions: dict[tuple[str, str], Files]) -> None:
        self.revisions = revisions
        self.gated: set[str] = set()
        self.served: list[tuple[str, int]] = []
        self.break_after: int | None = None

    def find(self, repository: str, revision: str) -> tuple[str, Files] | None:
        for (owner, branch), files in self.revisions.items():
            commit = commit_of(owner, branch)
            if owner == repository and revision in (branch, commit):
                return commit, files
        return None


@contextmanager
def serving(hub: FakeHub) -> Iterator[str]:
    """A server of it; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            path = unquote(urlsplit(self.path).path).lstrip("/")
            if path.startswith("api/models/"):
                owner, name, kind, rest = (*path.removeprefix("api/models/").split("/", 3), "", "")[:4]
                self.about(f"{owner}/{name}", kind, rest)
            else:
                owner, name, _, rest = path.split("/", 3)
                self.content(f"{owner}/{name}", rest, body=body)

        def about(self, repository: str, kind: str, rest: str) -> None:
            revision = rest.removesuffix("/") or "main"
            if not any(owner == repository for owner, _ in hub.revisions):
                return self.refuse(404, "RepoNotFound")
            found = hub.find(repository, revision)
            if found is None:
                return self.refuse(404, "RevisionNotFound")
            commit, files = found
            if kind == "tree":
                entries = [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in files.items()
                ]
                return self.send(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})
            info = {"id": repository, "sha": commit, "siblings": [{"rfilename": name} for name in files]}
            return self.send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

        def content(self, repository: str, rest: str, *, body: bool) -> None:
            if repository in hub.gated:
                return self.refuse(403, "GatedRepo")
            for (owner, branch), files in hub.revisions.items():
                for revision in (branch, commit_of(owner, branch)):
                    name = rest.removeprefix(f"{revision}/")
                    if owner == repository and name != rest and name in files:
                        return self.file(commit_of(owner, branch), name, files[name], body=body)
            return self.refuse(404, "EntryNotFound")

        def file(self, commit: str, name: str, content: bytes, *, body: bool) -> None:
            headers = {
                "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
                "X-Repo-Commit": commit,
                "Accept-Ranges": "bytes",
            }
            start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            whole = content[start:]
            if not body:
                self.send(200, b"", headers, length=len(whole))
                return
            breaks = hub.break_after is not None and name.endswith(".safetensors")
            cut = whole[: hub.break_after] if breaks else whole
            hub.served.append((name, len(cut)))
            self.send(206 if start else 200, cut, headers, length=len(whole))
            if len(cut) < len(whole):
                self.close_connection = True

        def refuse(self, status: int, code: str) -> None:
            self.send(status, b"", {"X-Error-Code": code, "X-Error-Message": code})

        def send(self, status: int, content: bytes, headers: dict[str, str], length: int | None = None) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content) if length is None else length))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *values: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
