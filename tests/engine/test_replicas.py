"""Several workers with one model behind one queue, with the real (tiny) model in real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from cosmorama.api.app import pool_of
from cosmorama.engine.build import build_engine
from cosmorama.engine.outcome import Outcome
from cosmorama.engine.pool import ModelPool
from cosmorama.errors import CosmoramaError, ModelNotFoundError, WorkerDiedError
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
    pool = pool_of(settings)

    async def generate(request: GenerationRequest, name: str) -> Outcome:
        with pool.worker(None) as worker:
            return await worker.generate(request, output=tmp_path / name, name=name)

    async def life() -> None:
        await pool.start()
        try:
            await until(lambda: all(worker.ready for worker in pool.workers))
            first, second = (worker.worker_pid for worker in pool.workers)
            assert first is not None
            assert len({first, second, None}) == 3
            lost = asyncio.create_task(generate(LONG, "lost"))
            await until(lambda: pool.active == 1)
            kept = asyncio.create_task(generate(replace(LONG, steps=3), "kept"))
            await until(lambda: pool.active == 2)
            assert [worker.held for worker in pool.workers] == [1, 1]
            os.kill(first, signal.SIGKILL)
            with pytest.raises(WorkerDiedError):
                await lost
            assert pool.ready  # the other is
            made = await generate(SMALL, "small")
            assert made.path.stat().st_size > 0
            assert (await kept).path.stat().st_size > 0
            await until(lambda: pool.restarts == 1)
        finally:
            await pool.stop()

    asyncio.run(life())


def test_each_has_the_next_gpus() -> None:
    def devices(**settings: object) -> list[str]:
        made = ModelPool(Settings(**settings))  # type: ignore[arg-type]
        return [worker._settings.device for worker in made.workers]

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


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"min_replicas": 1}, "min_replicas is for a fleet"),
        ({"role": "fleet", "replicas": 2, "min_replicas": 3}, "min_replicas is 3; it must be at most replicas, 2"),
        ({"role": "fleet", "model_idle_s": 5}, "model_idle_s is for one machine"),
        ({"role": "fleet", "captioning_checkpoint": "x"}, "replicas need captioning_endpoint_url"),
    ],
)
def test_what_replicas_cannot_be_is_refused_by_name(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Settings(**settings)
    Settings(role="fleet", replicas=8, min_replicas=0, models={"a": "microcosm", "b": "microcosm"})


def test_a_fleet_without_ray_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "cosmorama.engine.cluster", raising=False)
    with pytest.raises(CosmoramaError, match=r"ray is not installed: pip install '\.\[ray\]'"):
        pool_of(Settings(role="fleet"))
