"""What the server costs beside the engine, and what its scheduling gains, each against a goal.

    overhead    a synchronous request's time at the client, minus the bare engine's for the same request, in turn
    cancel      from a cancellation to the first finished unit of work of the job that waited behind it
    schedule    32 mixed jobs on the engine, its scheduling against first come, first served
    accept      jobs accepted per second, while the worker works
    attack      how soon health checks and a tiny request are answered while others send hostile bodies and watch jobs
    memory      growth of resident memory per 1,000 tiny jobs (only with --full)

    python -m benchmarks.server --json                 # on a tiny checkpoint with random weights
    python -m benchmarks.server --json --full          # and overhead with Microcosm's default request, and memory
    python -m benchmarks.server --only accept cancel

Every process computes on one thread. Times are wall time, so other load on the machine shows; `load` is its average
over one minute. `schedule` counts CPU time, on which other load has little influence.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.serving import running_server
from cosmorama.engine.scheduler import Candidate
from cosmorama.progress import Progress
from cosmorama.request import GenerationRequest

PROMPT = "a red ball rolls to the right and hits a blue cube on a green floor"
SMALL = GenerationRequest(prompt=PROMPT, seed=1, width=64, height=64, frames=9, steps=4)
LONG = replace(SMALL, width=256, height=256, frames=121, steps=35)
DEFAULT = GenerationRequest(prompt=PROMPT, seed=1)
CONNECTIONS = 8


def main() -> None:
    """Parse arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--full", action="store_true", help="Microcosm's default request too (minutes), and memory")
    parser.add_argument("--scale", type=float, default=1.0, help="of all counts: less is faster and coarser")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a line per part")
    arguments = parser.parse_args()
    from tests.tiny import save_tiny  # with torch, which the processes that flood the server do without

    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        model = save_tiny(Path(folder) / "tiny", sizes=((64, 64), (256, 256)))
        for name in arguments.only:
            for measured, figure in PARTS[name](model, Path(folder) / name, arguments.scale, arguments.full).items():
                figures[measured] = figure | {"load": round(os.getloadavg()[0], 1)}
                if not arguments.json:
                    print(f"{measured}: {figures[measured]}", flush=True)
    if arguments.json:
        print(json.dumps(figures, indent=2))


def overhead(model: Path, folder: Path, scale: float, full: bool) -> dict[str, Any]:
    """Medians of differences; every request once on each side, whose turn it is to be first alternating.

    Two runs of the default request differ by more than what is looked for. So beside the difference stands what is
    certainly the server's: a request's time outside the stages of its work, and the API process's CPU time during it.
    """
    pairs = _pairs(model, folder / "tiny", SMALL, max(3, round(40 * scale)))
    added_s = statistics.median(pair.added_s for pair in pairs)
    figures = {"overhead_ms": _figure(1000 * added_s, "< 30", added_s < 0.03) | _circumstances(pairs)}
    if full:
        pairs = _pairs("microcosm", folder / "microcosm", DEFAULT, max(1, round(7 * scale)))
        share = statistics.median(pair.added_s / pair.bare_s for pair in pairs)
        shares = [round(pair.added_s / pair.bare_s, 4) for pair in pairs]
        figures["overhead_default_share"] = (
            _figure(share, "< 0.01", share < 0.01, 4) | {"shares": shares} | _circumstances(pairs)
        )
    return figures


