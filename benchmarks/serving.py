"""What server benchmarks run on: a tiny checkpoint with random weights, and a server in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

COMMAND = (sys.executable, "-c", "from cosmorama.cli import main; main()", "serve")
START_S = 300.0
JSON = {"Content-Type": "application/json"}


def tiny_checkpoint(folder: Path) -> Path:
    """Write a complete checkpoint that makes clips of 64 x 64 and 256 x 256 pixels in milliseconds."""
    import torch
    from diffusers.models.transformers.transformer_cosmos import CosmosTransformer3DModel

    from cosmorama.world.microcosm.autoencoder import VideoAutoencoder
    from cosmorama.world.microcosm.text_encoder import TextEncoder

    torch.manual_seed(0)
    channels = 4
    CosmosTransformer3DModel(
        in_channels=channels + 1,
        out_channels=channels,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        mlp_ratio=2.0,
        text_embed_dim=16,
        adaln_lora_dim=8,
        max_size=(32, 40, 40),
        patch_size=(1, 2, 2),
        rope_scale=(1.0, 1.0, 1.0),
        concat_padding_mask=False,
        extra_pos_embed_type=None,
    ).save_pretrained(folder / "transformer")
    vae = VideoAutoencoder(channels)
    torch.nn.init.orthogonal_(vae.basis.data)
    vae.save_pretrained(folder / "vae")
    TextEncoder(["red", "blue", "ball", "cube"], width=16, layers=1, heads=2).save_pretrained(folder / "text_encoder")
    world = {
        "name": "tiny",
        "prediction": "velocity",
        "timestep_scale": 1.0,
        "flow_shift": 3.0,
        "frames": {"multiple": 8, "max": 121},
        "fps": [12, 40],
        "sizes": [[64, 64], [256, 256]],
        "conditioning_frames": [1, 9],
        "guidance_map": [[1.0, 1.0], [7.0, 3.0], [10.0, 6.0]],
    }
    (folder / "world.json").write_text(json.dumps(world))
    return folder


class Client:
    """One connection to a server, kept open."""

    def __init__(self, port: int) -> None:
        self._connection = HTTPConnection("127.0.0.1", port, timeout=3600)

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The answer to a request, decoded.

        Raises:
            RuntimeError: it is an error.
        """
        self._connection.request(method, path, None if body is None else json.dumps(body), JSON if body else {})
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status} {content[:300]!r}")
        return json.loads(content) if content else None

    def events(self, job_id: str) -> Iterator[dict[str, Any]]:
        """A job's states as they come; holds the connection until the job is over."""
        self._connection.request("GET", f"/v1/jobs/{job_id}/events")
        for line in self._connection.getresponse():
            if line.startswith(b"data:"):
                event = json.loads(line[5:])
                if "state" in event:
                    yield event

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class Server:
    """A running server.

    Attributes:
        port: Where it listens, on this machine.
        pid: Of the process that answers; the worker is its child.
    """

    def __init__(self, port: int, pid: int) -> None:
        self.port, self.pid = port, pid

    def client(self) -> Client:
        """A connection to it."""
        return Client(self.port)

    def cpu_s(self) -> float:
        """CPU time of the answering process so far, without the worker's (Linux)."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_mb(self) -> dict[str, float]:
        """Resident memory of the answering process and of the worker (Linux)."""
        children = Path(f"/proc/{self.pid}/task").glob("*/children")
        pids = {int(pid) for file in children for pid in file.read_text().split()}
        found = {pid: _resident_mb(pid) for pid in pids}
        # Beside the worker there may be multiprocessing's resource tracker, which is small.
        return {"api": _resident_mb(self.pid), "worker": max(found.values())}


@contextmanager
def running_server(model: str | Path, folder: Path, **settings: str) -> Iterator[Server]:
    """A server that is ready; `settings` are environment variables without their prefix COSMORAMA_."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    ours = {"PORT": str(port), "MODEL": str(model), "STATE_DIR": str(folder / "state"), "THREADS": "1"} | settings
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("COSMORAMA_", "NIM_", "OTEL_"))}
    environment = clean | {f"COSMORAMA_{key}": value for key, value in ours.items()}
    log = folder / "server.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(COMMAND, env=environment, stdout=sink, stderr=sink)
    try:
        _wait_until_ready(process, port, log)
        yield Server(port, process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        finally:
            process.kill()


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError, RuntimeError):
            Client(port).call("GET", "/v1/health/ready")
            return
        time.sleep(0.1)
    raise RuntimeError(f"the server did not become ready:\n{log.read_text()[-2000:]}")


def _resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
