"""Servers of several roles, and replicas on a Ray cluster of two machines, that are killed, upgraded, and left without
their database: nothing accepted is lost, and nothing is made twice.

Only in the long form, `COSMORAMA_FAULTS=long`; `tests/jobs/test_fleet.py` and `tests/fleet/test_ray.py` do each of
these things once.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.faults.client import LONG, Client, kill_server, kill_worker
from tests.jobs.conftest import Postgres
from tests.serving import Running, running_server

pytestmark = [
    pytest.mark.fault,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not LONG, reason="COSMORAMA_FAULTS=long is not set"),
]

WORKER_KILLS, API_KILLS, REPLICA_KILLS, UPGRADES, AWAY_S = 20, 10, 5, 1, 60.0


@dataclass
class Machines:
    """Servers that share a database and a folder; `front` is the one that clients talk to."""

    model: Path
    folder: Path
    stack: ExitStack
    shared: dict[str, str]
    running: dict[str, Running] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)
    started: int = 0

    @property
    def front(self) -> Running:
        return self.running["front"]

    def start(self, name: str, role: str) -> None:
        """Start a server in the place of `name`, which is not there or not any more."""
        self.started += 1
        folder = self.folder / f"{name}-{self.started}"
        server = running_server(self.model, folder, **self.shared, COSMORAMA_ROLE=role)
        self.running[name], self.roles[name] = self.stack.enter_context(server), role

    def kill(self, name: str) -> None:
        kill_server(self.running[name])
        self.start(name, self.roles[name])

    def upgrade(self) -> None:
        """Replace each by a new one, which is there before the old one is told to end."""
        for name, old in list(self.running.items()):
            self.start(name, self.roles[name])
            old.process.send_signal(signal.SIGTERM)
            old.process.wait(300)
            assert "stay in the queue" in old.log.read_text()


def survive(client: Client, machines: Machines, postgres: Postgres, kills: list[Callable[[], None]]) -> None:
    """Kill in any order, with an upgrade and a minute without the database somewhere between, while clients go on."""

    def away() -> None:
        postgres.stop()
        time.sleep(AWAY_S)
        postgres.start()
        wait_until(lambda: httpx.get(f"{machines.front.url}/v1/health/ready", timeout=60).status_code == 200)

    events = [*kills, machines.upgrade]
    client.chance.shuffle(events)
    events.insert(len(events) // 2, away)
    for number, event in enumerate(events):
        client.want(2)
        client.want(1, long=True)
        client.send(machines.front)
        client.keep_running(machines.front)
        time.sleep(client.chance.uniform(0, 0.5))
        client.want(1)
        with ThreadPoolExecutor(1) as pool:  # accepted, or sent again, while it happens
            sending = pool.submit(client.send, machines.front)
            event()
            sending.result()
        print(f"{number + 1} of {len(events)}: {getattr(event, '__name__', 'kill')}", flush=True)
    jobs = client.verify(machines.front, machines.folder / "state")
    given_up = [job for job in jobs if job["state"] == "failed"]
    print(f"{len(jobs)} jobs, {len(given_up)} given up after {[job['attempts'] for job in given_up]} attempts")


def wait_until(right: Callable[[], bool], timeout_s: float = 300) -> None:
    deadline = time.monotonic() + timeout_s
    while not right():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def machines(tiny_checkpoint: Path, tmp_path: Path, postgres: Postgres) -> Iterator[Machines]:
    shared = {
        "COSMORAMA_DATABASE_URL": postgres.new_database(),
        "COSMORAMA_ARTIFACTS": str(tmp_path / "state" / "artifacts"),
        "COSMORAMA_LEASE_S": "5",
        "COSMORAMA_MAX_ACTIVE": "2",
        "COSMORAMA_MAX_QUEUE": "1000",
        "COSMORAMA_DRAIN_S": "300",
    }
    with ExitStack() as stack:
        yield Machines(tiny_checkpoint, tmp_path, stack, shared)


def test_api_and_workers(machines: Machines, postgres: Postgres, chance: random.Random) -> None:
    for name in ("one", "two"):
        machines.start(name, "worker")
    machines.start("front", "api")

    def worker() -> None:
        name = chance.choice(("one", "two"))
        if chance.random() < 0.5:
            machines.kill(name)
        else:
            kill_worker(machines.running[name])  # the process that has the model; its server starts another

    def api() -> None:
        machines.kill("front")

    survive(Client(chance), machines, postgres, [worker] * WORKER_KILLS + [api] * API_KILLS)


def test_replicas_on_two_machines(machines: Machines, postgres: Postgres, chance: random.Random) -> None:
    """Each machine of the cluster has room for one replica. One of them is switched off, too."""
    pytest.importorskip("ray", reason="Ray is not installed (pip install '.[ray]')")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    machines.stack.callback(cluster.shutdown)
    nodes = [cluster.add_node(num_cpus=1)]
    machines.shared |= {"RAY_ADDRESS": cluster.address, "COSMORAMA_REPLICAS": "2"}
    for name in ("front", "second"):
        machines.start(name, "fleet")
    wait_until(lambda: len(replicas()) == 2)
    before = {process.pid for process in replicas()}

    def replica() -> None:
        wait_until(lambda: len(replicas()) > 0)
        chance.choice(replicas()).send_signal(signal.SIGKILL)

    def server() -> None:
        machines.kill(chance.choice(("front", "second")))

    def machine() -> None:
        cluster.remove_node(nodes.pop(), allow_graceful=False)
        nodes.append(cluster.add_node(num_cpus=1))

    assert {process.pid for process in replicas()} == before  # the second server found them as it wants them
    kills: list[Any] = [replica] * REPLICA_KILLS + [server] * API_KILLS + [machine]
    survive(Client(chance), machines, postgres, kills)


def replicas() -> list[psutil.Process]:
    """Those on the cluster of this process."""
    below = psutil.Process().children(recursive=True)
    return [process for process in below if "ServeReplica" in process.name()]
