"""The life of a job in SQLite and in Postgres: every transition happens once, whoever else tries."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy import text as sql
from sqlalchemy.exc import IntegrityError

from cosmorama.engine.outcome import Outcome
from cosmorama.errors import (
    CosmoramaError,
    JobConflictError,
    JobNotFoundError,
    QueueFullError,
    StoreUnavailableError,
    WorkerError,
)
from cosmorama.jobs.channel import number
from cosmorama.jobs.database import Database
from cosmorama.jobs.model import Job, JobError, JobStatus
from cosmorama.jobs.store import Claim, Delivery, Finish, Limits, Store, timed_id
from cosmorama.progress import Progress
from cosmorama.request import ResolvedRequest
from tests.jobs.conftest import LEASE_S, Blocking, pass_lease

REQUEST = ResolvedRequest(prompt="a red ball", seed=3)
WIDE = Limits(queue=1000, running=2)
FAILED = Finish("failed", JobError.of(WorkerError("no luck")))
MADE = Finish(
    "succeeded",
    outcome=Outcome(Path("clip.mp4"), seed=3, prompt="p", width=960, height=704, frames=1, fps=24, timings={}),
    media_type="video/mp4",
    result_key="results/a/1/clip.mp4",
    result_bytes=100,
)


@dataclass(frozen=True)
class New:
    """A job to accept, and what is known of it only then."""

    job: Job
    options: dict[str, Any]


def new(job_id: str = "a", **changes: Any) -> New:
    of_job = {field.name for field in fields(Job)}
    known: dict[str, Any] = {
        "id": job_id,
        "state": "queued",
        "request": REQUEST,
        "dialect": "predict1",
        "model": "fake",
        "owner": "me",
        "priority": "normal",
        "created_at": time.time(),
        "metadata": {"tag": "x"},
    }
    job = Job(**known | {name: value for name, value in changes.items() if name in of_job})
    return New(job, {"fingerprint": "f"} | {name: value for name, value in changes.items() if name not in of_job})


def accept(store: Blocking, *jobs: New, limits: Limits = WIDE) -> list[object]:
    """Ids, or the errors that were raised."""
    answers: list[object] = []
    for each in jobs:
        try:
            answers.append(store.accept(each.job, limits, **each.options))
        except CosmoramaError as error:
            answers.append(error)
    return answers


def claim(store: Blocking, job_id: str = "a", holder: str = "one") -> Claim:
    claimed = store.claim([job_id], holder)
    assert claimed is not None
    mine, job = claimed
    assert (job.id, job.state, job.attempts) == (job_id, "running", mine.attempt)
    found: Claim = mine
    return found


def ended(store: Blocking, server: str) -> list[str]:
    """Ids of the jobs that a server ends because nobody else does."""
    return [job.id for job in store.end_unwanted(server, *(JobError(why, 499, why) for why in ("gone", "late", "x")))]


def test_what_is_asked_for_at_once_is_one_transaction_and_fails_alone(store: Blocking) -> None:
    kept: Store = store.awaited
    ends: list[object] = []
    for name in ("commit", "rollback"):
        event.listen(kept.database._engine, name, ends.append)

    async def at_once(ids: str, leaves: str = "", limits: Limits = WIDE) -> dict[str, object]:
        with kept._admitting:  # as if the disk were at the transaction before
            tasks = {each: asyncio.create_task(kept.accept(new(each).job, limits)) for each in ids}
            asked = [asyncio.create_task(kept.accept(new(ids[0]).job, limits))] if not leaves else []
            await asyncio.sleep(0.1)
            for each in leaves:
                tasks[each].cancel()
            await asyncio.sleep(0)
        answers = await asyncio.gather(*tasks.values(), *asked, return_exceptions=True)
        return dict(zip([*tasks, "again"], answers, strict=False))

    answers = asyncio.run(at_once("abcd", leaves="c"))
    assert len(ends) == 1
    assert isinstance(answers.pop("c"), asyncio.CancelledError)
    assert answers == {each: each for each in "abd"}
    answers = asyncio.run(at_once("ef"))
    assert isinstance(answers.pop("again"), IntegrityError)  # nobody's fault, and not that of the others
    assert answers == {each: each for each in "ef"}
    answers = asyncio.run(at_once("ghi", leaves="i", limits=Limits(queue=6, running=0)))
    assert (answers["g"], str(answers["h"])[:15]) == ("g", "6 jobs wait alr")
    assert [job.id for job in store.page(cursor=None, limit=9)[0]] == list("gfedba")


def test_a_life(store: Blocking) -> None:
    assert accept(store, new(deadline_s=1e6, webhook_url="http://x/")) == ["a"]
    job = store.get("a")
    assert (job.state, job.owner, job.dialect, job.model, job.priority) == (
        "queued",
        "me",
        "predict1",
        "fake",
        "normal",
    )
    assert job.request == REQUEST
    assert job.metadata == {"tag": "x"}
    assert (job.webhook_url, job.attempts, job.started_at) == ("http://x/", 0, None)
    assert job.deadline_at == pytest.approx(time.time() + 1e6, abs=60)

    hold = claim(store)
    store.advance({hold: Progress("denoise", 3, 35, remaining_s=12.0)})
    job = store.get("a")
    assert (job.state, job.attempts) == ("running", 1)
    assert (job.progress.stage, job.progress.step, job.progress.total) == ("denoise", 3, 35)
    assert job.progress.remaining_s == 12.0
    assert job.started_at is not None

    assert store.finish(hold, MADE)
    job = store.get("a")
    assert job.state == "succeeded"
    assert job.result is not None
    assert (job.result.bytes, job.result.media_type, job.result.key is not None) == (100, "video/mp4", True)
    assert job.result.outcome.seed == 3
    assert job.finished_at is not None
    assert job.created_at <= job.started_at <= job.finished_at  # type: ignore[operator]

    store.drop_contents(["a"])
    dropped = store.get("a").result
    assert dropped is not None
    assert dropped.key is None
    store.remove(["a"])
    with pytest.raises(JobNotFoundError):
        store.get("a")


def test_only_one_of_many_claims_succeeds(database_url: str) -> None:
    stores = [Blocking(Store(Database(database_url), lease_s=5)) for _ in range(4)]
    stores[0].database.create()
    accept(stores[0], *(new(f"j{i}") for i in range(10)))
    with ThreadPoolExecutor(4) as pool:
        rounds = [
            list(pool.map(lambda pair, i=i: pair[1].claim([f"j{i}"], f"s{pair[0]}"), enumerate(stores)))  # type: ignore[misc]
            for i in range(10)
        ]
    assert [sum(hold is not None for hold in holds) for holds in rounds] == [1] * 10
    for store in stores:
        store.database.close()


def test_a_job_ends_once(store: Blocking) -> None:
    accept(store, new())
    hold = claim(store)
    assert store.finish(hold, FAILED)
    assert not store.finish(hold, MADE)
    assert store.get("a").state == "failed"
    error = store.get("a").error
    assert error is not None
    assert (error.type, error.status, error.text) == ("worker_failed", 500, "no luck")


def test_a_stale_holder_can_do_nothing(store: Blocking) -> None:
    accept(store, new())
    stale = claim(store, holder="one")
    store.release(stale)
    assert store.get("a").state == "queued"
    fresh = claim(store, holder="one")
    assert fresh.attempt == 2
    assert not store.finish(stale, MADE)
    assert store.release(stale, 9, 1, FAILED) is None
    assert store.get("a").state == "running"
    store.advance({stale: Progress("denoise", 9, 9)})
    assert store.get("a").progress.stage == "prepare"
    assert store.finish(fresh, MADE)


def test_an_expired_lease_is_taken_over_by_one(store: Blocking) -> None:
    accept(store, new())
    lost = claim(store, holder="dead")
    assert store.take_over_expired("two") == []
    pass_lease()
    [seized] = store.take_over_expired("two")
    assert seized == Claim("a", "two", lost.attempt)
    assert store.take_over_expired("three") == []
    assert not store.finish(lost, MADE)
    assert store.finish(seized, MADE)


def test_a_heartbeat_keeps_the_lease_and_brings_news(store: Blocking) -> None:
    accept(store, new("a"), new("b"))
    holds = {claim(store, "a"), claim(store, "b")}
    for _ in range(3):
        time.sleep(LEASE_S / 2)
        assert store.heartbeat("one").keys() == holds
        assert store.take_over_expired("two") == []
    store.cancel("b", FAILED.error)
    assert {hold.job_id for hold, error in store.heartbeat("one").items() if error} == {"b"}
    assert store.heartbeat("two") == {}


def test_cancelling_before_during_and_after(store: Blocking) -> None:
    error = JobError("cancelled", 499, "cancelled")
    accept(store, new("a"), new("b"))
    assert store.cancel("a", error).state == "cancelled"
    assert store.get("a").state == "cancelled"
    assert store.claim(["a"], "one") is None
    assert store.cancel("a", error) is None
    hold = claim(store, "b")
    assert store.cancel("b", error) is None
    assert store.finish(hold, MADE).state == "succeeded"
    assert store.cancel("b", error) is None
    assert store.cancel("none", error) is None


def test_a_job_asked_to_cancel_is_not_put_back(store: Blocking) -> None:
    accept(store, new())
    hold = claim(store)
    error = JobError("cancelled", 499, "nobody wants it")
    store.cancel("a", error)
    job = store.release(hold)
    assert (job.state, job.error) == ("cancelled", error)
    assert store.release(hold) is None
    assert store.claim(["a"], "one") is None


def test_what_nobody_waits_for_any_more_is_not_begun(store: Blocking) -> None:
    accept(store, new("a", waiter="dead"), new("b", waiter="one"), new("c"))
    pass_lease()
    store.heartbeat("one")
    assert [job.id for job in store.unfinished({})[0]] == ["b", "c"]
    assert store.claim(["a"], "one") is None
    assert claim(store, "b").job_id == "b"
    assert ended(store, "one") == ["a"]


def test_the_queue_is_bounded_and_running_jobs_free_it(store: Blocking) -> None:
    limits = Limits(queue=1, running=1)
    answers = accept(store, *(new(f"j{i}") for i in range(3)), limits=limits)
    assert answers[:2] == ["j0", "j1"]
    assert isinstance(answers[2], QueueFullError)
    assert "number 3" in str(answers[2])
    claim(store, "j0")
    [refused] = accept(store, new("j3"), limits=limits)
    assert isinstance(refused, QueueFullError)
    claim(store, "j1")
    assert accept(store, new("j4"), limits=limits) == ["j4"]


def test_one_owner_cannot_take_everything(store: Blocking) -> None:
    limits = Limits(queue=100, running=2, per_owner=2)
    answers = accept(store, new("a"), new("b"), new("c"), new("d", owner="other"), limits=limits)
    assert [isinstance(answer, QueueFullError) for answer in answers] == [False, False, True, False]
    store.finish(claim(store, "a"), MADE)
    assert accept(store, new("e"), limits=limits) == ["e"]


def test_an_idempotency_key_gives_the_same_job(store: Blocking) -> None:
    keyed = {"idempotency_key": "k"}
    answers = accept(
        store,
        new("a", **keyed),
        new("b", **keyed),
        new("c", **keyed, fingerprint="other"),
        new("d", **keyed, owner="you"),
        new("e"),
        new("f"),
    )
    assert answers[:2] == ["a", "a"]
    assert isinstance(answers[2], JobConflictError)
    assert answers[3:] == ["d", "e", "f"]
    # Even where there is no room for another.
    assert accept(store, new("g", **keyed), limits=Limits(0, 0)) == ["a"]


def test_pages(store: Blocking) -> None:
    accept(store, *(new(f"j{i}", owner="me" if i % 2 else "you", dialect=f"d{i % 3}") for i in range(10)))
    store.finish(claim(store, "j3"), MADE)

    def ids(**options: object) -> list[str]:
        return [job.id for job in store.page(**{"cursor": None, "limit": 100} | options)[0]]  # type: ignore[arg-type]

    assert ids(limit=3) == ["j9", "j8", "j7"]
    assert ids(limit=3, cursor="j7") == ["j6", "j5", "j4"]
    assert ids(cursor="j7", ascending=True) == ["j8", "j9"]
    assert ids(owner="me") == ["j9", "j7", "j5", "j3", "j1"]
    assert ids(state="succeeded") == ["j3"]
    assert ids(dialect="d0") == ["j9", "j6", "j3", "j0"]
    with pytest.raises(JobNotFoundError):
        ids(cursor="none")
    with pytest.raises(JobNotFoundError):
        ids(cursor="j8", owner="me")
    # A page goes on where the one before ended, whatever becomes of its jobs.
    page, cursor = store.page(cursor=None, limit=7)
    assert [job.id for job in page] == [f"j{i}" for i in range(9, 2, -1)]
    assert cursor is not None
    store.remove(["j3"])
    assert ids(cursor=cursor) == ["j2", "j1", "j0"]
    assert store.page(cursor=cursor, limit=3)[1] is None
    for wrong in ("after_", "after_x", "after_" + "9" * 30, "a\x00b", ""):
        with pytest.raises(JobNotFoundError):
            ids(cursor=wrong)


def test_a_page_goes_on_after_a_job_that_was_removed(store: Blocking) -> None:
    at = time.time()
    ids = [timed_id(at + i, f"{i:016x}") for i in range(6)]
    accept(store, *(new(name, created_at=at + i) for i, name in enumerate(ids)))
    store.finish(claim(store, ids[3]), MADE)
    store.remove([ids[3]])
    for ascending, expected in ((False, ids[2::-1]), (True, ids[4:])):
        page, more = store.page(cursor=ids[3], limit=10, ascending=ascending)
        assert ([job.id for job in page], more) == (expected, None)
    with pytest.raises(JobNotFoundError):  # another owner's is none
        store.page(cursor=ids[2], limit=10, owner="you")


def test_servers_that_want_the_same_job_get_one_each(database_url: str) -> None:
    """All order the queue alike, and claim at the same moment: nobody's claim is lost while there is enough for all."""
    stores = [Blocking(Store(Database(database_url), lease_s=5)) for _ in range(8)]
    stores[0].database.create()
    names = [f"j{i}" for i in range(24)]
    accept(stores[0], *map(new, names))
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            got = list(pool.map(lambda each: each.claim(names, "server"), stores))
            assert None not in got
    claimed = stores[0].page(cursor=None, limit=100, state="running")[0]
    assert len(claimed) == 24
    assert {job.attempts for job in claimed} == {1}
    for each in stores:
        each.database.close()


