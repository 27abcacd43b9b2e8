"""Every way for a job to end, in every stage that it can be met in: it ends, once, and its webhook is told."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from cosmorama.errors import CancelledError
from cosmorama.jobs import loops, webhooks
from cosmorama.jobs.files import Artifacts
from cosmorama.jobs.model import Job, JobError
from cosmorama.jobs.service import Jobs
from cosmorama.settings import Settings
from tests.jobs.conftest import Blocking
from tests.jobs.fake import REQUEST, FakeSupervisor, pool_of

PICTURE = replace(REQUEST, image=base64.b64encode(b"\xff\xd8\xffa picture").decode())
STAGES = ("queued", "claimed", "begun", "preparing", "running", "storing", "finishing")
MADE = ("storing", "finishing")
ENDS = ("cancel", "deadline", "stop", "death")


@dataclass
class Stage:
    """Holds a job in one stage, and says when it is there.

    Attributes:
        reached: Set when the job is there.
        go_on: The job stays there until this is set.
        then: Called in the stages that cannot be held, at the moment at which the job is in one.
    """

    name: str
    then: Callable[[str], None]
    reached: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def hold(self) -> None:
        self.reached.set()
        assert self.go_on.wait(60)

    async def wait(self) -> None:
        while not self.reached.is_set():
            await asyncio.sleep(0.005)

    def arrange(self, jobs: Jobs, supervisor: FakeSupervisor, patch: pytest.MonkeyPatch) -> None:
        """Have the next job stop there."""
        if self.name == "queued":
            supervisor.ready = False
            self.reached.set()
        elif self.name == "claimed":  # what happens in the store right after the claim, before its answer is known
            claim = jobs._store.claim

            async def claimed(*arguments: Any) -> Any:
                done = await claim(*arguments)
                if done is not None and not self.reached.is_set():
                    self.reached.set()
                    self.then("")
                return done

            patch.setattr(jobs._store, "claim", claimed)
        elif self.name == "begun":  # its task is there, and has not taken its first step
            start = jobs._runner.start

            def started(*claimed: Any) -> None:
                start(*claimed)
                if not self.reached.is_set():
                    self.reached.set()
                    self.then("")

            patch.setattr(jobs._runner, "start", started)
        elif self.name == "preparing":
            self._before(Artifacts, "read", patch)
        elif self.name == "running":
            supervisor.gate.clear()
            supervisor.on_step = self.reached.set
        elif self.name == "storing":
            self._before(Artifacts, "publish", patch)
        elif self.name == "finishing":
            self._after(Artifacts, "publish", patch)

    def _before(self, owner: type, name: str, patch: pytest.MonkeyPatch) -> None:
        method = getattr(owner, name)

        def held(*arguments: Any, **options: Any) -> Any:
            self.hold()
            return method(*arguments, **options)

        patch.setattr(owner, name, held)

    def _after(self, owner: Any, name: str, patch: pytest.MonkeyPatch) -> None:
        method = getattr(owner, name)

        def held(*arguments: Any, **options: Any) -> Any:
            done = method(*arguments, **options)
            if done is not None and not self.reached.is_set():
                self.reached.set()
                self.then("")
            return done

        patch.setattr(owner, name, held)


async def life(
    folder: Path, patch: pytest.MonkeyPatch, stage_name: str, end: str, told: list[tuple[str, str]]
) -> tuple[Job, FakeSupervisor]:
    settings = Settings(state_dir=folder, lease_s=1, webhook_secret=SecretStr("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"))
    supervisor = FakeSupervisor(settings)
    jobs = Jobs(settings, pool_of(supervisor))
    loop, made = asyncio.get_running_loop(), list[str]()
    asked: list[asyncio.Future[Any]] = []

    def then(_: str) -> None:
        """At a moment that cannot be held."""
        if end == "cancel" and made and stage_name == "claimed":
            Blocking(jobs._store).cancel(made[0], JobError.of(CancelledError("cancelled")))
        elif end == "cancel" and made and stage_name == "begun":
            jobs._runner.interrupt(made[0], "cancel")
        elif end == "cancel" and made:
            asked.append(asyncio.run_coroutine_threadsafe(jobs.cancel(made[0]), loop))  # type: ignore[arg-type]
        elif end == "death":
            supervisor.die = True

    stage, is_made = Stage(stage_name, then), stage_name in MADE
    time_s = 3 if is_made else 0.5  # it has to come so far before
    await jobs.start()
    supervisor.gate.set()
    ready, supervisor.ready = supervisor.ready, False
    job = await jobs.submit(
        PICTURE, dialect="p", webhook_url="http://a.test/", deadline_s=time_s if end == "deadline" else None
    )
    made.append(job.id)
    stage.arrange(jobs, supervisor, patch)
    if end in ("deadline", "cancel") and stage_name in ("claimed", "begun"):
        supervisor.gate.clear()  # it would be made before
    if stage_name != "queued":
        supervisor.ready = ready
        jobs._dispatcher.wake()
    try:
        async with asyncio.timeout(120):
            await stage.wait()
            if end == "cancel":
                asking = asyncio.create_task(jobs.cancel(job.id))
                await asyncio.wait((asking,), timeout=0.05 if is_made else None)  # what is made is stored first
                stage.go_on.set()
                supervisor.gate.set()
                await asking
            elif end == "deadline":
                await asyncio.sleep(time_s + 0.1)
                stage.go_on.set()
            elif end == "stop":
                stopping = asyncio.create_task(jobs.stop())
                await asyncio.sleep(0.05)
                stage.go_on.set()
                await stopping
                jobs.close()
                patch.undo()
                _note(told, patch)
                supervisor = FakeSupervisor(settings)
                jobs = Jobs(settings, pool_of(supervisor))
                await jobs.start()
            elif end == "death":
                supervisor.die = True
                stage.go_on.set()
                supervisor.gate.set()
                supervisor.ready = True
                jobs._dispatcher.wake()
            ended = await jobs.wait(job.id)
            supervisor.ready = True
            supervisor.gate.set()
            while not told:
                await asyncio.sleep(0.01)
            # Nothing is left of it here, and its place is free for the next one.
            assert job.id not in jobs._runner.running
            supervisor.die = None
            assert (await jobs.wait((await jobs.submit(REQUEST, dialect="p")).id)).state == "succeeded"
            return ended, supervisor
    finally:
        stage.go_on.set()
        supervisor.gate.set()
        await jobs.stop()
        jobs.close()


def _note(told: list[tuple[str, str]], patch: pytest.MonkeyPatch) -> None:
    async def post(self: webhooks.Webhooks, address: str, job: Job) -> None:
        told.append((job.id, job.state))

    patch.setattr(webhooks.Webhooks, "_post", post)
    patch.setattr(webhooks, "LOOK_EVERY_S", 0.05)
    patch.setattr(loops, "TICK_S", 0.2)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("stage", STAGES)
def test_it_ends_once_and_its_webhook_is_told(
    stage: str, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, str]] = []
    _note(told, monkeypatch)
    job, _ = asyncio.run(life(tmp_path, monkeypatch, stage, end, told))
    made_already = stage in MADE
    expected = {
        "cancel": "succeeded" if made_already else "cancelled",
        "deadline": "succeeded" if made_already else "failed",
        "stop": "succeeded",
        "death": "succeeded",
    }[end]
    assert job.state == expected, job
    assert set(told) == {(job.id, expected)}  # at least once: a stop may cut off what was just told


def test_no_moment_to_cancel_in_loses_the_end(tmp_path: Path) -> None:
    """Cancelled after any number of turns of the event loop, whatever the job is at then."""

    async def race() -> None:
        settings = Settings(state_dir=tmp_path, lease_s=1)
        supervisor = FakeSupervisor(settings)
        jobs = Jobs(settings, pool_of(supervisor))
        await jobs.start()
        supervisor.gate.clear()
        try:
            async with asyncio.timeout(120):
                for turns in range(40):
                    job = await jobs.submit(REQUEST, dialect="p")
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    await jobs.cancel(job.id)
                    assert (await jobs.wait(job.id)).state == "cancelled"
            assert not jobs._runner.running
        finally:
            supervisor.gate.set()
            await jobs.stop()
            jobs.close()

    asyncio.run(race())
