"""What several servers on one database gain and cost, each against a goal.

    replicas    equal jobs made by two replicas against one, each held on a core of its own (free to use both, one
                replica writes its clips on the second core): by the clock, and in processor time, on which other
                load has less influence
    takeover    from the kill of a worker to the beginning of its job on another one, beyond the lease
    events      how much later a step is told by another server than by the one that makes the job
    memory      of a server with the role api that has accepted jobs and shown them

    createdb fleet && python -m benchmarks.fleet postgresql:///fleet            # a tiny checkpoint with random weights
    python -m benchmarks.fleet postgresql:///fleet --model microcosm --only replicas takeover --json

The database is to be empty. `load` is the machine's average over one minute at the end of a part.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil

from benchmarks.serving import Server, running_server

LEASE_S = 5.0
JOB: dict[str, Any] = {"dialect": "cosmorama", "prompt": "a red ball falls", "width": 960, "height": 704}
Figures = dict[str, Any]


class Bench:
    """Where it runs.

    Args:
        url: The database.
        model: What workers load.
        folder: For clips and logs.
        steps: Of each job: enough that it is seen at work.
        jobs: Of `replicas`.
    """

    def __init__(self, url: str, model: str, folder: Path, steps: int, jobs: int) -> None:
        self._model, self._folder, self._started = model, folder, 0
        self._settings = {"DATABASE_URL": url, "ARTIFACTS": str(folder / "clips"), "LEASE_S": f"{LEASE_S:g}"}
        self.body, self.count = JOB | {"steps": steps}, jobs

    @contextmanager
    def server(self, role: str, **settings: str) -> Iterator[Server]:
        """A server of some role."""
        self._started += 1
        folder = self._folder / f"{role}-{self._started}"
        with running_server(self._model, folder, ROLE=role, **self._settings, **settings) as server:
            yield server

    def submit(self, server: Server, seed: int = 0) -> str:
        """Have a job made."""
        job: dict[str, Any] = server.client().call("POST", "/v1/jobs", self.body | {"seed": seed})
        return str(job["id"])

    def until(self, server: Server, job_id: str, *states: str, attempts: int = 1) -> dict[str, Any]:
        """Wait until a job is in a state, at some attempt."""
        client = server.client()
        while True:
            job: dict[str, Any] = client.call("GET", f"/v1/jobs/{job_id}")
            if job["state"] in states and job["attempts"] >= attempts:
                return job
            if job["finished_at"]:
                raise RuntimeError(f"{job_id} ended too early, as {job['state']}: more --steps")
            time.sleep(0.02)


def replicas(bench: Bench) -> Figures:
    """One more replica, the same jobs."""
    clock, busiest = [], []
    for count in (1, 2):
        with bench.server("all", REPLICAS=str(count), MAX_ACTIVE="2", MAX_QUEUE="100") as server:
            bench.until(server, bench.submit(server), "succeeded")  # what is done once is not counted
            for core, worker in enumerate(_workers(server.pid)):
                _hold(worker, core)
            before = _computed_s(server.pid)
            begun = time.perf_counter()
            for job_id in [bench.submit(server, seed) for seed in range(bench.count)]:
                bench.until(server, job_id, "succeeded")
            clock.append(time.perf_counter() - begun)
            busiest.append(max(after - before.get(pid, 0) for pid, after in _computed_s(server.pid).items()))
    gain, processor_gain = clock[0] / clock[1], busiest[0] / busiest[1]
    said = {"seconds": _rounded(clock), "processor_s_of_the_busiest": _rounded(busiest)}
    figures = {"replicas_gain": _figure(gain, ">= 1.7", gain >= 1.7) | said | {"jobs": bench.count}}
    return figures | {"replicas_gain_processor_time": _figure(processor_gain, ">= 1.7", processor_gain >= 1.7)}


def takeover(bench: Bench) -> Figures:
    """Kill whichever of two workers has a job."""
    with bench.server("worker") as one, bench.server("worker") as two, bench.server("api") as api:
        job_id = bench.submit(api)
        while not (makers := [server for server in (one, two) if _active(server)]):
            time.sleep(0.02)
        psutil.Process(makers[0].pid).kill()
        begun = time.perf_counter()
        bench.until(api, job_id, "running", "succeeded", attempts=2)
        beyond_s = time.perf_counter() - begun - LEASE_S
        bench.until(api, job_id, "succeeded")
    return {"takeover_beyond_lease_s": _figure(beyond_s, "<= 2", beyond_s <= 2)}


def events(bench: Bench) -> Figures:
    """Follow jobs on the server that makes them and on another one at once."""
    late_ms: list[float] = []
    with bench.server("all") as maker, bench.server("api") as other, ThreadPoolExecutor(2) as pool:
        for seed in range(3):
            job_id = bench.submit(other, seed)
            here, there = pool.map(lambda server, job_id=job_id: _arrivals(server, job_id), (maker, other))
            late_ms += [1000 * (there[step] - at) for step, at in here.items() if step in there]
    worst = max(late_ms)
    said = {"median": round(statistics.median(late_ms), 1), "events": len(late_ms)}
    return {"events_late_ms_worst": _figure(worst, "<= 250", worst <= 250) | said}


def memory(bench: Bench) -> Figures:
    """Resident memory of who only answers."""
    with bench.server("worker"), bench.server("api") as api:
        for seed in range(10):
            bench.submit(api, seed)
        client = api.client()
        for _ in range(100):
            client.call("GET", "/v1/jobs?limit=100")
        resident_mb = psutil.Process(api.pid).memory_info().rss / 1e6
    return {"api_memory_mb": _figure(resident_mb, "<= 200", resident_mb <= 200)}


PARTS = {"replicas": replicas, "takeover": takeover, "events": events, "memory": memory}


def main() -> None:
    """Parse arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", help="URL of an empty Postgres database")
    parser.add_argument("--model", default="", help="what workers load; none: a tiny checkpoint")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--jobs", type=int, default=16, help="of `replicas`")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", action="store_true", help="print JSON instead of a line per figure")
    arguments = parser.parse_args()
    from tests.tiny import save_tiny

    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or str(save_tiny(Path(folder) / "tiny"))
        bench = Bench(arguments.database, model, Path(folder), arguments.steps, arguments.jobs)
        for name in arguments.only:
            for measured, figure in PARTS[name](bench).items():
                figures[measured] = figure | {"load": round(os.getloadavg()[0], 1)}
                if not arguments.json:
                    print(f"{measured}: {figures[measured]}", flush=True)
    if arguments.json:
        print(json.dumps(figures, indent=2))