def test_deadlines_and_waiters(store: Blocking) -> None:
    accept(
        store,
        new("late", deadline_s=-1),
        new("later", deadline_s=60),
        new("left", waiter="dead"),
        new("run", waiter="dead"),
        new("kept", waiter="alive"),
    )
    claim(store, "run", "alive")
    assert ended(store, "alive") == ["late"]
    assert store.get("late").state == "failed"
    pass_lease()
    # Late itself, a server still knows who waits at it; the others know when it has given a sign of life.
    assert ended(store, "alive") == ["left"]
    assert store.get("left").state == "cancelled"
    assert {hold.job_id for hold, error in store.heartbeat("alive").items() if error} == {"run"}
    assert ended(store, "other") == []
    assert store.get("kept").state == store.get("later").state == "queued"


def test_retention_by_age_and_size(store: Blocking) -> None:
    accept(store, new("a", input_bytes=50), new("b"), new("c"), new("open", input_bytes=1000))
    for job_id in ("b", "a", "c"):
        store.finish(claim(store, job_id), MADE)
        time.sleep(0.01)
    assert store.over(1350) == []
    assert store.over(1349) == ["b"]
    assert store.over(1200) == ["b", "a"]
    assert store.expired(60) == []
    time.sleep(0.06)
    assert sorted(store.expired(0.05)) == ["a", "b", "c"]


