"""Jobs as routes use them, on a supervisor that makes clips in milliseconds."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from cosmorama.engine.outcome import Outcome
from cosmorama.engine.scheduler import PREPARING_PER_OWNER
from cosmorama.errors import (
    ContentGoneError,
    InvalidRequestError,
    JobConflictError,
    JobNotFoundError,
    MediaError,
    NotReadyError,
    QueueFullError,
    StoreUnavailableError,
    WorkerError,
)
from cosmorama.jobs.channel import JobEvent, Observer
from cosmorama.jobs.database import Database, in_thread
from cosmorama.jobs.database import jobs as table
from cosmorama.jobs.files import Artifacts
from cosmorama.jobs.model import Job
from cosmorama.jobs.service import Jobs
from cosmorama.jobs.store import Claim, Store
from cosmorama.progress import Progress
from cosmorama.request import Capabilities, GenerationRequest
from cosmorama.settings import Settings
from tests.jobs.conftest import Postgres
from tests.jobs.fake import REQUEST, FakeSupervisor, pool_of

SLOW = replace(REQUEST, steps=50)


def settings_in(folder: Path, **changes: object) -> Settings:
    return Settings(**{"state_dir": folder, "lease_s": 1} | changes)  # type: ignore[arg-type]


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[tuple[Jobs, FakeSupervisor]]:
    supervisor = FakeSupervisor(settings)
    jobs = Jobs(settings, pool_of(supervisor))
    await jobs.start()
    try:
        yield jobs, supervisor
    finally:
        await jobs.stop()
        jobs.close()


def run(test: Callable[[], Awaitable[None]], limit_s: float = 240) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(limit_s):
            await test()

    asyncio.run(bounded())


async def content(jobs: Jobs, job_id: str) -> bytes:
    return (await jobs.checkout(await jobs.get(job_id))).read_bytes()


def test_submit_wait_fetch_delete(tmp_path: Path) -> None:
    async def life() -> None:
        async with running(settings_in(tmp_path)) as (jobs, supervisor):
            job = await jobs.submit(REQUEST, dialect="predict1", metadata={"a": "b"})
            assert job.state in ("queued", "running")
            job = await jobs.wait(job.id)
            assert job.state == "succeeded"
            assert job.result is not None
            assert job.result.outcome.seed == 3
            assert (await content(jobs, job.id)).startswith(b"a whole clip of a red ball")
            copy = await jobs.checkout(job)
            assert copy.name == "clip.mp4"
            assert copy.read_bytes() == await content(jobs, job.id)
            await jobs.delete(job.id)
            assert copy.exists()
            with pytest.raises(JobNotFoundError):
                await jobs.get(job.id)
            assert [path for path in (tmp_path / "artifacts").rglob("*") if path.is_file()] == []
            assert len(supervisor.started) == 1

    run(life)
    assert list((tmp_path / "scratch").iterdir()) == []


def test_inline_media_goes_to_the_artifact_store_and_back_to_the_worker(tmp_path: Path) -> None:
    picture = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 100

    async def life() -> None:
        async with running(settings_in(tmp_path)) as (jobs, supervisor):
            request = replace(REQUEST, image=base64.b64encode(picture).decode())
            job = await jobs.submit(request, dialect="predict1")
            assert job.request.image == Path(f"inputs/{job.id}/image")
            assert job.request.mode == "image2world"
            await jobs.wait(job.id)
            assert supervisor.seen[0].image == picture
            link = await jobs.submit(replace(REQUEST, image="https://example.com/a.png"), dialect="predict1")
            await jobs.wait(link.id)
            assert supervisor.seen[1].image == "https://example.com/a.png"
            with pytest.raises(MediaError, match="base64"):
                await jobs.submit(replace(REQUEST, image="no picture!"), dialect="predict1")
            with pytest.raises(MediaError, match="local file"):
                await jobs.submit(replace(REQUEST, image=Path("/etc/hostname")), dialect="predict1")
        database = (tmp_path / "jobs.sqlite3").read_bytes()
        assert picture[:64] not in database
        assert base64.b64encode(picture)[:64] not in database

    run(life)


def test_what_is_refused_is_refused_before_anything_is_stored(tmp_path: Path) -> None:
    async def life() -> None:
        async with running(settings_in(tmp_path)) as (jobs, supervisor):
            for bad in (
                {"deadline_s": 0.0},
                {"idempotency_key": ""},
                {"metadata": {"a": "b" * 513}},
                {"webhook_url": "http://example.com/"},
                {"priority": "urgent"},
            ):
                with pytest.raises(InvalidRequestError, match=f"(?i){next(iter(bad)).partition('_')[0]}"):
                    await jobs.submit(REQUEST, dialect="predict1", **bad)  # type: ignore[arg-type]
            with pytest.raises(InvalidRequestError, match="steps"):
                await jobs.submit(replace(REQUEST, steps=99), dialect="predict1")
            supervisor.ready, supervisor.reason = False, "the model is loading"
            with pytest.raises(NotReadyError, match="loading"):
                await jobs.submit(REQUEST, dialect="predict1", attached=True)
            assert (await jobs.list()).jobs == ()
            # Who does not wait on a connection needs no worker now: what it takes is known from before.
            later = await jobs.submit(REQUEST, dialect="predict1")
            assert later.state == "queued"
            for limit in (0, 101):
                with pytest.raises(InvalidRequestError, match="limit"):
                    await jobs.list(limit=limit)
            with pytest.raises(InvalidRequestError, match="cursor"):
                await jobs.list(cursor="nobody")

    run(life)


def test_jobs_are_accepted_while_a_model_loads_that_was_there_before(tmp_path: Path) -> None:
    class Loading(FakeSupervisor):
        def __init__(self, settings: Settings) -> None:
            super().__init__(settings)
            self.ready, self.capabilities, self.reason = False, None, "the model is loading"

        async def start(self) -> None:
            pass

        def load(self) -> None:
            self.ready, self.capabilities = True, Capabilities(model="fake")
            self.on_ready()

    async def started() -> tuple[Jobs, Loading]:
        supervisor = Loading(settings := settings_in(tmp_path))
        pool = pool_of(supervisor)
        jobs = Jobs(settings, pool)
        await jobs.start()
        await pool.start()
        return jobs, supervisor

    async def life() -> None:
        jobs, supervisor = await started()
        with pytest.raises(NotReadyError, match="loading"):
            await jobs.submit(REQUEST, dialect="p")
        supervisor.load()
        await jobs.wait((await jobs.submit(REQUEST, dialect="p")).id)
        while not await jobs._fleet.register.remembered():
            await asyncio.sleep(0.02)
        await jobs.stop()
        jobs.close()
        jobs, supervisor = await started()
        job = await jobs.submit(REQUEST, dialect="p")
        assert job.model == "fake"
        with pytest.raises(InvalidRequestError, match="steps"):
            await jobs.submit(replace(REQUEST, steps=99), dialect="p")
        with pytest.raises(NotReadyError, match="loading"):  # who waits on a connection is told now
            await jobs.submit(REQUEST, dialect="p", attached=True)
        supervisor.load()
        assert (await jobs.wait(job.id)).state == "succeeded"
        await jobs.stop()
        jobs.close()

    run(life)


def test_a_full_queue_says_when_to_come_again(tmp_path: Path) -> None:
    async def life() -> None:
        async with running(settings_in(tmp_path, max_active=1, max_queue=1)) as (jobs, supervisor):
            await jobs.wait((await jobs.submit(REQUEST, dialect="predict1")).id)  # something is measured
            supervisor.gate.clear()
            first = await jobs.submit(SLOW, dialect="predict1")
            while len(supervisor.started) < 2:
                await asyncio.sleep(0.005)
            second = await jobs.submit(SLOW, dialect="predict1")
            with pytest.raises(QueueFullError, match="number") as refused:
                await jobs.submit(SLOW, dialect="predict1")
            assert refused.value.retry_after_s is not None
            assert 0 < refused.value.retry_after_s < 60
            second = await jobs.get(second.id)
            assert second.queue_position == 1
            first = await jobs.get(first.id)
            assert first.queue_position is None
            assert second.eta_s is not None
            assert first.eta_s is not None
            assert second.eta_s > first.eta_s > 0

    run(life)


def test_idempotency(tmp_path: Path) -> None:
    async def life() -> None:
        async with running(settings_in(tmp_path)) as (jobs, supervisor):
            open_seed = replace(REQUEST, seed=None, image=base64.b64encode(b"\xff\xd8\xffpicture").decode())
            one, two = await asyncio.gather(
                *(jobs.submit(open_seed, dialect="predict1", idempotency_key="k") for _ in range(2))
            )
            assert one.id == two.id
            assert one.request.seed == two.request.seed
            await jobs.wait(one.id)
            again = await jobs.submit(open_seed, dialect="predict1", idempotency_key="k")
            assert (again.id, again.state) == (one.id, "succeeded")
            assert len(supervisor.started) == 1
            for other in (
                replace(open_seed, steps=4),
                replace(open_seed, image=base64.b64encode(b"\xff\xd8\xffother").decode()),
            ):
                with pytest.raises(JobConflictError, match=one.id):
                    await jobs.submit(other, dialect="predict1", idempotency_key="k")
            elsewhere = await jobs.submit(REQUEST, dialect="predict1", idempotency_key="k", owner="other")
            assert elsewhere.id != one.id
            # What the refused and the repeated ones brought is not kept.
            assert {path.parent.name for path in (tmp_path / "artifacts" / "inputs").rglob("image")} == {one.id}

    run(life)


def test_owners_see_their_own(tmp_path: Path) -> None:
    async def life() -> None:
        async with running(settings_in(tmp_path)) as (jobs, _):
            mine = await jobs.submit(REQUEST, dialect="predict1", owner="me")
            await jobs.wait(mine.id)
            for call in (jobs.get, jobs.cancel, jobs.delete):
                with pytest.raises(JobNotFoundError):
                    await call(mine.id, owner="you")
            with pytest.raises(JobNotFoundError):
                await anext(jobs.events(mine.id, owner="you"))
            assert (await jobs.list(owner="you")).jobs == ()
            assert [job.id for job in (await jobs.list(owner="me")).jobs] == [mine.id]

    run(life)


def test_pages_cover_everything_once(tmp_path: Path) -> None:
    async def life() -> None:
        async with running(settings_in(tmp_path)) as (jobs, _):
            made = [(await jobs.submit(REQUEST, dialect="predict1")).id for _ in range(7)]
            for ascending in (False, True):
                seen: list[str] = []
                cursor = None
                while True:
                    page = await jobs.list(cursor=cursor, limit=3, ascending=ascending)
                    seen += [job.id for job in page.jobs]
                    cursor = page.cursor
                    if cursor is None:
                        break
                assert seen == (made if ascending else made[::-1])

    run(life)


def test_cancelling_frees_the_worker_at_once(tmp_path: Path) -> None:
    async def life() -> None:
        async with running(settings_in(tmp_path, max_active=1)) as (jobs, supervisor):
            first = await jobs.submit(SLOW, dialect="predict1")
            second = await jobs.submit(SLOW, dialect="predict1")
            while not supervisor.started:
                await asyncio.sleep(0.005)
            assert (await jobs.cancel(second.id)).state == "cancelled"
            third = await jobs.submit(REQUEST, dialect="predict1")
            cancelled = await jobs.cancel(first.id)
            assert cancelled.state == "cancelled"
            assert cancelled.error is not None
            assert cancelled.error.status == 499
            assert (await jobs.wait(third.id)).state == "succeeded"
            assert supervisor.cancelled == [f"{first.id}.1"]
            assert [name.partition(".")[0] for name in supervisor.started] == [first.id, third.id]
            assert (await jobs.cancel(third.id)).state == "succeeded"
            with pytest.raises(JobConflictError, match="cancelled"):
                jobs.content(await jobs.get(first.id))

    run(life)


def test_failures_keep_their_shape(tmp_path: Path) -> None:
    async def life() -> None:
        async with running(settings_in(tmp_path)) as (jobs, supervisor):
            supervisor.fail = MediaError("image", "cannot be read", status=413)
            failed = await jobs.wait((await jobs.submit(REQUEST, dialect="predict1")).id)
            assert failed.state == "failed"
            assert failed.error is not None
            error = failed.error.exception()
            assert isinstance(error, MediaError)
            assert (error.field, error.status, str(error)) == ("image", 413, "image: cannot be read")
            supervisor.fail = ZeroDivisionError("a secret")
            failed = await jobs.wait((await jobs.submit(REQUEST, dialect="predict1")).id)
            assert failed.error is not None
            assert failed.error.type == WorkerError.kind
            assert "secret" not in failed.error.text

    run(life)


def test_a_job_survives_its_worker_but_not_for_ever(tmp_path: Path) -> None:
    async def life() -> None:
        async with running(settings_in(tmp_path)) as (jobs, supervisor):
            supervisor.die = True
            job = await jobs.wait((await jobs.submit(REQUEST, dialect="predict1")).id)
            assert (job.state, job.attempts) == ("succeeded", 2)

            # At the same step every time: one that gets further did not die of what killed it before.
            supervisor.on_step = lambda: setattr(supervisor, "die", True)
            job = await jobs.wait((await jobs.submit(REQUEST, dialect="predict1")).id)
            assert (job.state, job.attempts) == ("failed", 3)
            assert job.error is not None
            assert "killed by signal 9" in job.error.text
            assert "begun 3 times" in job.error.text

    run(life)


async def _lost(jobs: Jobs, claim: Claim) -> None:
    """As if the server that had this claim were found dead."""
    await jobs._runner.recover(claim, blame=True)


def test_lost_servers_weigh_less_than_lost_workers(tmp_path: Path) -> None:
    async def life() -> None:
        async with running(settings_in(tmp_path)) as (jobs, supervisor):
            supervisor.ready = False
            supervisor.capabilities_of = lambda _: asyncio.sleep(0, Capabilities(model="fake"))  # type: ignore[assignment]
            job = await jobs.submit(REQUEST, dialect="predict1")
            for lost in range(6):
                assert (await jobs.get(job.id)).state == "queued", lost
                claimed = await jobs._store.claim([job.id], "dead")
                assert claimed is not None
                await _lost(jobs, claimed[0])
            ended = await jobs.wait(job.id)
            assert (ended.state, ended.attempts) == ("failed", 6)
            assert ended.error is not None
            assert "given up" in ended.error.text

    run(life)


def test_of_the_suspects_one_is_made_at_a_time(tmp_path: Path) -> None:
    async def life() -> None:
        async with running(settings_in(tmp_path, max_active=3)) as (jobs, supervisor):
            supervisor.gate.clear()
            supervisor.ready = False
            supervisor.capabilities_of = lambda _: asyncio.sleep(0, Capabilities(model="fake"))  # type: ignore[assignment]
            suspects = [(await jobs.submit(REQUEST, dialect="predict1")).id for _ in range(2)]
            for suspect in suspects:
                claimed = await jobs._store.claim([suspect], "dead")
                assert claimed is not None
                await _lost(jobs, claimed[0])
            innocent = await jobs.submit(REQUEST, dialect="predict1")
            supervisor.ready = True
            jobs._dispatcher.wake()
            while len(supervisor.started) < 2:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)
            begun = {name.partition(".")[0] for name in supervisor.started}
            assert innocent.id in begun
            assert len(begun & set(suspects)) == 1
            supervisor.gate.set()
            for job_id in (*suspects, innocent.id):
                assert (await jobs.wait(job_id)).state == "succeeded"

    run(life)


def test_a_deadline_fails_the_job_in_the_queue_and_at_work(tmp_path: Path) -> None:
    async def life() -> None:
        async with running(settings_in(tmp_path, max_active=1)) as (jobs, supervisor):
            supervisor.gate.clear()
            at_work = await jobs.submit(SLOW, dialect="predict1", deadline_s=2)
            while not supervisor.started:
                await asyncio.sleep(0.01)
            waiting = await jobs.submit(replace(SLOW, frames=121), dialect="predict1", deadline_s=0.5)
            for job in [await jobs.wait(job.id) for job in (at_work, waiting)]:
                assert job.state == "failed"
                assert job.error is not None
                assert job.error.status == 504
            assert supervisor.cancelled == [f"{at_work.id}.1"]

    run(life)


def test_short_work_overtakes_long(tmp_path: Path) -> None:
    async def life() -> None:
        async with running(settings_in(tmp_path, max_active=1)) as (jobs, supervisor):
            await jobs.wait((await jobs.submit(REQUEST, dialect="predict1")).id)  # something is measured
            supervisor.gate.clear()
            long = [await jobs.submit(replace(SLOW, seed=i), dialect="predict1") for i in range(3)]
            low = await jobs.submit(replace(REQUEST, steps=1), dialect="predict1", priority="low")
            short = await jobs.submit(replace(REQUEST, steps=1), dialect="predict1")
            # Once its age is of their order, it goes before what runs and what waits.
            while f"{short.id}.1" not in supervisor.started:
                await asyncio.sleep(0.01)
            urgent = await jobs.submit(SLOW, dialect="predict1", priority="high")
            supervisor.gate.set()
            for job in (*long, short, low, urgent):
                assert (await jobs.wait(job.id)).state == "succeeded"
            begun = [name.removesuffix(".1") for name in supervisor.started[1:]]
            assert begun[1:3] == [short.id, urgent.id]
            assert begun[-1] == low.id
            assert {begun[0], *begun[3:5]} == {job.id for job in long}

    run(life)


def test_events_tell_every_stage_and_can_be_resumed(tmp_path: Path) -> None:
    async def life() -> None:
        async with running(settings_in(tmp_path)) as (jobs, supervisor):
            supervisor.gate.clear()
            job = await jobs.submit(replace(REQUEST, steps=5), dialect="predict1")
            seen: list[JobEvent] = []
            async for event in jobs.events(job.id):
                seen.append(event)
                if event.job is not None and event.job.state == "running":
                    supervisor.gate.set()
            numbers = [event.number for event in seen]
            assert numbers == sorted(set(numbers))
            assert seen[-1].kind == "succeeded"
            states = [event.job for event in seen if isinstance(event.job, Job)]
            assert {"denoise", "done"} <= {state.progress.stage for state in states}
            assert [s.progress.step for s in states if s.progress.stage == "denoise"][-1] == 5
            assert any(event.preview is not None and event.preview.startswith(b"jpeg") for event in seen)
            # From the middle on, and from the end on.
            resumed = [event async for event in jobs.events(job.id, after=numbers[1])]
            # The last preview may have come after the second event.
            assert [event.kind for event in resumed if event.kind != "preview"] == ["succeeded"]
            assert [event async for event in jobs.events(job.id, after=numbers[-1])] == []
            # Previews cost time, so they end with the last who watches.
            other = await jobs.submit(SLOW, dialect="predict1")
            async with aclosing(jobs.events(other.id)) as events:
                async for event in events:
                    if event.preview is not None:
                        break
            assert not supervisor.watched[f"{other.id}.1"]

    run(life)


def test_two_servers_share_the_work_and_know_of_each_others_jobs(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, max_active=1, lease_s=60)

    async def life() -> None:
        async with running(settings) as (one, first), running(settings) as (two, second):
            made = await asyncio.gather(*(one.submit(replace(SLOW, seed=i), dialect="predict1") for i in range(6)))
            ended = await asyncio.gather(*(two.wait(job.id) for job in made))
            assert {job.state for job in ended} == {"succeeded"}
            assert [job.attempts for job in ended] == [1] * 6
            assert len(first.started) + len(second.started) == 6
            assert first.started
            assert second.started
            # A job that the other one runs is cancelled too.
            first.gate.clear()
            second.gate.clear()
            other = await one.submit(SLOW, dialect="predict1")
            runs_here = f"{other.id}.1"
            while runs_here not in first.started + second.started:
                await asyncio.sleep(0.01)
            elsewhere = two if runs_here in first.started else one
            await elsewhere.cancel(other.id)
            assert (await elsewhere.wait(other.id)).state == "cancelled"

    run(life)


@pytest.mark.parametrize("look", ["take_over_expired", "end_unwanted", None])
def test_jobs_of_a_dead_server_are_taken_over(look: str | None, tmp_path: Path) -> None:
    """`look`: the lease ends right after this look, of the two that a survivor takes in a turn; None: by itself."""
    settings = settings_in(tmp_path, lease_s=1 if look is None else 60)

    async def life() -> None:
        async with running(settings) as (two, second):
            dead = Jobs(settings, pool_of(supervisor := FakeSupervisor(settings)))
            supervisor.gate.clear()
            second.ready = False
            await dead.start()
            job = await dead.submit(REQUEST, dialect="predict1")
            attached = await dead.submit(REQUEST, dialect="predict1", attached=True)
            while len(supervisor.started) < 2:
                await asyncio.sleep(0.01)
            for task in [*dead._tasks, *(r.task for r in dead._runner.running.values())]:
                assert task is not None
                task.cancel()  # as SIGKILL does it: nothing is written any more
            second.ready = True
            if look is not None:
                looked = getattr(two._store, look)

                async def and_then_the_lease_ends(*arguments: object) -> object:
                    found = await looked(*arguments)
                    setattr(two._store, look, looked)
                    await in_thread(end_leases)(two._store)
                    return found

                setattr(two._store, look, and_then_the_lease_ends)
                await two._dispatcher._expire()
                while (seen := await two.get(attached.id)).state == "queued" or (seen.attempts == 2 and not seen.final):
                    await asyncio.sleep(0.01)  # what was put back into the queue has time to be made
                await two._dispatcher._expire()
            ended = await two.wait(job.id)
            assert (ended.state, ended.attempts) == ("succeeded", 2)
            ended = await two.wait(attached.id)
            assert ended.state == "cancelled"
            assert ended.error is not None
            assert "gone" in ended.error.text

    run(life)


@pytest.mark.parametrize("becomes", ["adopted", "recorded, and the answer lost", "begun anew"])
def test_a_clip_that_was_published_while_the_database_was_away_is_removed_only_if_nobody_has_it(
    becomes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cosmorama.jobs.worker.RECORD_RETRY_S", 0.02)
    settings = settings_in(tmp_path, lease_s=60)

    async def life() -> None:
        async with running(settings) as (one, _), running(settings) as (two, second):
            second.ready = False
            finish, away = one._store.finish, True

            async def finish_while_away(*arguments: Any) -> Job | None:
                if away and becomes.startswith("recorded"):
                    await finish(*arguments)
                if away:
                    raise StoreUnavailableError("the job store cannot be used now")
                return await finish(*arguments)

            monkeypatch.setattr(one._store, "finish", finish_while_away)
            job = await one.submit(REQUEST, dialect="p")
            while one._artifacts.published(job.id, 1) is None:
                await asyncio.sleep(0.01)
            if not becomes.startswith("recorded"):
                if becomes == "begun anew":  # it was not published yet when the other server looked
                    monkeypatch.setattr(two._artifacts, "published", lambda *_: None)
                await in_thread(end_leases)(two._store)
                await two._dispatcher._expire()
                assert (await two.get(job.id)).state == ("queued" if becomes == "begun anew" else "succeeded")
            away = False
            while job.id in one._runner.running or one._runner._background:
                await asyncio.sleep(0.01)
            second.ready = True
            two._dispatcher.wake()
            ended = await two.wait(job.id)
            assert ended.state == "succeeded"
            assert await content(two, job.id)
            attempts = [folder.name for folder in (tmp_path / "artifacts" / "results" / job.id).iterdir()]
            assert attempts == [str(ended.attempts)]

    run(life)


def end_leases(store: Store) -> None:
    """Let a lease have passed since everything that was last heard of."""
    with store.database.write() as connection:
        connection.execute(table.update().values(lease_until=0.0))
        connection.execute(table.update().where(table.c.waiter.is_not(None)).values(waiter_until=0.0))


def test_a_clip_that_was_published_before_the_crash_is_not_made_again(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)

    async def life() -> None:
        async with running(settings) as (jobs, supervisor):
            job = await jobs.wait((await jobs.submit(REQUEST, dialect="predict1")).id)
            before = await content(jobs, job.id)
        # What the disk holds when the power goes between publishing and recording.
        database = Database(f"sqlite:///{tmp_path / 'jobs.sqlite3'}")
        with database.write() as connection:
            values = {"state": "running", "holder": "dead", "lease_until": 0.0, "outcome": None, "result_key": None}
            connection.execute(table.update().values(**values))
        database.close()
        async with running(settings) as (jobs, supervisor):
            job = await jobs.wait(job.id)
            assert (job.state, job.attempts) == ("succeeded", 1)
            assert supervisor.started == []
            assert await content(jobs, job.id) == before

    run(life)


def test_stopping_puts_jobs_back_and_the_next_start_finishes_them(tmp_path: Path) -> None:
    async def life() -> None:
        async with running(settings_in(tmp_path)) as (jobs, supervisor):
            job = await jobs.submit(SLOW, dialect="predict1")
            while not supervisor.started:
                await asyncio.sleep(0.005)
        async with running(settings_in(tmp_path)) as (jobs, supervisor):
            job = await jobs.wait(job.id)
            assert job.state == "succeeded"
            assert (await jobs.get(job.id)).request.seed == supervisor.seen[0].seed

    run(life)


def test_content_can_be_forgotten_and_a_full_store_forgets_the_oldest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cosmorama.jobs.loops.CLEAR_EVERY_S", 0.05)

    async def life() -> None:
        async with running(settings_in(tmp_path, max_artifact_bytes=300)) as (jobs, _):
            made = [(await jobs.wait((await jobs.submit(REQUEST, dialect="p")).id)).id for _ in range(3)]
            while (result := (await jobs.get(made[0])).result) is None or result.key is not None:
                await asyncio.sleep(0.05)
            with pytest.raises(ContentGoneError):
                jobs.content(await jobs.get(made[0]))
            assert await content(jobs, made[2])
            jobs.forget_content(made[2])
            while (result := (await jobs.get(made[2])).result) is None or result.key is not None:
                await asyncio.sleep(0.01)
        async with running(settings_in(tmp_path, retention_s=0.01)) as (jobs, _):
            while (await jobs.list()).jobs:
                await asyncio.sleep(0.05)
        assert [path for path in (tmp_path / "artifacts").rglob("*") if path.is_file()] == []

    run(life)


def test_a_store_that_cannot_be_written_loses_no_clip_and_begins_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cosmorama.jobs.worker.STORE_RETRIES_S", (0.01, 0.01))
    monkeypatch.setattr("cosmorama.jobs.loops.PROBE_EVERY_S", 0.05)
    methods = {name: getattr(Artifacts, name) for name in ("publish", "put", "probe")}
    full = False

    def fragile(name: str) -> Callable[..., object]:
        def method(self: Artifacts, *arguments: object, **options: object) -> object:
            if full:
                raise StoreUnavailableError("the artifact store cannot be used now (it is full)", "/a/path")
            return methods[name](self, *arguments, **options)

        return method

    for name in methods:
        monkeypatch.setattr(Artifacts, name, fragile(name))

    async def life() -> None:
        nonlocal full
        async with running(settings_in(tmp_path, max_active=1)) as (jobs, supervisor):
            supervisor.gate.clear()
            first, second, third = [(await jobs.submit(REQUEST, dialect="p")).id for _ in range(3)]
            while not supervisor.started:
                await asyncio.sleep(0.01)
            full = True
            supervisor.gate.set()
            while jobs.away is None:
                await asyncio.sleep(0.01)
            with pytest.raises(StoreUnavailableError, match="it is full"):
                await jobs.submit(REQUEST, dialect="p")
            await asyncio.sleep(1.5)  # a few turns of the dispatcher
            assert f"{third}.1" not in supervisor.started  # one may have begun before it was known
            assert (await jobs.cancel(third)).state == "cancelled"
            assert (await jobs.get(first)).state == "running"
            full = False
            assert {(await jobs.wait(job)).state for job in (first, second)} == {"succeeded"}
            assert supervisor.started == [f"{first}.1", f"{second}.1"]
            while jobs.away is not None:
                await asyncio.sleep(0.01)
            # Who does not want to wait for the store need not.
            full = True
            stuck = await _stuck(jobs)
            assert stuck is None or (await jobs.cancel(stuck)).state == "cancelled"

    run(life)


def test_an_artifact_store_that_does_not_answer_costs_nobody_the_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cosmorama.jobs.loops.PROBE_EVERY_S", 0.05)
    monkeypatch.setattr("cosmorama.jobs.loops.PROBE_S", 0.1)
    answers, beats, heartbeat = threading.Event(), list[str](), Store.heartbeat

    async def counted(self: Store, server: str) -> Any:
        beats.append(server)
        return await heartbeat(self, server)

    monkeypatch.setattr(Artifacts, "probe", lambda _: answers.wait(60))
    monkeypatch.setattr(Store, "heartbeat", counted)

    async def life() -> None:
        async with running(settings_in(tmp_path, lease_s=1)) as (jobs, _):
            while "does not answer" not in (jobs.away or ""):
                await asyncio.sleep(0.01)
            before = len(beats)
            with pytest.raises(StoreUnavailableError, match="does not answer"):
                await jobs.submit(REQUEST, dialect="p")
            while len(beats) < before + 2:
                await asyncio.sleep(0.01)
            answers.set()
            while jobs.away is not None:
                await asyncio.sleep(0.01)
            assert (await jobs.wait((await jobs.submit(REQUEST, dialect="p")).id)).state == "succeeded"

    run(life)


async def _stuck(jobs: Jobs) -> str | None:
    """A job that waits for the store, or its clip does, if it was accepted before the store was found to be full."""
    try:
        job = await jobs.submit(REQUEST, dialect="p")
    except StoreUnavailableError:
        return None
    runner = jobs._runner
    while not any(each.stuck for each in runner.running.values()) and (runner.running or runner.unwritable is None):
        await asyncio.sleep(0.01)
    return job.id


def test_a_stop_ends_while_the_database_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cosmorama.jobs.worker.STOP_S", 0.5)
    monkeypatch.setattr("cosmorama.jobs.service.STOP_S", 0.5)

    async def life() -> None:
        supervisor = FakeSupervisor(settings := settings_in(tmp_path))
        jobs = Jobs(settings, pool_of(supervisor))
        await jobs.start()
        supervisor.gate.clear()
        made = await jobs.submit(REQUEST, dialect="p")
        while not supervisor.started:
            await asyncio.sleep(0.01)

        async def away(*_: object, **__: object) -> None:
            raise StoreUnavailableError("the job store cannot be used now")

        for name in ("finish", "release", "advance"):
            monkeypatch.setattr(jobs._store, name, away)
        supervisor.gate.set()
        await asyncio.sleep(0.5)  # the clip is made, and its end cannot be written down
        begun = time.monotonic()
        await jobs.stop()
        jobs.close()
        assert time.monotonic() - begun < 60
        # What was published is found by the next server.
        async with running(settings) as (again, other):
            job = await again.wait(made.id)
            assert (job.state, job.attempts) == ("succeeded", 1)
            assert other.started == []

    run(life)


def test_an_unreadable_row_ends_alone(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)

    async def life() -> None:
        async with running(settings) as (jobs, supervisor):
            supervisor.ready = False
            bad, good = [(await jobs.submit(replace(REQUEST, seed=i), dialect="p")).id for i in range(2)]
        database = Database(f"sqlite:///{tmp_path / 'jobs.sqlite3'}")
        with database.write() as connection:
            newer = '{"version":2,"request":{}}'
            connection.exec_driver_sql("UPDATE cosmorama_jobs SET request = ? WHERE id = ?", (newer, bad))
        database.close()
        async with running(settings) as (jobs, _):
            assert (await jobs.wait(good)).state == "succeeded"
            job = await jobs.wait(bad)
            assert job.error is not None
            assert (job.state, "another release" in job.error.text) == ("failed", True)
            listed = (await jobs.list()).jobs
            assert [each.summary()["request"] is None for each in listed] == [False, True]

    run(life)


def test_every_end_is_told_once(tmp_path: Path) -> None:
    class Ends(Observer):
        def __init__(self) -> None:
            self.seen: list[tuple[str, str]] = []

        def ended(self, job: Job) -> None:
            self.seen.append((job.id, job.state))

    async def life() -> None:
        ends = Ends()
        supervisor = FakeSupervisor(settings := settings_in(tmp_path, max_active=1))
        jobs = Jobs(settings, pool_of(supervisor), observer=ends)
        await jobs.start()
        try:
            made = (await jobs.submit(REQUEST, dialect="p")).id
            await jobs.wait(made)
            supervisor.gate.clear()
            runs = (await jobs.submit(REQUEST, dialect="p")).id
            late = (await jobs.submit(REQUEST, dialect="p", deadline_s=0.05)).id
            waits = (await jobs.submit(REQUEST, dialect="p")).id
            assert (await jobs.wait(late)).state == "failed"
            await jobs.cancel(waits)
            await jobs.cancel(waits)
            await jobs.cancel(runs)
            await asyncio.sleep(1)
        finally:
            await jobs.stop()
            jobs.close()
        expected = [(made, "succeeded"), (late, "failed"), (waits, "cancelled"), (runs, "cancelled")]
        assert sorted(ends.seen) == sorted(expected)

    run(life)


def test_what_was_sent_with_a_job_that_made_nothing_goes_with_it(tmp_path: Path) -> None:
    picture = replace(REQUEST, image=base64.b64encode(b"\xff\xd8\xffpicture").decode())

    async def life() -> None:
        async with running(settings_in(tmp_path, max_active=1)) as (jobs, supervisor):
            supervisor.gate.clear()
            runs = (await jobs.submit(picture, dialect="p")).id
            waits = (await jobs.submit(picture, dialect="p")).id
            late = (await jobs.submit(picture, dialect="p", deadline_s=0.05)).id
            assert len([path for path in (tmp_path / "artifacts" / "inputs").rglob("*") if path.is_file()]) == 3
            await jobs.wait(late)
            await jobs.cancel(waits)
            await jobs.cancel(runs)
            supervisor.fail = WorkerError("no luck")
            supervisor.gate.set()
            await jobs.wait((await jobs.submit(picture, dialect="p")).id)
            while [name for _, _, names in os.walk(tmp_path / "artifacts") for name in names]:
                await asyncio.sleep(0.02)

    run(life)


def test_nobody_else_can_look_into_the_state_folder(tmp_path: Path) -> None:
    async def life() -> None:
        for folder in (tmp_path / "new", tmp_path / "old"):
            if folder.name == "old":
                folder.mkdir(mode=0o755)
            async with running(settings_in(folder)) as (jobs, _):
                await jobs.wait((await jobs.submit(REQUEST, dialect="p")).id)
            assert folder.stat().st_mode & 0o777 == 0o700

    run(life)


def test_a_clip_that_is_gone_is_gone(tmp_path: Path) -> None:
    async def life() -> None:
        async with running(settings_in(tmp_path)) as (jobs, _):
            job = await jobs.wait((await jobs.submit(REQUEST, dialect="p")).id)
            shutil.rmtree(tmp_path / "artifacts" / "results")
            with pytest.raises(ContentGoneError):
                jobs.content(await jobs.get(job.id))
            with pytest.raises(ContentGoneError):
                await jobs.checkout(job)

    run(life)


def test_clearing_takes_nobodys_jobs_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Removing takes longer than a lease, and the job that runs meanwhile stays where it is."""
    monkeypatch.setattr("cosmorama.jobs.loops.CLEAR_EVERY_S", 0.5)
    remove = Artifacts.remove

    def slow(self: Artifacts, *arguments: object, **options: object) -> None:
        time.sleep(0.2)
        remove(self, *arguments, **options)  # type: ignore[arg-type]

    async def life() -> None:
        settings = settings_in(tmp_path, retention_s=1, max_active=1)
        async with running(settings) as (one, first), running(settings) as (two, second):
            second.ready = False
            for _ in range(8):  # 1.6 s to remove, and a lease is 1 s
                await one.wait((await one.submit(REQUEST, dialect="p")).id)
            monkeypatch.setattr(Artifacts, "remove", slow)
            first.gate.clear()
            job = (await one.submit(REQUEST, dialect="p")).id
            await asyncio.sleep(3)
            first.gate.set()
            ended = await two.wait(job)
            assert (ended.state, ended.attempts) == ("succeeded", 1)

    run(life)


