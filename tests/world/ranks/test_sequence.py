"""One clip's tokens in several processes: the latents of one, each process with its share of the work."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from operator import methodcaller
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from cosmorama.engine.engine import Engine
from cosmorama.engine.supervisor import Supervisor
from cosmorama.errors import InvalidRequestError, ModelNotFoundError, NotEnoughMemoryError, WorkerDiedError, WorkerError
from cosmorama.settings import Settings
from cosmorama.world.base import BrokenModelError, World
from cosmorama.world.ranks.process import Apply, Follower
from cosmorama.world.ranks.sequence import SequenceParallel
from cosmorama.world.registry import load_world
from tests.tiny import save_tiny
from tests.world.checkpoints import save_predict
from tests.world.cosmos.test_transfer25 import clip, rollout_of
from tests.world.cosmos.transfer_checkpoints import save_transfer
from tests.world.generic_checkpoints import save_wan
from tests.world.ranks.test_guidance import REQUEST, latents, rollout

SIZE = {"width": 48, "height": 48}
"""Nine tokens in every latent frame."""


@dataclass(frozen=True)
class Together:
    """The model in several processes, and in this one alone."""

    world: Any
    alone: World
    followers: list[Follower]

    @property
    def inner(self) -> Any:
        return self.world.world

    def check(self, given: torch.Tensor | None = None, **changes: Any) -> None:
        torch.testing.assert_close(
            latents(rollout(self.world, given, **changes)),
            latents(rollout(self.alone, given, **changes)),
            rtol=1e-5,
            atol=1e-5,
        )


@contextmanager
def together(folder: Path, processes: int = 2, **options: Any) -> Iterator[Together]:
    load = partial(load_world, str(folder), dtype="float32", **options)
    followers = [Follower(load, threads=1) for _ in range(processes - 1)]
    alone, mine = load(), load()
    for follower in followers:
        follower.ready()
    world = SequenceParallel(mine, followers)
    try:
        yield Together(world, alone, followers)
    finally:
        world.close()


def picture(width: int = 48, height: int = 48) -> torch.Tensor:
    return torch.randint(0, 256, (1, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def hook(transformer: Any, act: Callable[..., None]) -> Any:
    """Call `act` in the middle of every evaluation in this process."""
    return transformer.transformer_blocks[1].ff.register_forward_hook(lambda module, given, made: act(given[0]))


def finish(engine: Engine) -> None:
    while engine.pending:
        engine.step()


@pytest.fixture(scope="class")
def predict25(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Together]:
    folder = tmp_path_factory.mktemp("predict25")
    save_predict("predict2.5", folder)
    with together(folder) as pair:
        yield pair


class TestPredict25:
    def test_clips_from_text_and_from_a_picture(self, predict25: Together) -> None:
        seen: set[int] = set()
        handle = hook(predict25.inner.transformer, lambda tokens: seen.add(tokens.shape[2]))
        for changes in (SIZE, {"guidance_scale": 1.0}, {"reuse": 0.3, "steps": 6}):
            size = {"width": 64, "height": 32} | changes
            for given in (None, picture(int(size["width"]), int(size["height"]))):
                predict25.check(given, **size)
        handle.remove()
        assert seen == {5, 4}  # of nine, and of eight

    def test_requests_are_interleaved_dropped_and_refused_without_disturbing_others(self, predict25: Together) -> None:
        expected = [latents(rollout(predict25.alone, seed=seed)) for seed in (1, 2)]
        going = [rollout(predict25.world, seed=seed) for seed in (1, 2, 3)]
        for one in going:
            one.advance()
            one.advance()
        del going[2], one
        with pytest.raises(InvalidRequestError):
            rollout(predict25.world, width=64 * 16, height=32 * 16).advance()
        for one, latent in zip(going, expected, strict=True):
            torch.testing.assert_close(latents(one), latent, rtol=1e-5, atol=1e-5)

    def test_at_last_a_follower_that_fails_says_why_and_the_model_is_broken(self, predict25: Together) -> None:
        going, other = rollout(predict25.world), rollout(predict25.world, seed=6)
        going.advance()
        other.advance()
        for number in range(100):
            predict25.followers[0].forget(number)  # so it knows no request any more
        with pytest.raises(BrokenModelError) as broken:
            going.advance()
        assert isinstance(broken.value.error, WorkerError)
        assert "the second process failed: KeyError" in str(broken.value.error)
        with pytest.raises(BrokenModelError):
            other.advance()
        with pytest.raises(BrokenModelError):
            rollout(predict25.world).advance()


@pytest.fixture(scope="class")
def predict1(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Together]:
    folder = tmp_path_factory.mktemp("predict1")
    save_predict("predict1-video2world", folder)
    with together(folder) as pair:
        yield pair


class TestPredict1:
    def test_learned_positions_and_fresh_noise_at_every_evaluation(self, predict1: Together) -> None:
        predict1.check(picture(), **SIZE, frames=9)

    def test_at_last_a_follower_that_is_killed_ends_the_engine(self, predict1: Together, tmp_path: Path) -> None:
        data = BytesIO()
        Image.fromarray(picture()[0].numpy()).save(data, "png")
        hook(predict1.inner.transformer, lambda _: os.kill(predict1.followers[0].pid, signal.SIGKILL))
        engine = Engine(predict1.world)
        engine.submit("job", replace(REQUEST, **SIZE, frames=9, image=data.getvalue()), output=tmp_path / "clip")
        with pytest.raises(BrokenModelError):
            finish(engine)
        assert engine.finished() == []
        engine.close()


@pytest.fixture(scope="class")
def microcosm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Together]:
    folder = save_tiny(tmp_path_factory.mktemp("microcosm"))
    values = json.loads((folder / "world.json").read_text())
    (folder / "world.json").write_text(json.dumps(values | {"still_first": True}))
    with together(folder) as pair:
        yield pair


class TestMicrocosm:
    @pytest.mark.parametrize("given", [None, picture(960, 704)], ids=["text, in two goes", "picture"])
    def test_clips(self, microcosm: Together, given: torch.Tensor | None) -> None:
        microcosm.check(given, width=960, height=704, frames=9, fps=24, steps=2)

    def test_at_last_an_error_within_an_evaluation_ends_the_process_and_is_told(
        self, microcosm: Together, tmp_path: Path
    ) -> None:
        engine = Engine(microcosm.world)
        changes = {"width": 960, "height": 704, "frames": 1, "fps": 24}
        engine.submit("job", replace(REQUEST, **changes), output=tmp_path / "clip")

        def fail(tokens: torch.Tensor) -> None:
            raise MemoryError("not here")

        handle = hook(microcosm.inner.transformer, fail)
        with pytest.raises(BrokenModelError, match="not here"):
            finish(engine)
        handle.remove()
        ((name, error),) = engine.finished()
        assert name == "job"
        assert isinstance(error, NotEnoughMemoryError)  # and whoever asked is told that, not that a worker died
        engine.close()


def test_predict2_in_three_processes(tmp_path: Path) -> None:
    save_predict("predict2-video2world", tmp_path)
    with together(tmp_path, processes=3) as three:
        seen: set[int] = set()
        hook(three.inner.transformer, lambda tokens: seen.add(tokens.shape[2]))
        for size in (SIZE, {"width": 32, "height": 32}, {"width": 64, "height": 32}):
            three.check(picture(**size), **size)
        assert seen == {3, 2}  # of nine; of four, where the last process has none; and of eight


def test_transfer25_shares_its_control_networks_too_and_goes_on_to_the_next_chunk(tmp_path: Path) -> None:
    save_transfer(tmp_path, kinds=("edge", "depth"))
    shorter = methodcaller("__setattr__", "chunk_frames", 9)
    clips = {"edge": clip(17), "depth": clip(17, 1.0)}
    with together(tmp_path) as pair:
        shorter(pair.inner)
        shorter(pair.alone)
        pair.followers[0].send(Apply(shorter))
        ours, theirs = rollout_of(pair.world, clips), rollout_of(pair.alone, clips)
        torch.testing.assert_close(latents(ours), latents(theirs), rtol=1e-5, atol=1e-5)


def test_a_server_starts_another_pair_when_one_process_dies(tmp_path: Path) -> None:
    psutil = pytest.importorskip("psutil", reason="needs psutil (pip install '.[cosmos]')")
    save_tiny(tmp_path / "model")
    settings = Settings(model=str(tmp_path / "model"), parallel="sequence", threads=1, log_level="critical")
    small = replace(REQUEST, width=960, height=704, frames=1, fps=24, steps=2)
    long = replace(small, frames=121, steps=50)

    async def life() -> None:
        supervisor = Supervisor(settings)
        await supervisor.start()
        try:
            await ready(supervisor)
            first = await supervisor.generate(small, output=tmp_path / "first")
            assert supervisor.worker_pid is not None
            (follower,) = [
                child
                for child in psutil.Process(supervisor.worker_pid).children()
                if "ranks.process" in str(child.cmdline())
            ]
            going = asyncio.create_task(supervisor.generate(long, output=tmp_path / "second"))
            async with asyncio.timeout(240):
                while not supervisor.active:
                    await asyncio.sleep(0.01)
            follower.kill()
            with pytest.raises(WorkerDiedError):
                await going
            await ready(supervisor)
            assert supervisor.restarts == 1
            third = await supervisor.generate(small, output=tmp_path / "third")
            assert third.path.read_bytes() == first.path.read_bytes()
        finally:
            await supervisor.stop()

    async def ready(supervisor: Supervisor) -> None:
        async with asyncio.timeout(240):
            while not supervisor.ready:
                await asyncio.sleep(0.01)

    asyncio.run(life())


def test_a_follower_ends_with_the_process_that_started_it_whatever_it_waits_for() -> None:
    program = (
        "import os, time\n"
        "from functools import partial\n"
        "from cosmorama.world.ranks.process import Follower\n"
        "print(Follower(partial(time.sleep, 600)).pid, flush=True)\n"
        "time.sleep(5)\n"
        "os._exit(0)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240, check=True)
    stat, deadline = Path(f"/proc/{int(ended.stdout)}/stat"), time.monotonic() + 120
    while stat.exists() and stat.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_families_that_cannot_are_refused(tmp_path: Path) -> None:
    save_wan(tmp_path)
    with pytest.raises(ModelNotFoundError, match=r"family generic:WanPipeline, .* predict1 to transfer2\.5"):
        SequenceParallel(load_world(str(tmp_path)), ())


def test_guidance_takes_two_processes() -> None:
    assert Settings(parallel="sequence", parallel_processes=8).parallel_processes == 8
    with pytest.raises(ValidationError, match="parallel_processes is 3; with parallel=guidance it must be 2"):
        Settings(parallel="guidance", parallel_processes=3)
