"""A fleet on paper: servers that share one database, simulated second by second from what one of them costs.

    python -m benchmarks.fleet_sim --json                    # 1 to 1,000 GPUs, with the costs below
    python -m benchmarks.fleet_sim --costs costs.json        # with costs measured by benchmarks.fleet_costs
    python -m benchmarks.fleet_sim --herd                    # all servers want the one first clip, as before 0.2

Every server renews its lease, reads the queue and claims, each a statement that takes time of one of the database's
cores; the statements wait for each other there and nowhere else. Clips arrive at random and take a time of their own.
What comes out: how busy the database is, how late a renewed lease comes, how often a claim is lost to another server,
and what all that costs the clips beyond a fleet that needed no database (the same arrivals on the same GPUs).
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import statistics
from collections import deque
from collections.abc import Generator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import simpy

from cosmorama.jobs.loops import CLAIM_FROM


@dataclass(frozen=True, slots=True)
class Costs:
    """Milliseconds of one database core per statement, as `benchmarks.fleet_costs` measured them (docs/fleet.md)."""

    accept_ms: float = 0.53
    claim_ms: float = 0.36
    finish_ms: float = 0.34
    heartbeat_ms: float = 0.75
    per_held_ms: float = 0.20
    read_ms: float = 0.08
    per_row_ms: float = 0.0012


@dataclass(frozen=True, slots=True)
class Fleet:
    """What is simulated.

    Attributes:
        gpus: A server each.
        clip_s: Mean seconds of work per clip; a clip's own are log-normal around it.
        load: Arrivals, as a part of what the GPUs can make.
        held: Clips that a server holds at a time; they share its GPU.
        claim_from: Clips that a claim names: the database hands out the first of them that nobody else is about to take
            (`FOR UPDATE SKIP LOCKED`). One: all servers want the same, as a database without that has it.
        tick_s: Between two heartbeats, and two looks at a queue in which nothing was told to have changed.
        cores: Of the database.
        lease_s: After so long without a heartbeat a server counts as dead.
        put_s: Seconds to put a clip into the artifact store.
        burst: Clips that come at once at the start, beside the arrivals.
    """

    gpus: int = 8
    clip_s: float = 264
    load: float = 0.85
    held: int = 2
    claim_from: int = CLAIM_FROM
    tick_s: float = 1.0
    cores: int = 8
    lease_s: float = 15
    put_s: float = 0.3
    burst: int = 0
    hours: float = 1.0
    seed: int = 0


@dataclass(slots=True)
class Tally:
    """What was counted."""

    accepted: int = 0
    finished: int = 0
    claims: int = 0
    lost: int = 0
    busy_s: float = 0
    waits_s: list[float] = field(default_factory=list)
    totals_s: list[float] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)
    missed_leases: int = 0


@dataclass(slots=True)
class Clip:
    """A job: when it came, and how long its work takes alone on a GPU."""

    came: float
    work_s: float
    taken: bool = False


class _Held:
    """The clips that a server works on; `changed` happens when there is one more or one less."""

    def __init__(self, env: simpy.Environment) -> None:
        self.clips: list[Clip] = []
        self.changed = env.event()
        self._env = env

    def begin(self, clip: Clip) -> None:
        self.clips.append(clip)
        self._wake()

    def end(self, clip: Clip) -> None:
        self.clips.remove(clip)
        self._wake()

    def _wake(self) -> None:
        self.changed.succeed()
        self.changed = self._env.event()


class Simulation:
    """One fleet for some hours."""

    def __init__(self, fleet: Fleet, costs: Costs) -> None:
        self.fleet, self.costs, self.tally = fleet, costs, Tally()
        self.env = simpy.Environment()
        self.database = simpy.Resource(self.env, capacity=fleet.cores)
        self.queue: deque[Clip] = deque()
        self.running = 0
        self.chance = random.Random(fleet.seed)

    def run(self) -> dict[str, Any]:
        """Simulate, and report."""
        arrivals = self._drawn_arrivals()
        self.env.process(self._clients(arrivals))
        for _ in range(self.fleet.gpus):
            self.env.process(self._server())
        end_s = self.fleet.hours * 3600
        self.env.run(until=end_s)
        tally = self.tally
        ideal = _without_database(arrivals, self.fleet.gpus)
        return {
            "gpus": self.fleet.gpus,
            "claim_from": self.fleet.claim_from,
            "arrivals_per_s": round(len(arrivals) / end_s, 3),
            "accepted": tally.accepted,
            "finished": tally.finished,
            "database_busy": round(tally.busy_s / (end_s * self.fleet.cores), 3),
            "claims_lost": round(tally.lost / max(tally.claims, 1), 3),
            "heartbeat_late_s": _percentiles(tally.late_s),
            "leases_missed": tally.missed_leases,
            "wait_s": _percentiles(tally.waits_s),
            "total_s": _percentiles(tally.totals_s),
            "total_ideal_s": _percentiles([total for end, total in ideal if end <= end_s]),
        }

    def _drawn_arrivals(self) -> list[Clip]:
        fleet, chance = self.fleet, self.chance
        rate = fleet.load * fleet.gpus / fleet.clip_s
        spread = 0.5  # of the logarithm: one clip in ten takes twice the median
        scale = fleet.clip_s / 2.718281828 ** (spread**2 / 2)

        def work() -> float:
            return float(scale * chance.lognormvariate(0, spread))

        clips, now = [Clip(0.0, work()) for _ in range(fleet.burst)], 0.0
        while (now := now + chance.expovariate(rate)) < fleet.hours * 3600:
            clips.append(Clip(now, work()))
        return clips

    def _clients(self, arrivals: list[Clip]) -> Generator[simpy.Event, Any, None]:
        for clip in arrivals:
            yield self.env.timeout(max(clip.came - self.env.now, 0))
            self.env.process(self._accept(clip))

    def _accept(self, clip: Clip) -> Generator[simpy.Event, Any, None]:
        yield from self._statement(self.costs.accept_ms)
        self.tally.accepted += 1
        self.queue.append(clip)

    def _server(self) -> Generator[simpy.Event, Any, None]:
        fleet, held = self.fleet, _Held(self.env)
        yield self.env.timeout(self.chance.random() * fleet.tick_s)  # they were not started at the same moment
        self.env.process(self._heartbeats(held))
        while True:
            # Read even when full: that is how a cancellation, and another server's end, come to be known.
            rows = len(self.queue) + self.running
            seen = list(self.queue)
            yield from self._statement(self.costs.read_ms + rows * self.costs.per_row_ms)
            while seen and len(held.clips) < fleet.held:
                self.tally.claims += 1
                # All servers order the queue alike, so all want the first.
                named = seen[: fleet.claim_from]
                if not (yield from self._take(named, held)):
                    break  # what it saw is old: it reads anew
                seen = [clip for clip in seen if not clip.taken]
            else:
                yield self.env.any_of([self.env.timeout(fleet.tick_s), held.changed])

    def _take(self, named: list[Clip], held: _Held) -> Generator[simpy.Event, Any, bool]:
        """Claim one of some clips; whether there was one left. It is ours while the statement runs."""
        clip = next((clip for clip in named if not clip.taken), None)
        if clip is not None:
            clip.taken = True
        yield from self._statement(self.costs.claim_ms)
        if clip is None:
            self.tally.lost += 1
            return False
        self.queue.remove(clip)
        self.running += 1
        self.tally.waits_s.append(self.env.now - clip.came)
        held.begin(clip)
        self.env.process(self._generate(clip, held))
        return True

    def _generate(self, clip: Clip, held: _Held) -> Generator[simpy.Event, Any, None]:
        # Steps of the clips that a server holds are interleaved: the GPU is shared evenly.
        left = clip.work_s
        while left > 1e-9:
            share, begun = len(held.clips), self.env.now
            turn = self.env.timeout(left * share)
            yield turn | held.changed
            left -= (self.env.now - begun) / share
        yield self.env.timeout(self.fleet.put_s)
        yield from self._statement(self.costs.finish_ms)
        held.end(clip)
        self.running -= 1
        self.tally.finished += 1
        self.tally.totals_s.append(self.env.now - clip.came)

    def _heartbeats(self, held: _Held) -> Generator[simpy.Event, Any, None]:
        while True:
            wanted = self.env.now
            yield from self._statement(self.costs.heartbeat_ms + len(held.clips) * self.costs.per_held_ms)
            late = self.env.now - wanted
            self.tally.late_s.append(late)
            self.tally.missed_leases += late > self.fleet.lease_s - self.fleet.tick_s
            yield self.env.timeout(max(self.fleet.tick_s - late, 0))

    def _statement(self, cost_ms: float) -> Generator[simpy.Event, Any, None]:
        with self.database.request() as core:
            yield core
            yield self.env.timeout(cost_ms / 1000)
            self.tally.busy_s += cost_ms / 1000


def _without_database(arrivals: list[Clip], gpus: int) -> list[tuple[float, float]]:
    """End and time from arrival to end of the same clips, first come, first served, on GPUs that nobody hands out."""
    free = [0.0] * gpus
    ends = []
    for clip in arrivals:
        end = max(heapq.heappop(free), clip.came) + clip.work_s
        ends.append((end, end - clip.came))
        heapq.heappush(free, end)
    return ends


def _percentiles(values: list[float]) -> dict[str, float]:
    if len(values) < 2:
        return dict.fromkeys(("p50", "p90", "p99"), round(values[0], 3) if values else 0.0)
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50": round(cuts[49], 3), "p90": round(cuts[89], 3), "p99": round(cuts[98], 3)}


def fleets(arguments: argparse.Namespace) -> list[Fleet]:
    """Those that were asked for."""
    claim_from = 1 if arguments.herd else CLAIM_FROM
    return [
        Fleet(gpus, load=arguments.load, hours=arguments.hours, claim_from=claim_from, burst=gpus * 2)
        for gpus in arguments.gpus
    ]


def main() -> None:
    """Parse arguments, simulate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, nargs="*", default=[1, 10, 100, 300, 1000])
    parser.add_argument("--herd", action="store_true", help="a claim names only the first clip of the queue")
    parser.add_argument("--load", type=float, default=0.85)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--costs", type=Path, help="JSON with the fields of Costs")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a line per fleet")
    arguments = parser.parse_args()
    costs = Costs(**json.loads(arguments.costs.read_text())) if arguments.costs else Costs()
    reports = []
    for fleet in fleets(arguments):
        reports.append(Simulation(fleet, costs).run())
        if not arguments.json:
            print(reports[-1], flush=True)
    if arguments.json:
        print(json.dumps({"costs": asdict(costs), "fleets": reports}, indent=2))


if __name__ == "__main__":
    main()