def test_a_remote_artifact_store(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, artifacts="memory://bucket/prefix")

    async def life() -> None:
        async with running(settings) as (jobs, supervisor):
            request = replace(REQUEST, image=base64.b64encode(b"\xff\xd8\xffpicture").decode())
            job = await jobs.wait((await jobs.submit(request, dialect="p")).id)
            assert supervisor.seen[0].image == b"\xff\xd8\xffpicture"
            opened = jobs.content(job)
            assert opened.path is None
            whole = await content(jobs, job.id)
            assert len(whole) == opened.size
            assert (await jobs.checkout(job)).read_bytes() == whole
            await jobs.delete(job.id)

    run(life)


def test_a_database_that_is_away_loses_nothing(tmp_path: Path, postgres: Postgres) -> None:
    settings = settings_in(tmp_path, database_url=SecretStr(postgres.new_database()))

    async def life() -> None:
        async with running(settings) as (jobs, supervisor):
            supervisor.gate.clear()
            job = await jobs.submit(REQUEST, dialect="p")
            while not supervisor.started:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(postgres.stop)
            try:
                with pytest.raises(StoreUnavailableError):
                    await jobs.submit(REQUEST, dialect="p")
                supervisor.gate.set()
                await asyncio.sleep(1.5)  # longer than the lease
            finally:
                await asyncio.to_thread(postgres.start)
            job = await jobs.wait(job.id)
            assert (job.state, job.attempts) == ("succeeded", 1)
            assert await content(jobs, job.id)
            assert (await jobs.wait((await jobs.submit(REQUEST, dialect="p")).id)).state == "succeeded"

    run(life)