def cancel(model: Path, folder: Path, scale: float, full: bool) -> dict[str, Any]:
    """The one that waits is as long as the one that is cancelled, so that the scheduler does not begin it before."""
    waits, steps = [], []
    with running_server(model, folder, MAX_ACTIVE="1") as server:
        client = server.client()
        for _ in range(max(3, round(15 * scale))):
            first = client.call("POST", "/v1/jobs", _body(LONG))["id"]
            second = client.call("POST", "/v1/jobs", _body(LONG))["id"]
            watching, seen = server.client(), []
            for state in watching.events(first):
                if state["stage"] == "denoise":
                    seen.append(time.perf_counter())
                if len(seen) == 6:
                    break
            watching.close()
            steps += [b - a for a, b in pairwise(seen)]
            watching = server.client()
            with ThreadPoolExecutor(1) as other:
                start = time.perf_counter()
                cancelling = other.submit(client.call, "POST", f"/v1/jobs/{first}/cancel")
                next(state for state in watching.events(second) if state["stage"] in ("encode", "denoise"))
                waits.append(time.perf_counter() - start)
                cancelling.result()
            watching.close()
            client.call("POST", f"/v1/jobs/{second}/cancel")
    step_s, wait_s = statistics.median(steps), statistics.median(waits)
    figure = _figure(1000 * wait_s, f"< {1000 * step_s + 50:.0f}", wait_s < step_s + 0.05)
    return {"cancel_to_next_start_ms": figure | {"step_ms": round(1000 * step_s, 1), "worst": round(1000 * max(waits))}}


def schedule(model: Path, folder: Path, scale: float, full: bool) -> dict[str, Any]:
    """Half stills, a third short clips, the rest long ones, in random order: in a burst, and arriving one by one.

    Who is first in a round alternates. One burst's CPU time varies by a tenth, mostly of the encoder's threads; so
    there are many rounds.
    """
    jobs = max(8, round(32 * scale))
    kinds = [replace(SMALL, width=256, height=256, frames=frames, steps=steps) for frames, steps in _MIX]
    requests = [replace(kinds[number % len(kinds)], seed=number) for number in range(jobs)]
    figures = {}
    for name, every in (("", 0), ("arriving_", UNITS_BETWEEN_ARRIVALS)):
        rounds = []
        for number in range(max(1, round(9 * scale))):
            random.Random(number).shuffle(requests)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                order = (True, False) if number % 2 else (False, True)
                made = {fifo: pool.apply(_burst, (str(model), requests, fifo, every)) for fifo in order}
            rounds.append((made[True], made[False]))
        latency = statistics.median(b["mean_latency_s"] / a["mean_latency_s"] for a, b in rounds)
        totals = sorted(b["total_s"] / a["total_s"] for a, b in rounds)
        total = statistics.median(totals)
        switches = {"switches": statistics.median(b["switches"] for _, b in rounds)}
        spread = {"rounds": [round(ratio, 3) for ratio in totals]} | switches
        most = 1.0 if every else 0.6
        figures[f"{name}mean_latency_ratio"] = _figure(latency, f"<= {most}", latency <= most, 3)
        figures[f"{name}total_time_ratio"] = _figure(total, "<= 1.03", total <= 1.03, 3) | spread
    return figures


_MIX = ((1, 4), (1, 4), (17, 8), (1, 4), (17, 8), (121, 20))
"""Frames and steps of every six jobs."""
UNITS_BETWEEN_ARRIVALS = 10
"""Of work, between two jobs that arrive one by one: a little faster than they are made, so that long ones are met."""


def accept(model: Path, folder: Path, scale: float, full: bool) -> dict[str, Any]:
    """Each connection sends its share, one after the other, while the worker makes a long clip and then these."""
    count = max(CONNECTIONS, round(1000 * scale))
    with running_server(model, folder, MAX_QUEUE=str(2 * count)) as server:
        server.client().call("POST", "/v1/jobs", _body(LONG))
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            cpu_s = server.cpu_s()
            seconds = pool.apply(_flood, (server.port, count))
            cpu_s = server.cpu_s() - cpu_s
    rate = count / seconds
    circumstances = {"jobs": count, "connections": CONNECTIONS, "cpu_ms_per_job": round(1000 * cpu_s / count, 2)}
    return {"accepted_per_s": _figure(rate, ">= 300", rate >= 300) | circumstances}