def take(store: Blocking) -> list[Delivery]:
    return [due for due in store.due_webhooks() if store.take_webhook(due, LEASE_S)]


def test_nobodys_webhooks_stand_before_everybody_elses(store: Blocking) -> None:
    for i in range(30):
        accept(store, new(f"a{i}", owner="alice", webhook_url="http://slow/"))
        store.finish(claim(store, f"a{i}"), MADE)
    accept(store, new("b", owner="bob", webhook_url="http://good/"))
    store.finish(claim(store, "b"), MADE)
    assert {due.job_id for due in store.due_webhooks(2)} == {"a0", "b"}
    for i in range(30):  # as many receivers as jobs do not change that
        accept(store, new(f"c{i}", owner="carol", webhook_url=f"http://slow{i}/"))
        store.finish(claim(store, f"c{i}"), MADE)
    assert {due.job_id for due in store.due_webhooks(3)} == {"a0", "b", "c0"}
    [first, *_] = store.due_webhooks(1)
    assert store.take_webhook(first, 5)
    assert not store.take_webhook(first, 5)


def test_a_row_that_cannot_be_read_is_one_rows_trouble(store: Blocking) -> None:
    accept(store, *(new(name) for name in ("a", "b", "c", "d", "e", "f", "good")))
    damage = {
        "a": {"request": '{"version":2,"request":{}}'},
        "b": {"request": store_row(store, "b").replace('"solver":null', '"solver":"heun"')},
        "c": {"request": "no json", "labels": "neither"},
        "d": {"priority": 99},
        "e": {"stage": "later stage"},
        "f": {"state": "later state"},
    }
    with store.database.write() as connection:
        for name, values in damage.items():
            for column, text in values.items():
                statement = sql(f"UPDATE cosmorama_jobs SET {column} = :text WHERE id = :id")
                connection.execute(statement, {"text": text, "id": name})
    found, unreadable = store.unfinished({})
    assert [job.id for job in found] == ["d", "e", "good"]
    assert unreadable == ["a", "b", "c"]
    assert [job.request for job in store.unfinished({"a": REQUEST})[0]] == [REQUEST] * 4
    listed = {job.id: job for job in store.page(cursor=None, limit=10)[0]}
    assert listed["good"].readable
    assert {name: (number(job) >= 0, JobStatus(**job.summary()).state) for name, job in listed.items()} == {
        **dict.fromkeys("abcde", (True, "queued")),
        "f": (True, "running"),
        "good": (True, "queued"),
    }
    assert listed["c"].summary()["request"] is None
    ended = store.end_unreadable(unreadable)
    assert {job.id: job.state for job in ended} == dict.fromkeys("abc", "failed")
    assert "another release" in store.get("a").summary()["error"]["message"]
    assert store.get("good").state == "queued"


