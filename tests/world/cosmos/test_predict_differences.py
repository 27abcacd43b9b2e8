"""Where the Predict families differ from diffusers' pipelines on purpose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cosmorama.engine.prepare import PreparedRequest, Preparer
from cosmorama.engine.rollout import Rollout
from cosmorama.errors import InvalidRequestError
from cosmorama.media.write import VideoWriter
from cosmorama.request import Output, ResolvedRequest
from cosmorama.resolve import resolve
from cosmorama.world.cosmos.predict2 import predict2_schedule
from cosmorama.world.levels import edm_levels
from cosmorama.world.registry import load_world
from tests.world.checkpoints import save_predict

REQUEST = ResolvedRequest(
    prompt="a red ball", seed=1, width=64, height=48, frames=11, steps=2, guidance_scale=1.0, fps=16
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("predict2.5")
    save_predict("predict2.5", folder)
    return load_world(str(folder), device="cpu")


def frames_of(world: Any, request: ResolvedRequest) -> np.ndarray:
    made = Rollout(world, PreparedRequest(resolve(request, world.capabilities), "a red ball", None))
    while not made.done:
        made.advance()
    return np.concatenate(list(made.decode()))


def test_any_number_of_frames_is_made_by_making_more_and_trimming(world: Any) -> None:
    """diffusers makes 9 for 11 and then shows every frame four times."""
    eleven, thirteen = (frames_of(world, replace(REQUEST, frames=count)) for count in (11, 13))
    assert len(eleven) == 11
    assert np.array_equal(eleven, thirteen[:11])


def test_only_the_last_frames_of_a_clip_are_the_condition(world: Any, tmp_path: Path) -> None:
    """Predict1 and Predict2 take every frame in diffusers: a long clip leaves nothing to generate."""
    file = tmp_path / "long.mp4"
    shades = np.repeat(np.linspace(0, 240, 40).astype(np.uint8), 48 * 64 * 3).reshape(40, 48, 64, 3)
    with VideoWriter(file, width=64, height=48, fps=16, output=Output(quality=9)) as writer:
        writer.write(shades)
    request = resolve(replace(REQUEST, video=file.read_bytes(), prompt_upsampling=False), world.capabilities)
    prepared = Preparer()(request, world.capabilities)
    assert prepared.frames is not None
    assert prepared.frames.shape == (5, 48, 64, 3)
    assert prepared.frames.mean((1, 2, 3)) == pytest.approx(shades[-5:].mean((1, 2, 3)), abs=6)
    assert world.begin(prepared.inputs, world.encode_text).known.shape[2] == 2


def test_an_image_and_a_video_together_are_refused(world: Any) -> None:
    """diffusers drops the video."""
    with pytest.raises(InvalidRequestError, match="not both") as refused:
        resolve(replace(REQUEST, image=b"one", video=b"two"), world.capabilities)
    assert refused.value.status == 422


def test_a_side_longer_than_the_model_has_positions_for_is_refused(world: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"size: '1024x16' .* multiples of 16 up to 256x256, with at most"):
        resolve(replace(REQUEST, width=1024, height=16), world.capabilities)


def test_one_step_leads_to_the_clean_estimate() -> None:
    """Where diffusers' schedule has one level, twice, it returns the noise that it began with."""
    assert predict2_schedule(1).sigmas == (80.0, 0.0)
    config = {"sigma_min": 0.002, "sigma_max": 80.0, "final_sigmas_type": "sigma_min"}
    assert edm_levels(config, 1).sigmas == (80.0, 0.0)


def test_a_schedule_that_ends_with_the_same_level_twice_loses_a_step() -> None:
    assert predict2_schedule(5).steps == 4
    ends_small = {"sigma_min": 0.002, "sigma_max": 80.0, "final_sigmas_type": "sigma_min"}
    assert edm_levels(ends_small, 5).steps == 4
    assert edm_levels({**ends_small, "final_sigmas_type": "zero"}, 5).sigmas[-1] == 0