def _workers(pid: int) -> list[psutil.Process]:
    """The processes below a server that hold a model."""
    children = psutil.Process(pid).children()
    return [child for child in children if any("spawn_main" in word for word in child.cmdline())]


def _hold(worker: psutil.Process, core: int) -> None:
    """Let a process and all of its threads run on one core only."""
    for thread in worker.threads():
        os.sched_setaffinity(thread.id, {core})


def _computed_s(pid: int) -> dict[int, float]:
    """Processor time so far of each process below a server that holds a model."""
    return {worker.pid: sum(worker.cpu_times()[:2]) for worker in _workers(pid)}


def _active(server: Server) -> bool:
    with urlopen(f"http://127.0.0.1:{server.port}/v1/metrics") as answer:
        return b"\ncosmorama_active_generations 1" in answer.read()


def _arrivals(server: Server, job_id: str) -> dict[tuple[str, int], float]:
    """When each step was told of first."""
    found: dict[tuple[str, int], float] = {}
    for job in server.client().events(job_id):
        if job["stage"] in ("denoise", "decode"):
            found.setdefault((job["stage"], job["step"]), time.perf_counter())
    return found


def _rounded(values: list[float]) -> list[float]:
    return [round(value, 1) for value in values]


def _figure(value: float, goal: str, met: bool) -> Figures:
    return {"value": round(value, 2), "goal": goal, "met": met}


if __name__ == "__main__":
    main()
