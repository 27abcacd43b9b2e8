"""Databases to keep jobs in: SQLite, and a Postgres of our own where its programs are installed."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from cosmorama.jobs.database import Database
from cosmorama.jobs.store import Store
from tests import needs

LEASE_S = 0.6


@dataclass
class Postgres:
    """A Postgres cluster in a temporary folder, listening on a Unix socket there and nowhere else."""

    programs: Path
    folder: Path
    user: str | None

    def control(self, *arguments: str) -> None:
        command = [self.programs / "pg_ctl", "-D", self.folder / "data", "-w", "-l", self.folder / "log", *arguments]
        subprocess.run(command, check=True, user=self.user, cwd=self.folder, stdout=subprocess.DEVNULL, timeout=60)

    def start(self) -> None:
        self.control("start", "-o", f"-k {self.folder} -c listen_addresses='' -c fsync=off")

    def stop(self) -> None:
        self.control("stop", "-m", "immediate")

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"t{uuid4().hex}"
        subprocess.run(
            [self.programs / "createdb", "-h", self.folder, "-U", "cosmorama", name],
            check=True,
            user=self.user,
            cwd=self.folder,
            timeout=60,
        )
        return f"postgresql://cosmorama@/{name}?host={self.folder}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A running cluster; tests that need it are skipped where Debian's package postgresql is not installed."""
    programs = needs.postgres()
    # Not pytest's own folder: Postgres refuses to run as root, and its user cannot go in there.
    folder = Path(tempfile.mkdtemp(prefix="cosmorama-pg-", dir="/tmp"))
    user = None
    if os.getuid() == 0:
        user = "postgres"
        shutil.chown(folder, user)
    cluster = Postgres(programs, folder, user)
    make = [programs / "initdb", "-D", folder / "data", "-U", "cosmorama", "-A", "trust", "--no-sync"]
    subprocess.run(make, check=True, user=user, cwd=folder, stdout=subprocess.DEVNULL, timeout=120)
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.sqlite3'}"
    cluster: Postgres = request.getfixturevalue("postgres")
    return cluster.new_database()


class Blocking:
    """A store, or a register of servers, whose methods are called in the test's own thread instead of awaited."""

    def __init__(self, awaited: Any) -> None:
        self.awaited = awaited
        self.database: Database = awaited.database

    def __getattr__(self, name: str) -> Any:
        method = getattr(type(self.awaited), name)
        if hasattr(method, "__wrapped__"):
            return partial(method.__wrapped__, self.awaited)
        return lambda *arguments, **named: asyncio.run(method(self.awaited, *arguments, **named))


@pytest.fixture
def store(database_url: str) -> Iterator[Blocking]:
    """A store in it, with short leases."""
    database = Database(database_url)
    database.create()
    yield Blocking(Store(database, lease_s=LEASE_S))
    database.close()


@pytest.fixture(scope="session")
def s3() -> Iterator[dict[str, str]]:
    """An S3 server with a bucket named clips; the environment that finds it."""
    pytest.importorskip("s3fs", reason="pip install s3fs")
    pytest.importorskip("moto.server", reason="pip install 'moto[server]'")
    import fsspec

    port = free_port()
    found = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert server.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in found.items():
                patch.setenv(name, value)
            fsspec.filesystem("s3", skip_instance_cache=True).mkdir("clips")
        yield found
    finally:
        server.kill()
        server.wait()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def pass_lease() -> None:
    """Wait until every lease of `store` has expired."""
    time.sleep(LEASE_S + 0.05)