class WaitingForInputs(FakeSupervisor):
    """Whose generations with a picture wait for it until `arrived` is set."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.arrived = asyncio.Event()

    async def generate(self, request: GenerationRequest, *, output: Path, **options: Any) -> Outcome:
        if request.image is not None:
            self.started.append(options["name"])
            options["on_progress"](Progress("prepare"))
            await self.arrived.wait()
        return await super().generate(request, output=output, **options)


def test_jobs_whose_inputs_come_slowly_take_no_place_of_others(tmp_path: Path) -> None:
    link = replace(REQUEST, image="https://example.com/slow.png")

    async def life() -> None:
        settings = settings_in(tmp_path, max_active=1)
        supervisor = WaitingForInputs(settings)
        jobs = Jobs(settings, pool_of(supervisor))
        await jobs.start()
        try:
            slow = [await jobs.submit(link, dialect="predict1", owner="alice") for _ in range(10)]
            text = await jobs.submit(REQUEST, dialect="predict1", owner="bob")
            assert (await jobs.wait(text.id)).state == "succeeded"
            assert len(supervisor.started) == PREPARING_PER_OWNER + 1
            other = await jobs.submit(link, dialect="predict1", owner="carol")
            while not any(name.startswith(other.id) for name in supervisor.started):
                await asyncio.sleep(0.01)
            supervisor.arrived.set()
            assert {(await jobs.wait(job.id)).state for job in (*slow, other)} == {"succeeded"}
        finally:
            await jobs.stop()
            jobs.close()

    run(life)