def attack(model: Path, folder: Path, scale: float, full: bool) -> dict[str, Any]:
    """Megabytes of list entries, of unknown fields and of prompt, over and over, beside 200 followers of one job."""
    seconds = max(3.0, 20 * scale)
    with running_server(model, folder, MAX_ACTIVE="2") as server:
        client = server.client()
        tiny = replace(SMALL, frames=1, steps=1)

        def ask() -> float:
            return _timed(lambda: client.call("POST", "/v1/infer", _body(tiny)))

        alone = statistics.median(ask() for _ in range(9))
        job = client.call("POST", "/v1/jobs", _body(LONG))["id"]
        quiet = [_timed(lambda: client.call("GET", "/v1/health/live")) for _ in range(50)]
        shared = statistics.median(ask() for _ in range(25))  # steps in turns with the job that is followed
        with _busy(2):  # the attackers compute on this machine too, which the server cannot help
            crowded = statistics.median(ask() for _ in range(25))
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            attacking = pool.apply_async(_attack, (server.port, job, seconds))
            live, beside = list[float](), list[float]()
            other = server.client()
            with ThreadPoolExecutor(1) as thread:
                asked = None
                while not attacking.ready():
                    live.append(_timed(lambda: client.call("GET", "/v1/health/live")))
                    if asked is None or asked.done():
                        asked = thread.submit(
                            lambda: beside.append(_timed(lambda: other.call("POST", "/v1/infer", _body(tiny))))
                        )
                    time.sleep(0.02)
            sent = attacking.get()
    p99 = 1000 * sorted(live)[int(0.99 * (len(live) - 1))]
    ratio = statistics.median(beside) / alone
    circumstances = {
        "attacks": sent,
        "checks": len(live),
        "median_ms": round(1000 * statistics.median(live), 1),
        "worst_ms": round(1000 * max(live), 1),
        "quiet_p99_ms": round(1000 * sorted(quiet)[-1], 1),
    }
    beside_ms = {
        "alone_ms": round(1000 * alone),
        "beside_the_followed_job_ms": round(1000 * shared),
        "beside_two_processes_that_only_compute_ms": round(1000 * crowded),
        "beside_ms": round(1000 * statistics.median(beside)),
    }
    return {
        "health_p99_under_attack_ms": _figure(p99, "<= 100", p99 <= 100) | circumstances,
        "tiny_request_under_attack_ratio": _figure(ratio, "<= 3", ratio <= 3, 2) | beside_ms | {"count": len(beside)},
    }


@contextmanager
def _busy(count: int) -> Iterator[None]:
    """Processes that compute, and ask nothing of anybody."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def memory(model: Path, folder: Path, scale: float, full: bool) -> dict[str, Any]:
    """A line through resident memory over the second half of the jobs: by then caches are full."""
    if not full:
        return {}
    rounds, each = 20, max(1, round(25 * scale))
    samples = []
    tiny = replace(SMALL, frames=1, steps=1)
    with running_server(model, folder, MAX_QUEUE="100") as server, ThreadPoolExecutor(4) as threads:
        before = server.resident_mb()
        for number in range(rounds):
            makers = [threads.submit(_make, server.client(), tiny, each) for _ in range(4)]
            for maker in makers:
                maker.result()
            samples.append((4 * each * (number + 1), server.resident_mb()))
    after = samples[-1][1]
    late = samples[len(samples) // 2 :]
    figures = {}
    for process in before:
        slope = statistics.linear_regression([n for n, _ in late], [mb[process] for _, mb in late]).slope * 1000
        figure = _figure(slope, "< 2", slope < 2, 2)
        mb = {"before_mb": round(before[process], 1), "after_mb": round(after[process], 1)}
        figures[f"memory_{process}_mb_per_1000_jobs"] = figure | mb
    return figures


PARTS: dict[str, Callable[[Path, Path, float, bool], dict[str, Any]]] = {
    "overhead": overhead,
    "cancel": cancel,
    "schedule": schedule,
    "accept": accept,
    "attack": attack,
    "memory": memory,
}


def _figure(value: float, goal: str, met: bool, digits: int = 1) -> dict[str, Any]:
    return {"value": round(value, digits), "goal": goal, "met": met}


def _body(request: GenerationRequest) -> dict[str, Any]:
    return {
        "prompt": request.prompt,
        "seed": request.seed,
        "steps": request.steps,
        "video_params": {"width": request.width, "height": request.height, "frames_count": request.frames},
    }


@dataclass(frozen=True)
class _Pair:
    """Seconds of one request with the bare engine and with the server; `outside_s`: of that, none of its stages'."""

    bare_s: float
    served_s: float
    bare_outside_s: float
    outside_s: float
    api_cpu_s: float

    @property
    def added_s(self) -> float:
        return self.served_s - self.bare_s


