"""The clip before the first request, on models that begin with different things."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cosmorama.engine.engine import Engine
from cosmorama.engine.warmup import warm_up
from cosmorama.world.registry import load_world
from tests.world.checkpoints import save_predict


def test_a_model_that_needs_a_picture_is_given_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    save_predict("predict2-video2world", tmp_path)
    engine = Engine(load_world(str(tmp_path)))
    warm_up(engine)
    assert "warmed up in" in caplog.text
    assert engine.pending == 0
    engine.close()


def test_a_model_that_needs_a_clip_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_predict("predict2-video2world", tmp_path)
    world = load_world(str(tmp_path))
    follower = replace(world.capabilities, model="follower", modes=("transfer",))
    monkeypatch.setattr(world, "capabilities", follower)
    engine = Engine(world)
    warm_up(engine)
    assert "no warm-up: follower makes clips only from other clips" in caplog.text
    engine.close()


def test_a_clip_that_cannot_be_made_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_predict("predict2-video2world", tmp_path)
    world: Any = load_world(str(tmp_path))
    world.transformer.proj_out.weight.data.fill_(float("nan"))
    engine = Engine(world)
    warm_up(engine)
    assert "the warm-up failed: the latents after step 1" in caplog.text
    engine.close()
