"""What the statements of a fleet cost a Postgres, in milliseconds of one core: for `benchmarks.fleet_sim --costs`.

    python -m benchmarks.fleet_costs postgresql://... --out costs.json      # an empty database of its own

Each statement is run many times by the store itself, among rows of finished and of open jobs. What is counted is the
processor time of the one server process that answers, from /proc: Postgres has to run on this machine, and other load
does not matter.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from sqlalchemy import text

from benchmarks.fleet_sim import Costs
from cosmorama.jobs.database import Database
from cosmorama.jobs.loops import CLAIM_FROM
from cosmorama.jobs.model import Job
from cosmorama.jobs.store import Claim, Finish, Limits, Store
from cosmorama.progress import Progress
from cosmorama.request import Capabilities, GenerationRequest
from cosmorama.resolve import resolve

FINISHED, OPEN = 5_000, 1_000
REQUEST = resolve(GenerationRequest(prompt="a red ball rolls to the right", seed=1), Capabilities(model="m"))
LIMITS = Limits(1_000_000, 2)
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


def new_job(number: int) -> Job:
    """A job to accept."""
    return Job(
        id=f"job_{number:08}",
        state="queued",
        request=REQUEST,
        dialect="cosmorama",
        model="m",
        owner="",
        priority="normal",
        created_at=time.time(),
    )


class Meter:
    """Processor time of the process that serves the one connection."""

    def __init__(self, database: Database) -> None:
        with database.read() as connection:
            self._pid = int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())

    def spent_s(self) -> float:
        """So far, user and system."""
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS

    async def ms(self, work: Callable[[int], Awaitable[object]], times: int) -> float:
        """Milliseconds of one core per call."""
        begun = self.spent_s()
        for number in range(times):
            await work(number)
        return round((self.spent_s() - begun) * 1000 / times, 4)


async def measure(url: str, finished: int = FINISHED, opened: int = OPEN) -> Costs:
    """The costs, in a database that is empty."""
    database = Database(url)
    # One connection, whose server process is looked at.
    database.threads = ThreadPoolExecutor(1)
    store = Store(database, lease_s=15)
    await store.create()
    count = iter(range(100_000_000))

    async def accept() -> str:
        return await store.accept(new_job(next(count)), LIMITS)

    async def claim(ids: list[str]) -> Claim:
        claimed = await store.claim(ids, "server")
        assert claimed is not None
        return claimed[0]

    for _ in range(finished):
        await store.finish(await claim([await accept()]), Finish("cancelled"))
    meter = Meter(database)
    accept_ms = await meter.ms(lambda _: accept(), opened)
    with database.read() as connection:
        waiting = [row[0] for row in connection.execute(text("SELECT id FROM cosmorama_jobs WHERE state = 'queued'"))]
    known = {job.id: job.request for job in (await store.unfinished({}))[0]}
    read_all_ms = await meter.ms(lambda _: store.unfinished(known), 200)
    claims: list[Claim] = []

    async def claim_next(number: int) -> None:
        claims.append(await claim(waiting[number : number + CLAIM_FROM]))

    claim_ms = await meter.ms(claim_next, opened // 2)
    few = claims[:2]
    heartbeat_2_ms = await meter.ms(lambda _: store.heartbeat("nobody"), 200)
    heartbeat_all_ms = await meter.ms(lambda _: store.heartbeat("server"), 50)
    advance_ms = await meter.ms(lambda n: store.advance({c: Progress("denoise", n % 35, 35) for c in few}), 200)
    finish_ms = await meter.ms(lambda n: store.finish(claims[n], Finish("cancelled")), opened // 2)
    empty_ms = await meter.ms(lambda _: store.results(["nobody"]), 500)
    database.close()
    return Costs(
        accept_ms=accept_ms,
        claim_ms=claim_ms,
        finish_ms=finish_ms,
        heartbeat_ms=heartbeat_2_ms,
        per_held_ms=round((heartbeat_all_ms - heartbeat_2_ms) / (opened // 2) + advance_ms / 2, 4),
        read_ms=empty_ms,
        per_row_ms=round(max(read_all_ms - empty_ms, 0) / opened, 5),
    )


def main() -> None:
    """Parse arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="SQLAlchemy URL of an empty Postgres database on this machine")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    costs = json.dumps(asdict(asyncio.run(measure(arguments.url))), indent=2)
    if arguments.out:
        arguments.out.write_text(costs + "\n")
    print(costs)


if __name__ == "__main__":
    main()