def store_row(store: Blocking, job_id: str) -> str:
    with store.database.read() as connection:
        return str(connection.execute(sql(f"SELECT request FROM cosmorama_jobs WHERE id = '{job_id}'")).scalar_one())


def test_more_jobs_than_a_statement_has_room_for(store: Blocking) -> None:
    accept(store, new("a"))
    ids = [f"none{i}" for i in range(70_000)] + ["a"]
    assert set(store.results(ids)) == {"a"}


def test_blame_is_said_once_and_forgotten_when_the_job_got_further(store: Blocking) -> None:
    accept(store, new("a"), new("b"))
    for attempt in range(1, 4):  # dies at the same place each time
        hold = claim(store, "a")
        store.advance({hold: Progress("denoise", 3, 9)})
        ended = store.release(hold, 2, 6, FAILED)
        assert (ended is not None) == (attempt == 3)
        assert store.release(hold, 2, 6, FAILED) is None  # said again, because the answer was lost
    assert store.get("a").state == "failed"
    for attempt in range(1, 8):  # gets further each time
        hold = claim(store, "b")
        store.advance({hold: Progress("denoise", attempt, 9)})
        assert store.release(hold, 2, 6, FAILED) is None
    assert store.get("b").state == "queued"


def test_deadlines_and_times_are_on_the_clock_of_the_store(store: Blocking, monkeypatch: pytest.MonkeyPatch) -> None:
    true = time.time
    if not store.database.is_sqlite:  # of which all servers are on one machine
        monkeypatch.setattr(time, "time", lambda: true() - 600)
    store.heartbeat("me")
    assert store.database.time() == pytest.approx(true(), abs=20)
    accept(store, new("a", deadline_s=60))
    claimed = store.claim(["a"], "me")
    assert claimed is not None
    assert claimed[0].left_s == pytest.approx(60, abs=20)