def _circumstances(pairs: Sequence[_Pair]) -> dict[str, Any]:
    def ms(of: Callable[[_Pair], float]) -> float:
        return round(1000 * statistics.median(map(of, pairs)), 1)

    return {
        "pairs": len(pairs),
        "engine_ms": ms(lambda pair: pair.bare_s),
        "outside_the_work_ms": ms(lambda pair: pair.outside_s),
        "outside_the_work_bare_ms": ms(lambda pair: pair.bare_outside_s),
        "api_cpu_ms": ms(lambda pair: pair.api_cpu_s),
    }


def _pairs(model: str | Path, folder: Path, request: GenerationRequest, count: int) -> list[_Pair]:
    ours, theirs = multiprocessing.Pipe()
    engine = multiprocessing.get_context("spawn").Process(target=_serve_bare, args=(theirs, str(model)), daemon=True)
    engine.start()
    with ExitStack() as running:
        running.callback(engine.kill)
        server = running.enter_context(running_server(model, folder))
        client = server.client()

        def bare() -> tuple[float, float]:
            ours.send(request)
            seconds, work_s = ours.recv()
            return seconds, seconds - work_s

        def served() -> tuple[float, float, float]:
            client.close()  # the server ends connections that are idle for as long as a long request takes alone
            cpu_s, work_s = server.cpu_s(), server.work_s()
            start = time.perf_counter()
            client.call("POST", "/v1/infer", _body(request))
            seconds = time.perf_counter() - start
            cpu_s = server.cpu_s() - cpu_s
            return seconds, seconds - (server.work_s() - work_s), cpu_s

        bare(), served()  # the first one warms caches that last
        found = []
        for number in range(count):
            if number % 2:
                with_server = served()
                alone = bare()
            else:
                alone = bare()
                with_server = served()
            found.append(_Pair(alone[0], with_server[0], alone[1], *with_server[1:]))
        return found


def _serve_bare(connection: Connection, model: str) -> None:
    """The engine in a process of its own, as the server's worker has it, without the server."""
    import torch

    import cosmorama

    torch.set_num_threads(1)
    os.nice(5)  # as the worker is
    loaded = cosmorama.load(model)
    with tempfile.TemporaryDirectory() as folder:
        while True:
            request = connection.recv()
            start = time.perf_counter()
            made = loaded.generate_file(request, Path(folder) / "clip.mp4")
            connection.send((time.perf_counter() - start, sum(made.timings.values())))


