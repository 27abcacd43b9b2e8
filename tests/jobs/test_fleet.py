"""A server that answers and servers that generate, as processes on one Postgres and one S3 store."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import md5
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import httpx
import pytest

from cosmorama.errors import ModelNotFoundError, NotReadyError
from cosmorama.jobs.database import Database
from cosmorama.jobs.fleet import Member, Register, RemotePool
from cosmorama.jobs.store import Store
from cosmorama.progress import Progress
from cosmorama.request import Capabilities
from cosmorama.settings import Settings
from tests.fleet.ways import (  # noqa: F401
    Way,
    expected,
    test_a_clip_has_the_same_bytes,
    test_a_job_that_runs_is_cancelled,
    test_a_synchronous_request_is_answered_with_its_clip,
    test_progress_is_told,
    test_what_the_model_cannot_make_is_refused_by_name,
)
from tests.jobs.conftest import Blocking, Postgres, pass_lease
from tests.jobs.test_store import FAILED, WIDE, new
from tests.serving import Running, running_server

BODY: dict[str, Any] = {"dialect": "cosmorama", "prompt": "a red ball falls", "seed": 1, "width": 960, "height": 704}
LEASE_S = 3
OFF_S = 600
AHEAD, BEHIND = {"CLOCK_OFF_S": f"{OFF_S}"}, {"CLOCK_OFF_S": f"-{OFF_S}"}


@dataclass
class Roles:
    """One of each role, and what a further one needs."""

    api: Running
    worker: Running
    model: Path
    settings: dict[str, str]


@pytest.fixture(scope="module")
def roles(
    postgres: Postgres, s3: dict[str, str], tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Roles]:
    folder = tmp_path_factory.mktemp("fleet")
    model = tiny_checkpoint
    settings = {
        "COSMORAMA_DATABASE_URL": postgres.new_database(),
        "COSMORAMA_ARTIFACTS": "s3://clips/fleet",
        "COSMORAMA_LEASE_S": str(LEASE_S),
        **s3,
    }
    with (
        running_server(model, folder / "worker", COSMORAMA_ROLE="worker", **settings) as worker,
        running_server("unused", folder / "api", COSMORAMA_ROLE="api", **settings) as api,
    ):
        yield Roles(api, worker, model, settings)


@pytest.fixture(scope="module")
def way(roles: Roles) -> Way:
    return Way(roles.api)


def submit(server: Running, **changes: Any) -> str:
    answer = httpx.post(f"{server.url}/v1/jobs", json=BODY | changes, timeout=60)
    assert answer.status_code == 202, answer.text
    job_id: str = answer.json()["id"]
    return job_id


def events(server: Running, job_id: str) -> Iterator[tuple[str, dict[str, Any], float]]:
    """Name, data and arrival of each event."""
    with httpx.stream("GET", f"{server.url}/v1/jobs/{job_id}/events", timeout=300) as stream:
        name = ""
        for line in stream.iter_lines():
            if line.startswith("event:"):
                name = line.removeprefix("event:").strip()
            elif line.startswith("data:"):
                yield name, json.loads(line.removeprefix("data:")), time.time()


def memory_mb(server: Running) -> float:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def test_who_answers_shows_every_step_and_preview_of_who_generates(roles: Roles) -> None:
    job_id = submit(roles.api, frames=457, steps=50)  # long enough for a quick machine to be seen at it
    seen = list(events(roles.api, job_id))
    steps = {data["step"] for name, data, _ in seen if name == "status" and data["stage"] == "denoise"}
    assert len(steps) > 5, steps  # the database is told once a second where nobody looks
    assert any(name == "preview" for name, _, _ in seen)
    name, job, arrived = seen[-1]
    assert name == "succeeded"
    assert arrived - job["finished_at"] < 2  # without news it would be up to a second, on a quiet machine 0.1
    clip = httpx.get(f"{roles.api.url}/v1/jobs/{job_id}/content", timeout=60)
    assert clip.content[4:8] == b"ftyp"
    assert roles.worker.metric('cosmorama_jobs_total{state="succeeded"}') >= 1
    assert roles.api.metric("cosmorama_active_generations") == 0


def test_who_answers_knows_the_model_and_loads_none(roles: Roles) -> None:
    capabilities = httpx.get(f"{roles.api.url}/v1/capabilities", timeout=60).json()
    assert capabilities["model"] == "tiny"
    assert memory_mb(roles.api) < 165
    wrong = httpx.post(f"{roles.api.url}/v1/jobs", json=BODY | {"steps": 99}, timeout=60)
    assert wrong.status_code == 422
    assert "steps" in wrong.text


def test_who_generates_answers_health_and_metrics_only(roles: Roles) -> None:
    assert httpx.get(f"{roles.worker.url}/v1/health/ready", timeout=60).status_code == 200
    assert httpx.get(f"{roles.worker.url}/v1/metrics", timeout=60).status_code == 200
    assert httpx.post(f"{roles.worker.url}/v1/jobs", json=BODY, timeout=60).status_code == 404
    assert httpx.get(roles.worker.url, timeout=60).status_code == 404  # the page would find nothing that it can ask


def test_a_rolling_upgrade_loses_and_doubles_nothing(roles: Roles, tmp_path: Path) -> None:
    """An old server of each role ends by SIGTERM beside the new ones, while clients go on.

    The clocks of the old ones are ten minutes off, twice what the jobs have until their deadlines.
    """
    settings = roles.settings | {"COSMORAMA_DRAIN_S": "300"}
    with (
        running_server(roles.model, tmp_path / "worker", COSMORAMA_ROLE="worker", **AHEAD, **settings) as worker,
        running_server("unused", tmp_path / "api", COSMORAMA_ROLE="api", **BEHIND, **settings) as api,
    ):
        removed = submit(api, frames=1, steps=1)
        long = {"frames": 33, "steps": 12, "deadline_s": OFF_S / 2}
        jobs = [submit(server, seed=n, **long) for n in range(3) for server in (api, roles.api)]
        begun = time.monotonic()
        while not worker.metric("cosmorama_active_generations"):
            assert time.monotonic() - begun < 240
            time.sleep(0.02)
        for old in (worker, api):
            old.process.send_signal(signal.SIGTERM)
        jobs += [submit(roles.api, frames=9, steps=2, seed=n) for n in range(3)]
        for old in (worker, api):
            old.process.wait(240)
        assert worker.log.read_text().count("succeeded after") >= 1  # it finished what it had
    for job_id in jobs:
        (*_, (name, job, _)) = events(roles.api, job_id)
        assert (name, job["attempts"]) == ("succeeded", 1), job
    listed = httpx.get(f"{roles.api.url}/v1/jobs", params={"limit": 100}, timeout=60).json()["data"]
    assert [each["id"] for each in listed if each["id"] in jobs] == jobs[::-1]
    near_s = OFF_S / 10
    for newer, older in pairwise(listed):
        assert older["created_at"] < newer["created_at"] + near_s
        assert newer["created_at"] - near_s < newer["started_at"] <= newer["finished_at"]
    # The id of a job that was removed says when it was accepted, and a page goes on after it.
    (first,) = (each for each in listed if each["id"] == removed)
    httpx.delete(f"{roles.api.url}/v1/jobs/{removed}", timeout=60).raise_for_status()
    after = httpx.get(f"{roles.api.url}/v1/jobs", params={"limit": 100, "cursor": removed}, timeout=60).json()["data"]
    assert [each["id"] for each in after] == [each["id"] for each in listed if each["created_at"] < first["created_at"]]


def test_work_is_taken_over_and_accepted_while_nobody_generates(roles: Roles, tmp_path: Path) -> None:
    with running_server(roles.model, tmp_path, COSMORAMA_ROLE="worker", **AHEAD, **roles.settings) as second:
        running = submit(roles.api, frames=33, steps=40)
        while httpx.get(f"{roles.api.url}/v1/jobs/{running}", timeout=60).json()["state"] == "queued":
            time.sleep(0.05)
        for worker in (roles.worker, second):
            worker.process.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        roles.worker.process.wait(30)
        second.process.wait(30)
        while httpx.get(f"{roles.api.url}/v1/health/ready", timeout=60).status_code == 200:
            assert time.monotonic() - killed < 60
            time.sleep(0.1)
        waiting = submit(roles.api, frames=9, steps=2)
    with running_server(roles.model, tmp_path / "third", COSMORAMA_ROLE="worker", **BEHIND, **roles.settings):
        for job_id in (running, waiting):
            (*_, (name, job, _)) = events(roles.api, job_id)
            assert name == "succeeded", job


def member(**changes: Any) -> Member:
    known: dict[str, Any] = {"id": "a", "role": "worker", "models": {"tiny": Capabilities(model="tiny")}, "ready": True}
    known |= {"places": 2, "alive": True}
    return Member(**known | changes)


def test_a_pool_of_other_servers_before_during_and_after() -> None:
    workers = RemotePool(Settings(role="api", model_aliases={"sora-2": "street"}))
    assert not workers.ready
    with pytest.raises(NotReadyError, match="cosmorama worker"):
        workers.find(None)
    told: list[bool] = []
    workers.on_ready = lambda: told.append(True)
    workers.see([member(models={})])  # it has loaded one, and says which a moment later
    assert (workers.ready, told) == (False, [])
    workers.see([member(), member(id="b", models={"street": Capabilities(model="street")}, places=3)])
    assert (workers.ready, workers.names, workers.places, told) == (True, ("tiny", "street"), 5, [True])
    assert workers.find(None) == "tiny"
    assert workers.find("sora-2") == "street"
    assert not workers.takes("tiny")
    with pytest.raises(ModelNotFoundError, match="tiny, street"):
        workers.find("other")
    workers.see([member(alive=False, ready=False)])
    assert not workers.ready
    assert asyncio.run(workers.capabilities_of("tiny")).model == "tiny"  # so that jobs are accepted meanwhile


def test_servers_come_and_go(store: Blocking) -> None:
    register, workers = Blocking(Register(store.awaited)), RemotePool(Settings(role="api"))
    register.announce("a", "worker", workers, {"tiny": Capabilities(model="tiny")}, 2)
    register.announce("b", "api", workers, {}, 2)
    first, second = register.members()
    assert (first.id, first.models["tiny"], first.places) == ("a", Capabilities(model="tiny"), 2)
    assert (second.id, second.places, second.alive) == ("b", 0, True)
    pass_lease()
    register.announce("b", "api", workers, {}, 2)
    assert [m.alive for m in register.members()] == [False, True]
    register.withdraw("b")
    assert [m.alive for m in register.members()] == [False, False]


def test_wishes_and_previews_are_kept_once_per_job(store: Blocking) -> None:
    register = Blocking(Register(store.awaited))
    for _ in range(2):
        register.watch("job", "server")
        register.show("job", 3, b"old")
        register.show("job", 4, b"new")
    assert register.watched(["job", "other"]) == {"job"}
    assert register.preview("job") == (4, b"new")
    register.forget("job")
    assert register.preview("job") is None
    assert register.watched(["job"]) == set()


def test_steps_and_previews_are_told_only_where_somebody_follows_the_job(postgres: Postgres) -> None:
    """Of a job that nobody follows all servers hear three times, however many steps it takes."""
    psycopg = pytest.importorskip("psycopg", reason="pip install 'psycopg[binary]'")
    database = Database(postgres.new_database())
    store = Blocking(Store(database, lease_s=60))
    store.create()
    register = Blocking(Register(store.awaited))
    channels = {name: f"cosmorama_{md5(name.encode()).hexdigest()}" for name in ("worker", "api", "other")}
    with psycopg.connect(database.conninfo, autocommit=True) as listening:
        for channel in ("cosmorama", *channels.values()):
            listening.execute(f"LISTEN {channel}")

        def heard() -> list[tuple[str, str]]:
            names = {channel: name for name, channel in channels.items()}
            listening.execute("NOTIFY cosmorama, 'end'")  # they come in the order in which they were sent
            found = takewhile(lambda each: each.payload != "end", listening.notifies(timeout=60))
            return [(names.get(each.channel, "all"), each.payload) for each in found]

        store.accept(new("job").job, WIDE)
        claim, _ = store.claim(["job"], "worker")
        for step in range(35):
            store.advance({claim: Progress("denoise", step, 35)})
        assert heard() == [("all", "queued job"), ("all", "moved job")]
        register.watch("job", "api")
        store.advance({claim: Progress("decode", 1, 2)})
        register.show("job", 3, b"jpeg")
        store.cancel("job", FAILED.error)
        assert heard() == [
            ("worker", "watched job"),
            ("api", "moved job"),
            ("api", "preview job"),
            ("worker", "cancel job"),
        ]
        store.finish(claim, FAILED)
        assert heard() == [("all", "moved job")]
    database.close()
