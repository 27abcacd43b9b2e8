"""A load generator for any server that speaks one of the dialects: latency, throughput, failures, time to cancel.

It measures as a client sees it: from the first byte of a request to the answer, or, where a job is asked for until it
is over, to the first look that finds it over. So a job's latency is up to one `poll_s` too long; the report names it.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import httpx

from cosmorama import strictjson
from cosmorama.client.protocol import address_of
from cosmorama.errors import CosmoramaError, InvalidRequestError, Problem

Target = Literal["infer", "jobs", "videos"]
JSON = dict[str, Any]

_PROMPT = "a red ball rolls to the right on a green floor"
BODIES: Mapping[Target, JSON] = {
    "infer": {
        "prompt": _PROMPT,
        "video_params": {"width": 1280, "height": 704, "frames_count": 121, "frames_per_sec": 24},
    },
    "jobs": {"prompt": _PROMPT},
    "videos": {"prompt": _PROMPT},
}
"""What is sent where no body is given; the seed is added."""

_OVER = {"succeeded", "completed", "failed", "cancelled", "expired", "incomplete"}
_GOOD = {"succeeded", "completed"}
MISSED_LOOKS = 5
"""So many looks at a job in a row may fail before it counts as failed itself."""
_BEGUN = {"running", "in_progress", "processing"}


class BenchError(CosmoramaError):
    """The server cannot be measured, or a request failed.

    Attributes:
        said: The server's own words, where it had some.
    """

    def __init__(self, message: str, said: str = "") -> None:
        self.said = said
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is sent, and how.

    Attributes:
        target: `infer` answers with the clip; `jobs` and `videos` are asked until the job is over.
        body: Of every request; `seed` is counted up from `seed`, so that no cache answers twice.
        requests: Per run.
        cancels: Jobs that are cancelled once they are at work, one after the other, after the runs.
        poll_s: Seconds between two looks at a job.
        timeout_s: After so long without an end a request counts as failed.
        path: Where requests go to; None: the target's own.
    """

    target: Target
    body: JSON
    requests: int = 16
    cancels: int = 0
    seed: int = 0
    poll_s: float = 0.1
    timeout_s: float = 1800
    path: str | None = None


@dataclass(slots=True)
class Run:
    """What one run measured; times in seconds.

    Attributes:
        concurrency: Requests under way at a time; None where they came by themselves, `rate` per second.
    """

    concurrency: int | None
    rate: float | None = None
    wall_s: float = 0
    latencies_s: list[float] = field(default_factory=list)
    accepted_s: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)

    def report(self) -> JSON:
        """Of this run, as JSON."""
        return {
            "concurrency": self.concurrency,
            "rate_per_s": self.rate,
            "wall_s": round(self.wall_s, 3),
            "completed": len(self.latencies_s),
            "failed": sum(self.failures.values()),
            "failures": dict(self.failures),
            "throughput_per_s": round(len(self.latencies_s) / self.wall_s, 4) if self.wall_s else 0.0,
            "latency_s": spread(self.latencies_s),
            "accepted_s": spread(self.accepted_s),
        }


