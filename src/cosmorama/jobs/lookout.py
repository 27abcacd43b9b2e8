"""Keeps the board in step with the store, and tells jobs where they stand on it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from cosmorama.jobs.board import Board
from cosmorama.jobs.record import Job
from cosmorama.jobs.runner import Running
from cosmorama.jobs.upkeep import Upkeep

BOARD_AGE_S = 1.5
"""How old the board may be for those who ask where a job stands. The dispatcher reads it anew every second anyway."""


class Lookout:
    """Reads the queue, as seldom as it may.

    Args:
        upkeep, call: The store, and how to call its blocking methods.
        board: Filled by `look`.
    """

    def __init__(self, upkeep: Upkeep, call: Callable[..., Awaitable[Any]], board: Board) -> None:
        self.board = board
        self._upkeep = upkeep
        self._call = call
        self._looking = asyncio.Lock()
        self._began_at = float("-inf")

    async def look(self) -> None:
        """Read the queue anew. Who asks while it is being read shares the next reading with all who do.

        Raises:
            StoreUnavailableError: the database is away.
        """
        asked_at = time.monotonic()
        async with self._looking:
            if self._began_at > asked_at and self.board.seen_at > asked_at:
                return
            self._began_at = time.monotonic()
            self.board.begin()
            unfinished = await self._call(self._upkeep.unfinished)
            unknown = self.board.unknown(unfinished)
            requests = await self._call(self._upkeep.requests, unknown) if unknown else {}
            self.board.see(unfinished, requests)

    async def placed(self, jobs: tuple[Job, ...], running: Mapping[str, Running]) -> tuple[Job, ...]:
        """Jobs with their places in the queue and their ETAs; `running` are those that run here, by id."""
        if all(job.final for job in jobs):
            return jobs
        # Of the jobs that run here more is known than the store has been told.
        jobs = tuple(
            replace(job, progress=running[job.id].job.progress) if job.state == "running" and job.id in running else job
            for job in jobs
        )
        open_ids = {job.id for job in jobs if not job.final}
        too_old = time.monotonic() - self.board.seen_at > BOARD_AGE_S
        if too_old or any(job_id not in self.board for job_id in open_ids):
            await self.look()
        standings = self.board.standings(open_ids)
        return tuple(
            replace(job, queue_position=standings[job.id].position, eta_s=standings[job.id].eta_s)
            if job.id in standings
            else job
            for job in jobs
        )
