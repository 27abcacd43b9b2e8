"""A store that the release before wrote, opened by this one: everything in it is known, and goes on."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from cosmorama.jobs.database import SCHEMA_VERSION
from cosmorama.jobs.model import Job
from cosmorama.jobs.service import Jobs
from cosmorama.settings import Settings
from tests.jobs.fake import REQUEST, FakeSupervisor, pool_of

STORES = sorted((Path(__file__).parent / "data").glob("store_*.sql"))
"""Dumps of what each release wrote, by the version of its schema: five jobs, one of them in each state."""


def opened(folder: Path) -> list[Job]:
    """The jobs of a store, the newest first, once all of them are over."""

    async def life() -> list[Job]:
        supervisor = FakeSupervisor(settings := Settings(state_dir=folder, lease_s=1, retention_s=1e10))
        jobs = Jobs(settings, pool := pool_of(supervisor))
        await jobs.start()
        await pool.start()
        try:
            async with asyncio.timeout(120):
                listed = (await jobs.list()).jobs
                ended = [await jobs.wait(job.id) for job in listed]
                # The same key gives the same job again.
                again = await jobs.submit(REQUEST, dialect="predict1", owner="me", idempotency_key="k")
                assert again.id == ended[-1].id
                return ended
        finally:
            await jobs.stop()
            jobs.close()

    return asyncio.run(life())


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION + 1))
def test_a_store_of_an_earlier_release_goes_on(version: int, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "jobs.sqlite3") as database:
        database.executescript(STORES[0].read_text())
        database.execute("UPDATE cosmorama_jobs SET deadline_at = 1e10 WHERE deadline_at IS NOT NULL")
        if version == 1:  # it lacked one column
            database.execute("ALTER TABLE cosmorama_jobs DROP COLUMN blamed_at")
            database.execute("UPDATE cosmorama_schema SET version = 1")
    database.close()
    cancelled, waiting, running, failed, made = opened(tmp_path)
    assert (made.state, made.metadata, made.idempotency_key, made.owner) == ("succeeded", {"order": "17"}, "k", "me")
    assert made.request.prompt == REQUEST.prompt
    assert made.result is not None
    assert made.result.outcome.seed == REQUEST.seed
    assert (failed.state, failed.priority, failed.dialect) == ("failed", "high", "openai")
    assert failed.error is not None
    assert failed.error.text == "image: cannot be read"
    assert (running.state, running.attempts) == ("succeeded", 2)  # its server is dead
    assert (waiting.state, waiting.request.image) == ("succeeded", "https://example.com/a.png")
    assert waiting.webhook_url == "http://example.com/done"
    assert cancelled.state == "cancelled"
    assert all(job.readable for job in (cancelled, waiting, running, failed, made))


def test_each_version_that_a_store_can_have_has_its_way_here() -> None:
    assert [path.stem for path in STORES] == [f"store_{version}" for version in range(2, SCHEMA_VERSION + 1)]