def spread(seconds: Sequence[float]) -> JSON | None:
    """Mean and percentiles (linear between ranks); None of nothing."""
    if not seconds:
        return None
    cuts = statistics.quantiles(seconds, n=100, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 99
    named = {"mean": statistics.fmean(seconds), "min": min(seconds), "p50": cuts[49], "p90": cuts[89], "p95": cuts[94]}
    return {name: round(value, 4) for name, value in (named | {"p99": cuts[98], "max": max(seconds)}).items()}


class Bench:
    """Sends one plan's requests to one server. An async context manager."""

    def __init__(self, url: str, plan: Plan, api_key: str | None = None) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        # One connection per request under way, kept between requests, as a client library does.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
        self._http = httpx.AsyncClient(
            base_url=address_of(url), headers=headers, limits=limits, timeout=httpx.Timeout(plan.timeout_s, connect=10)
        )
        self.said = ""
        """What the server said of the first request that failed."""
        self._plan = plan
        self._sent = 0
        self._path = plan.path or {"infer": "/v1/infer", "jobs": "/v1/jobs", "videos": "/v1/videos"}[plan.target]

    async def __aenter__(self) -> Bench:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._http.aclose()

    async def closed(self, concurrency: int, on_end: Callable[[], None] = lambda: None) -> Run:
        """So many clients, each sending its next request once its last is answered."""
        run, left = Run(concurrency), iter(range(self._plan.requests))

        async def client() -> None:
            for _ in left:
                await self._measured(run)
                on_end()

        begun = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(concurrency)))
        run.wall_s = time.perf_counter() - begun
        return run

    async def open(self, rate: float, on_end: Callable[[], None] = lambda: None) -> Run:
        """Requests that come by themselves, `rate` per second in the mean, whatever the server does (Poisson)."""
        run, chance = Run(None, rate), random.Random(self._plan.seed)

        async def one() -> None:
            await self._measured(run)
            on_end()

        begun = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._plan.requests):
                tasks.create_task(one())
                await asyncio.sleep(chance.expovariate(rate))
        run.wall_s = time.perf_counter() - begun
        return run

    async def cancels(self, on_end: Callable[[], None] = lambda: None) -> JSON | None:
        """Seconds from the wish to cancel to the job's end, of jobs that are at work. None where none was asked for.

        Raises:
            BenchError: a job cannot be cancelled.
        """
        if not self._plan.cancels:
            return None
        seconds, early = [], 0
        for _ in range(self._plan.cancels):
            job = await self._submit()
            state = await self._until(job, _BEGUN | _OVER)
            if state in _OVER:
                early += 1
            else:
                begun = time.perf_counter()
                await self._cancel(job)
                if await self._until(job, _OVER | {"gone"}, poll_s=0.005) in _GOOD:
                    early += 1
                else:
                    seconds.append(time.perf_counter() - begun)
            on_end()
        return {"cancelled": len(seconds), "ended_before": early, "cancel_s": spread(seconds)}

    async def _measured(self, run: Run) -> None:
        begun = time.perf_counter()
        try:
            async with asyncio.timeout(self._plan.timeout_s):
                if self._plan.target == "infer":
                    self._checked(await self._http.post(self._path, json=self._body()))
                else:
                    job = await self._submit()
                    run.accepted_s.append(time.perf_counter() - begun)
                    if (state := await self._until(job, _OVER)) not in _GOOD:
                        run.failures[state] += 1
                        return
        except TimeoutError:
            run.failures["timeout"] += 1
        except httpx.TransportError as error:
            run.failures[type(error).__name__] += 1
        except BenchError as error:
            run.failures[str(error)] += 1
            self.said = self.said or error.said
        else:
            run.latencies_s.append(time.perf_counter() - begun)

    def _body(self) -> JSON:
        self._sent += 1
        return {"seed": self._plan.seed + self._sent, **self._plan.body}

    async def _submit(self) -> str:
        answer = self._checked(await self._http.post(self._path, json=self._body()))
        return str(answer.json()["id"])

    async def _until(self, job: str, states: set[str], poll_s: float | None = None) -> str:
        missed = 0
        while True:
            try:
                answer = await self._http.get(f"{self._path}/{job}")
            except httpx.TransportError:  # of one look, such as a kept connection that the server had just closed
                if (missed := missed + 1) == MISSED_LOOKS:
                    raise
            else:
                missed = 0
                if answer.status_code == 404 and "gone" in states:
                    return "gone"  # a server whose DELETE removes what it cancels
                record = self._checked(answer).json()
                state = str(record.get("state") or record.get("status"))
                if state in states:
                    return state
            await asyncio.sleep(self._plan.poll_s if poll_s is None else poll_s)

    async def _cancel(self, job: str) -> None:
        if self._plan.target == "jobs":
            self._checked(await self._http.post(f"{self._path}/{job}/cancel"))
        else:
            self._checked(await self._http.delete(f"{self._path}/{job}"))

    def _checked(self, answer: httpx.Response) -> httpx.Response:
        if answer.is_success:
            return answer
        kind = said = ""
        with suppress(ValueError, AttributeError):
            error = answer.json().get("error")
            if isinstance(error, dict):
                kind, said = f" {error.get('type') or error.get('code')}", str(error.get("message") or "")
        raise BenchError(f"{answer.status_code}{kind}", said)