def test_what_a_job_that_made_nothing_was_sent_does_not_count(store: Blocking) -> None:
    accept(store, new("a", input_bytes=500))
    store.finish(claim(store, "a"), FAILED)
    assert store.over(0) == []


def test_a_store_that_is_taken_away_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite3"
    database = Database(f"sqlite:///{path}")
    database.create()
    database.check()
    path.unlink()
    with pytest.raises(StoreUnavailableError, match="removed or replaced"):
        database.check()
    path.write_bytes(b"")
    with pytest.raises(StoreUnavailableError, match="removed or replaced") as told:
        database.check()
    assert str(tmp_path) not in str(told.value)
    assert str(tmp_path) in told.value.logged
    database.close()


def test_webhooks_are_taken_by_one_and_come_again(store: Blocking) -> None:
    accept(store, new("a", webhook_url="http://x/"), new("b"))
    assert take(store) == []
    store.finish(claim(store, "a"), MADE)
    store.finish(claim(store, "b"), MADE)
    [due] = take(store)
    assert (due.job_id, due.url, due.attempts) == ("a", "http://x/", 1)
    assert take(store) == []
    pass_lease()  # who took it died
    [again] = take(store)
    assert again.attempts == 2
    store.set_webhook("a", 0.0)
    assert [item.attempts for item in take(store)] == [3]
    store.set_webhook("a", None)
    pass_lease()
    assert take(store) == []