def _burst(model: str, requests: Sequence[GenerationRequest], fifo: bool, every: int) -> dict[str, float]:
    """All requests at once, or one after `every` units of work; CPU seconds from each one's arrival to its end."""
    import torch

    from cosmorama.engine import engine as module
    from cosmorama.engine.engine import Engine
    from cosmorama.errors import CosmoramaError
    from cosmorama.world.registry import load_world

    torch.set_num_threads(1)
    with ExitStack() as patches, tempfile.TemporaryDirectory() as folder:
        if fifo:
            patches.enter_context(patch.object(module, "order", _oldest_first))
            patches.enter_context(patch.object(module, "admit", _one_at_a_time))
        engine = Engine(load_world(model))
        patches.callback(engine.close)
        at_work: list[str] = []

        def submit(name: str, request: GenerationRequest) -> None:
            output = Path(folder) / f"{name}.mp4"

            def note(progress: Progress) -> None:
                if progress.stage in ("denoise", "decode"):
                    at_work.append(name)

            engine.submit(name, request, output=output, on_progress=note)

        def advance() -> bool:
            advanced = engine.step()
            if not advanced and engine.pending:
                engine.wait()
            for name, result in engine.finished():
                if isinstance(result, CosmoramaError):
                    raise result
                ended[name] = time.process_time()
            return advanced

        came: dict[str, float] = {}
        ended: dict[str, float] = {}
        submit("warm", requests[0])
        while engine.pending:
            advance()
        ended.clear()
        at_work.clear()
        start, units = time.process_time(), 0
        while engine.pending or len(came) < len(requests):
            while len(came) < len(requests) and units >= every * len(came):
                came[str(len(came))] = time.process_time()
                submit(str(len(came) - 1), requests[len(came) - 1])
            units += advance() or not engine.pending
    return {
        "mean_latency_s": statistics.fmean(ended[name] - came[name] for name in came),
        "total_s": max(ended.values()) - start,
        "switches": sum(a != b for a, b in pairwise(at_work)),
    }


def _oldest_first(candidates: Iterable[Candidate]) -> list[Candidate]:
    return sorted(candidates, key=lambda candidate: -candidate.age_s)


def _one_at_a_time(held: Sequence[Candidate], waiting: Sequence[Candidate], slots: int) -> Candidate | None:
    return None if held or not waiting else _oldest_first(waiting)[0]


def _flood(port: int, count: int) -> float:
    """Seconds until `count` jobs are accepted."""
    from benchmarks.serving import Client

    clients = [Client(port) for _ in range(CONNECTIONS)]
    with ThreadPoolExecutor(CONNECTIONS) as threads:
        for client in clients:
            client.call("GET", "/v1/health/ready")

        def send(number: int) -> None:
            for _ in range(number, count, CONNECTIONS):
                clients[number].call("POST", "/v1/jobs", _body(SMALL))

        start = time.perf_counter()
        list(threads.map(send, range(CONNECTIONS)))
        return time.perf_counter() - start


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


HOSTILE: dict[str, Callable[[], bytes]] = {
    "list": lambda: b'{"dialect":"cosmorama","prompt":"x","controls":[' + b"1," * 5_000_000 + b"1]}",
    "fields": lambda: b"{" + b",".join(b'"k%d":1' % number for number in range(1_000_000)) + b"}",
    "prompt": lambda: b'{"prompt":"' + b"x" * 20_000_000 + b'"}',
    "nested": lambda: b'{"prompt":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}",
    "percent": lambda: b'{"prompt":"x","image":"data:image/png,' + b"%41" * 10_000_000 + b'"}',
}
WATCHERS = 200


def _attack(port: int, job: str, seconds: float) -> dict[str, int]:
    """Send each hostile body again and again for so long, while others follow the job; how often each was sent."""
    import http.client

    bodies = {name: make() for name, make in HOSTILE.items()}
    watching = []
    for _ in range(WATCHERS):
        watching.append(http.client.HTTPConnection("127.0.0.1", port, timeout=60))
        watching[-1].request("GET", f"/v1/jobs/{job}/events")
    ends_at = time.monotonic() + seconds

    def send(name: str) -> int:
        count = 0
        while time.monotonic() < ends_at:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
            try:
                connection.request("POST", "/v1/jobs", bodies[name], {"Content-Type": "application/json"})
                status = connection.getresponse().status
            except OSError:  # it was refused before it was sent whole
                status = 413
            assert status in (400, 413, 422, 429, 503), (name, status)
            count += 1
            connection.close()
        return count

    with ThreadPoolExecutor(len(bodies)) as threads:
        counts = dict(zip(bodies, threads.map(send, bodies), strict=True))
    for connection in watching:
        connection.close()
    return counts


def _make(client: Any, request: GenerationRequest, count: int) -> None:
    for _ in range(count):
        client.call("POST", "/v1/infer", _body(request))
    client.close()


if __name__ == "__main__":
    main()