async def measure(
    url: str,
    plan: Plan,
    *,
    concurrency: Sequence[int] = (1,),
    rates: Sequence[float] = (),
    warm_up: int = 1,
    api_key: str | None = None,
    on_end: Callable[[], None] = lambda: None,
) -> JSON:
    """Measure a server at each concurrency and at each rate of arrival.

    Args:
        url: Of the server; `http://` where no scheme is given.
        concurrency: Clients at a time, a run each.
        rates: Requests per second that come by themselves, a run each.
        warm_up: Requests before, which do not count.
        on_end: Called at every end of a request that counts.

    Raises:
        BenchError: the first request already fails: the server, the key or the body is not right.
    """
    started_at = time.time()
    if plan.cancels and plan.target == "infer":
        raise BenchError("time to cancel: /v1/infer has no job to cancel; measure 'jobs' or 'videos'")
    async with Bench(url, plan, api_key) as bench:
        for _ in range(max(warm_up, 0)):
            first = Run(1)
            await bench._measured(first)
            if first.failures:
                said = f": {bench.said[:500]}" if bench.said else ""
                raise BenchError(f"{url} answers the first request with {next(iter(first.failures))}{said}")
        runs: list[Awaitable[Run]] = [bench.closed(count, on_end) for count in concurrency]
        runs += [bench.open(rate, on_end) for rate in rates]
        done = [await run for run in runs]
        cancels = await bench.cancels(on_end)
    return {
        "url": url,
        "started_at": started_at,
        "plan": asdict(plan),
        "runs": [run.report() for run in done],
        "cancel": cancels,
    }


def read_body(path: Path) -> JSON:
    """A request's body from a file.

    Raises:
        InvalidRequestError: it holds no JSON object.
        OSError: it cannot be read.
    """
    try:
        body = strictjson.loads(path.read_bytes())
    except ValueError as error:
        raise InvalidRequestError(Problem("body", str(path), f"a file with a JSON object: {error}")) from None
    if not isinstance(body, dict):
        raise InvalidRequestError(Problem("body", type(body).__name__, "a JSON object"))
    return body


def check_plot(path: Path) -> None:
    """See whether `plot` could draw, before anything is measured.

    Raises:
        BenchError: matplotlib is not installed, or there is no such folder.
    """
    if find_spec("matplotlib") is None:
        raise BenchError("a plot takes matplotlib: pip install '.[bench]'")
    check_folder(path)


def check_folder(path: Path) -> None:
    """See whether a file could be written.

    Raises:
        BenchError: there is no such folder.
    """
    if not path.absolute().parent.is_dir():
        raise BenchError(f"{path}: there is no folder {path.absolute().parent}")


def plot(report: JSON, path: Path) -> None:
    """Draw latency and throughput of a report's runs.

    Raises:
        BenchError: matplotlib is not installed.
    """
    check_plot(path)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    runs = [run for run in report["runs"] if run["latency_s"]]
    names = [str(run["concurrency"]) if run["concurrency"] else f"{run['rate_per_s']:g}/s" for run in runs]
    places = range(len(runs))
    kinds = {"requests at a time" if run["concurrency"] else "arrivals per second" for run in runs}
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name in ("p50", "p90", "p99"):
        left.plot(places, [run["latency_s"][name] for run in runs], marker="o", label=name)
    left.set(title="Latency", ylabel="seconds")
    left.legend()
    completed, failed = ([run[count] / run["wall_s"] for run in runs] for count in ("completed", "failed"))
    right.bar(places, completed, color="tab:blue", label="completed")
    if any(failed):
        right.bar(places, failed, bottom=completed, color="tab:red", label="failed")
    right.set(title="Requests per second")
    right.legend()
    for axes in (left, right):
        axes.set_xticks(list(places), names)
        axes.set(xlabel=" or ".join(sorted(kinds, reverse=True)), ylim=(0, axes.get_ylim()[1] * 1.05))
    figure.suptitle(f"{report['plan']['target']} on {report['url']}, {report['plan']['requests']} requests a run")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
