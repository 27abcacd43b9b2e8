"""Stores that earlier releases wrote, opened by this one: everything in them is known, and goes on."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import MetaData, Table, text

from cosmorama.errors import StoreUnavailableError
from cosmorama.jobs.database import MIGRATIONS, REVISION, Database, metadata, upgrade
from cosmorama.jobs.model import Job
from cosmorama.jobs.service import Jobs
from cosmorama.settings import Settings
from tests.jobs.fake import REQUEST, FakeSupervisor, pool_of

DUMP = Path(__file__).parent / "data" / "store_2.sql"
"""What the release of revision 2 wrote: five jobs, one of them in each state."""
LAST = int(ScriptDirectory(str(MIGRATIONS)).get_current_head() or 0)
WITHOUT_ALEMBIC = 2
"""The last revision of which releases took note in a table of their own."""


def opened(url: str, folder: Path) -> list[Job]:
    """The jobs of a store, the newest first, once all of them are over."""

    async def life() -> list[Job]:
        settings = Settings(state_dir=folder, database_url=url, lease_s=1, retention_s=1e10)  # type: ignore[arg-type]
        jobs = Jobs(settings, pool := pool_of(FakeSupervisor(settings)))
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


def dump(path: Path | str = ":memory:") -> sqlite3.Connection:
    """The store of the dump; what waits in it has time."""
    store = sqlite3.connect(path)
    store.executescript(DUMP.read_text())
    store.execute("UPDATE cosmorama_jobs SET deadline_at = 1e10 WHERE deadline_at IS NOT NULL")
    store.commit()
    store.row_factory = sqlite3.Row
    return store


def write(url: str, version: int) -> None:
    """Make a store of a revision, as its release left it, with the jobs of the dump."""
    database = Database(url)
    with closing(dump()) as store, database.write() as connection:
        upgrade(connection, str(version))
        if version <= WITHOUT_ALEMBIC:
            connection.execute(text(f"DROP TABLE {REVISION['version_table']}"))
        table = Table("cosmorama_jobs", MetaData(), autoload_with=connection)
        for job in map(dict, store.execute("SELECT * FROM cosmorama_jobs ORDER BY seq")):
            known = {name: value for name, value in job.items() if name in table.c and name != "seq"}
            connection.execute(table.insert().values(known))
    database.close()


@pytest.mark.parametrize("version", range(1, LAST + 1))
def test_a_store_of_an_earlier_release_goes_on(version: int, database_url: str, tmp_path: Path) -> None:
    write(database_url, version)
    check_jobs(opened(database_url, tmp_path))


def test_a_store_that_an_earlier_release_wrote_goes_on(tmp_path: Path) -> None:
    dump(tmp_path / "jobs.sqlite3").close()
    check_jobs(opened(url := f"sqlite:///{tmp_path / 'jobs.sqlite3'}", tmp_path))
    assert differences(url) == []


def check_jobs(jobs: list[Job]) -> None:
    cancelled, waiting, running, failed, made = jobs
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


def differences(url: str) -> list[object]:
    """What is other in a store than the tables that this release works with."""
    database = Database(url)
    with database.read() as connection:
        found = compare_metadata(MigrationContext.configure(connection, opts=REVISION), metadata)
    database.close()
    # A table of releases before the first.
    return [each for each in found if not (each[0] == "remove_table" and each[1].name == "cosmorama_watched")]


CREATE = "import sys; from cosmorama.jobs.database import Database; Database(sys.argv[1]).create()"


@pytest.mark.parametrize("version", [0, *range(1, LAST + 1)])
def test_servers_that_start_at_once_make_the_tables_that_this_release_works_with(
    version: int, database_url: str
) -> None:
    if version:
        write(database_url, version)
    starting = [
        subprocess.Popen([sys.executable, "-c", CREATE, database_url], stderr=subprocess.PIPE) for _ in range(3)
    ]
    for each in starting:
        _, said = each.communicate(timeout=300)
        assert (each.returncode, said.decode()) == (0, "")
    assert differences(database_url) == []


def test_a_store_that_is_up_to_date_is_opened_without_alembic(database_url: str) -> None:
    program = f"{CREATE}; print('alembic' in sys.modules)"
    command = [sys.executable, "-c", program, database_url]
    said = [subprocess.run(command, capture_output=True, check=True, timeout=300).stdout.strip() for _ in range(2)]
    assert said == [b"True", b"False"]


def test_that_a_store_was_brought_up_to_date_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dump(tmp_path / "jobs.sqlite3").close()
    database = Database(f"sqlite:///{tmp_path / 'jobs.sqlite3'}")
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            database.create()
    assert caplog.messages == [f"the job store was of version 2 and is of version {LAST} now"]
    database.close()


@pytest.mark.parametrize(("table", "column"), [("cosmorama_alembic", "version_num"), ("cosmorama_schema", "version")])
def test_a_store_of_a_later_release_is_refused_in_one_sentence(table: str, column: str, database_url: str) -> None:
    database = Database(database_url)
    database.create()
    database.create()  # again, and nothing is wrong
    with database.write() as connection:
        if table != REVISION["version_table"]:
            connection.execute(text(f"DROP TABLE {REVISION['version_table']}"))
        connection.execute(text(f"UPDATE {table} SET {column} = '99'"))
    with pytest.raises(StoreUnavailableError, match=rf"^the job store has version 99, .* reads up to {LAST}$"):
        database.create()
    database.close()
