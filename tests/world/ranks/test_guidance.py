"""Both halves of the guidance at the same time, in two processes: the same numbers as in one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cosmorama.engine.prepare import PreparedRequest
from cosmorama.engine.rollout import Rollout
from cosmorama.errors import InvalidRequestError, ModelNotFoundError, WorkerError
from cosmorama.request import ResolvedRequest
from cosmorama.resolve import resolve
from cosmorama.world.base import World
from cosmorama.world.ranks.guidance import GuidanceParallel
from cosmorama.world.ranks.process import Do, Follower
from cosmorama.world.registry import load_world
from tests.tiny import save_tiny, save_transformer
from tests.world.checkpoints import save_predict

REQUEST = ResolvedRequest(
    prompt="a red ball",
    negative_prompt="blurred",
    prompt_upsampling=False,
    seed=5,
    steps=3,
    width=64,
    height=32,
    frames=5,
    fps=16,
    guidance_scale=3.0,
)
Pair = tuple[World, GuidanceParallel]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("parallel") / "model"
    save_predict("predict2.5", folder)
    load = partial(load_world, str(folder), dtype="float32")
    follower = Follower(load, threads=1)
    world = load()
    follower.ready()
    yield world, GuidanceParallel(world, follower)
    follower.close()


def rollout(world: Any, picture: Tensor | None = None, **changes: Any) -> Rollout:
    request = replace(REQUEST, **changes)
    if picture is not None:
        request = replace(request, image=b"read already")
    request = resolve(request, world.capabilities)
    return Rollout(world, PreparedRequest(request, request.prompt or "", None if picture is None else picture.numpy()))


def latents(going: Rollout) -> Tensor:
    while not going.done:
        going.advance()
    return going.latents


def test_two_processes_give_the_numbers_of_one(pair: Pair) -> None:
    world, parallel = pair
    torch.manual_seed(1)
    picture = torch.randint(0, 256, (1, 32, 64, 3), dtype=torch.uint8)
    for changes in ({}, {"guidance_interval": (0.3, 0.8)}, {"reuse": 0.3, "steps": 6}):
        for given in (None, picture):
            alone = latents(rollout(world, given, **changes))
            together = latents(rollout(parallel, given, **changes))
            torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    unguided = latents(rollout(world, guidance_scale=1.0))
    assert not torch.allclose(unguided, latents(rollout(world)), atol=1e-2)


def test_the_negative_half_is_not_evaluated_here(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    world, parallel = pair
    asked: list[bool] = []
    begin = world.begin

    def watched(*arguments: Any) -> Any:
        sampling: Any = begin(*arguments)
        denoise = sampling.denoise

        def note(latents: Tensor, index: int, *, negative: bool = False) -> Tensor:
            asked.append(negative)
            return denoise(latents, index, negative=negative)  # type: ignore[no-any-return]

        sampling.denoise = note
        return sampling

    monkeypatch.setattr(world, "begin", watched)
    latents(rollout(parallel))
    assert asked == [False] * 3


def test_requests_are_interleaved_dropped_and_refused_without_disturbing_others(pair: Pair) -> None:
    world, parallel = pair
    expected = [latents(rollout(world, seed=seed)) for seed in (1, 2)]
    going = [rollout(parallel, seed=seed) for seed in (1, 2, 3)]
    for one in going:
        one.advance()
        one.advance()
    del going[2], one
    with pytest.raises(InvalidRequestError):
        rollout(parallel, width=64 * 16, height=32 * 16).advance()
    for one, latent in zip(going, expected, strict=True):
        torch.testing.assert_close(latents(one), latent, rtol=1e-5, atol=1e-5)


def test_clips_that_are_made_in_several_goes(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    save_transformer(tmp_path, blends=True)
    values = json.loads((tmp_path / "world.json").read_text())
    several = {"prediction": "blend", "still_first": True, "guidance_map_onward": [[1.0, 1.0], [10.0, 2.0]]}
    (tmp_path / "world.json").write_text(json.dumps(values | several))
    load = partial(load_world, str(tmp_path))
    follower, world = Follower(load, threads=1), load()
    follower.ready()
    try:
        changes = {"width": 960, "height": 704, "frames": 9, "fps": 24}
        alone = rollout(world, **changes)
        together = rollout(GuidanceParallel(world, follower), **changes)
        torch.testing.assert_close(latents(together), latents(alone), rtol=1e-5, atol=1e-5)
        assert together.progress.total == alone.progress.total == 2 * REQUEST.steps
    finally:
        follower.close()


def test_a_follower_that_cannot_load_the_model_says_why(tmp_path: Path) -> None:
    follower = Follower(partial(load_world, str(tmp_path)), threads=1)
    with pytest.raises(ModelNotFoundError, match="not a complete checkpoint"):
        follower.ready()
    follower.close()


def test_an_unknown_request_is_answered_with_the_reason(pair: Pair) -> None:
    follower = pair[1]._followers[0]
    follower.send(Do(10**6, "denoise", torch.zeros(1), {"index": 0}))
    with pytest.raises(WorkerError, match="KeyError"):
        follower.receive()
