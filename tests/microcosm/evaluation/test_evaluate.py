"""The evaluation's own rules: verdicts, held-out prompts, what counts as right, what is gained over copying."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cosmorama.request import Defaults
from cosmorama.text.language import Scene, SceneObject, canonical_caption
from cosmorama.world.microcosm.loader import load_microcosm
from microcosm.evaluation.adherence import (
    clip_prompts,
    color_right,
    count_right,
    floor_right,
    shape_right,
    still_prompts,
)
from microcosm.evaluation.continuation import compare, continuation_figures
from microcosm.evaluation.figures import Figure
from microcosm.evaluation.heldout import deranged, held_out
from microcosm.evaluation.probe import Sight
from microcosm.evaluation.rollouts import Job, draw
from microcosm.evaluation.sheets import grid, strip, titled
from microcosm.scenes.dataset import SPLITS
from microcosm.training.loop import WEIGHTS

RED_BALL, BLUE_CUBE = SceneObject("red", "ball"), SceneObject("blue", "cube")


@pytest.mark.parametrize(("value", "verdict"), [(84.9, "fail"), (85, "pass"), (94, "pass"), (95, "goal")])
def test_verdicts(value: float, verdict: str) -> None:
    assert Figure("color", value, 85, 95, "%").verdict == verdict


@pytest.mark.parametrize(("value", "verdict"), [(91, "fail"), (90, "pass"), (45, "goal")])
def test_verdicts_where_less_is_better(value: float, verdict: str) -> None:
    figure = Figure("request", value, 90, 45, "s", at_most=True)
    assert figure.verdict == verdict
    assert json.loads(json.dumps(figure.as_json()))["verdict"] == verdict


def test_held_out_shots_are_in_no_training_split() -> None:
    seeds = {one.shot.seed for one in held_out(20)}
    for name, split in SPLITS.items():
        if name != "heldout":
            assert seeds.isdisjoint(range(split.first_seed, split.first_seed + split.shards * split.shots_per_shard))


def test_half_of_the_prompts_are_canonical() -> None:
    held = held_out(10)
    assert [one.prompt == canonical_caption(one.scene) for one in held] == [True, False] * 5
    assert [one.canonical for one in held] == [True, False] * 5


def test_prompts_are_mixed() -> None:
    assert [len(one.scene.objects) for one in still_prompts(8)] == [1, 2] * 4
    clips = clip_prompts(9)
    assert sum(one.scene.direction is not None for one in clips) == 6
    assert {one.scene.direction is None for one in clips[:3]} == {True, False}
    assert {one.shot.seed for one in clips}.isdisjoint(one.shot.seed for one in still_prompts(40))


def test_no_scene_keeps_its_place_when_shuffled() -> None:
    scenes = [one.scene for one in held_out(7)]
    assert all(one is not other for one, other in zip(scenes, deranged(scenes), strict=True))
    assert sorted(map(str, scenes)) == sorted(map(str, deranged(scenes)))


def test_what_counts_as_right() -> None:
    sight = Sight({"red": "ball"}, ("red", "ball"), "grey")
    right = Scene((RED_BALL,), "still", None, "grey", "day")
    assert all(measure(sight, right) for measure in (color_right, shape_right, floor_right, count_right))
    wrong = Scene((BLUE_CUBE, SceneObject("green", "ball")), "still", None, "blue", "day")
    assert not any(measure(sight, wrong) for measure in (color_right, shape_right, floor_right, count_right))
    pale = Sight({}, ("red", "ball"), "grey")  # nothing is sure: the surest counts, but not as an object
    assert color_right(pale, right)
    assert shape_right(pale, right)
    assert not count_right(pale, right)


def test_moving_pixels_are_compared_apart() -> None:
    frames = torch.zeros(1, 3, 4, 8, 8)
    frames[:, :, 2:, :4] = 0.5
    other = frames.clone()
    other[..., :4, :] += 0.2
    figures = compare(frames, other)
    assert figures["moving"] == pytest.approx(20.0, abs=0.01)
    assert figures["all"] == pytest.approx(20 + 10 * np.log10(2), abs=0.01)


def test_the_way_from_copying_to_the_ceiling() -> None:
    model, copied, ceiling = ({"all": x, "moving": y} for x, y in ((24, 16), (20, 12), (30, 20)))
    gain, moving, way = continuation_figures("image2world", model, copied, ceiling, 8)
    assert (gain.value, moving.value, way.value) == (4, 4, 40)
    assert way.bounds["moving pixels"] == 50


def test_a_clip_is_drawn_as_the_engine_draws_it() -> None:
    world = load_microcosm(WEIGHTS)
    given = held_given()
    clip = draw(world, Job("a red ball falls", 9, 3, given, steps=1))
    assert clip.shape == (9, 88, 160, 3)
    frame = torch.from_numpy(given[:1]).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    with torch.inference_mode():
        shown = world.autoencoder.decode_small(world.autoencoder.encode_small(frame), 88, 160)[0, :, -1]
    expected = (shown.clamp(-1, 1) * 127.5 + 127.5).permute(1, 2, 0).numpy()
    assert np.abs(clip[0].astype(float) - expected).max() <= 1  # the given frame comes back untouched
    still = draw(world, Job("a red ball falls", 1, 3, steps=1))
    assert still.shape == (1, 88, 160, 3)
    assert Job("", 1, 0).steps == Defaults().steps


def held_given() -> np.ndarray:
    return np.random.default_rng(0).integers(100, 150, (1, 88, 160, 3), dtype=np.uint8)


def test_sheets(tmp_path: Path) -> None:
    clip = np.random.default_rng(0).integers(0, 256, (33, 8, 16, 3), dtype=np.uint8)
    row = strip(clip, 3)
    np.testing.assert_array_equal(row, np.concatenate([clip[0], clip[16], clip[32]], axis=1))
    sheet = grid([titled(row, "a very long prompt that does not fit")] * 3, 2)
    assert sheet.shape == (2 * (8 + 12), 2 * 48, 3)
