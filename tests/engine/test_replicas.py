"""Several workers with one model behind one queue, with the real (tiny) model in real processes."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from cosmorama.api.app import workers_of
from cosmorama.engine.build import build_engine
from cosmorama.engine.replicas import Replicas
from cosmorama.errors import ModelNotFoundError, WorkerDiedError
from cosmorama.request import GenerationRequest
from cosmorama.settings import Settings

SMALL = GenerationRequest(prompt="a red ball", seed=1, steps=2, width=960, height=704, frames=1)
LONG = replace(SMALL, steps=50, frames=121)


async def until(condition: object, timeout_s: float = 240) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.05)


def test_generations_are_shared_out_and_a_dead_worker_loses_its_own_only(tiny_checkpoint: Path, tmp_path: Path) -> None:
    settings = Settings(model=str(tiny_checkpoint), replicas=2, threads=1, log_level="critical")
    replicas = workers_of(settings)
    assert isinstance(replicas, Replicas)

    async def life() -> None:
        await replicas.start()
        try:
            await until(lambda: all(supervisor.ready for supervisor in replicas._supervisors))
            first, second = replicas.worker_pids
            assert first is not None
            assert len({first, second, None}) == 3
            lost = asyncio.create_task(replicas.generate(LONG, output=tmp_path / "lost", name="lost"))
            await until(lambda: replicas.active == 1)
            kept = asyncio.create_task(replicas.generate(replace(LONG, steps=3), output=tmp_path / "kept", name="kept"))
            await until(lambda: replicas.active == 2)
            assert [supervisor.held for supervisor in replicas._supervisors] == [1, 1]
            os.kill(first, signal.SIGKILL)
            with pytest.raises(WorkerDiedError):
                await lost
            assert replicas.ready  # the other is
            made = await replicas.generate(SMALL, output=tmp_path / "small", name="small")
            assert made.path.stat().st_size > 0
            assert (await kept).path.stat().st_size > 0
            await until(lambda: replicas.restarts == 1)
        finally:
            await replicas.stop()

    asyncio.run(life())


def test_each_has_the_next_gpus() -> None:
    def devices(**settings: object) -> list[str]:
        made = Replicas(Settings(**settings))  # type: ignore[arg-type]
        return [supervisor._settings.device for supervisor in made._supervisors]

    async def look() -> None:
        assert devices(replicas=3) == ["auto:0", "auto:1", "auto:2"]
        assert devices(replicas=2, device="cuda:4", parallel="guidance") == ["cuda:4", "cuda:6"]
        assert devices(replicas=2, device="cpu") == ["cpu", "cpu"]

    asyncio.run(look())


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ModelNotFoundError, match=r"GPU 2, counted from 0, and there are 2 GPUs: .* COSMORAMA_REPLICAS"):
        build_engine(Settings(device="cuda:2"))


def test_places_are_those_of_all_and_several_models_have_no_replicas() -> None:
    assert Settings(replicas=4, max_active=2).places == 8
    with pytest.raises(ValidationError, match="replicas is 2; with several models"):
        Settings(replicas=2, models={"a": "microcosm", "b": "microcosm"})
