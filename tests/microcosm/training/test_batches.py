"""What is trained on: the shares of worlds and lengths, and prompts that fit."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from microcosm.scenes.corridor import draw_corridor
from microcosm.scenes.dataset import Label, spread
from microcosm.scenes.shots import caption_of, scene_from_json, world_of
from microcosm.scenes.simulate import draw_scene
from microcosm.training.auxiliary import ATTRIBUTES, UNKNOWN, scene_classes
from microcosm.training.batches import STAGES, Sampler, Shots, Stage, mapped, read_shots
from tests.microcosm.shards import write_shards


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_shards(folder)
    return folder


def shots(frames: int, count: int, corridor: bool) -> Shots:
    rng = np.random.default_rng(count)
    scenes = [draw_corridor(rng) if corridor else draw_scene(rng) for _ in range(count)]
    labels = [Label(seed, "8x8", seed, 24, scene, caption_of(scene)) for seed, scene in enumerate(scenes)]
    return Shots(world_of(scenes[0]), np.zeros((count, frames, 8, 8, 3), np.uint8), labels)


def test_computing_time_is_shared_as_the_stage_says() -> None:
    everything = [shots(frames, 20 - frames // 8, corridor) for frames in (1, 33, 121) for corridor in (False, True)]
    everything.append(shots(33, 40, False))  # more of a kind: not more of the time
    sampler = Sampler(everything, STAGES["both"], 0, 0)
    spent: Counter[tuple[str, int]] = Counter()
    for _ in range(2000):
        batch = sampler.draw()
        spent[batch.world, batch.latent_frames] += len(batch.prompts) * batch.latent_frames
    for world, shares in STAGES["both"].shares.items():
        for length, share in shares.items():
            assert abs(spent[world, length] / spent.total() - share) < 0.04


def test_a_stage_leaves_out_what_it_does_not_name_and_stills_of_later_moments() -> None:
    sampler = Sampler([shots(1, 40, False), shots(33, 2, False), shots(33, 2, True)], STAGES["onward"], 0, 0)
    assert {(group.world, group.length) for group in sampler.groups} == {("objects", 1), ("objects", 5)}
    stills = next(group for group in sampler.groups if group.length == 1)
    assert 0 < len(stills.rows) < 40


def test_mapped_arrays_are_those_of_the_file(data: Path) -> None:
    with np.load(data / "shorts-0000.npz") as stored:
        assert np.array_equal(mapped(data / "shorts-0000.npz")["24x16"], stored["24x16"])


def test_batches_are_stills_and_windows_with_what_they_show(data: Path) -> None:
    stage = Stage({"objects": {1: 0.4, 5: 0.6}}, minutes=1)
    sampler, lengths = Sampler(read_shots(data), stage, 0, 0, times=2), set()
    for _ in range(60):
        batch = sampler.draw()
        count, latents = len(batch.frames), batch.latent_frames
        lengths.add(latents)
        assert batch.frames.shape == (count, 3, 1 + 8 * (latents - 1), 16, 24)
        assert len(batch.prompts) == count == (48 if latents == 1 else 12)
        assert bool((batch.given < latents).all())
        assert bool((batch.given == 0).all()) == (latents == 1)
    assert lengths == {1, 5}


def test_workers_draw_other_batches_of_the_same_shapes(data: Path) -> None:
    stage = Stage({"objects": {1: 0.5, 5: 0.5}}, minutes=1)
    one, other = (Sampler(read_shots(data), stage, 3, rank) for rank in (0, 1))
    for _ in range(20):
        ours, theirs = one.draw(), other.draw()
        assert ours.frames.shape == theirs.frames.shape
        assert ours.prompts != theirs.prompts


def test_scenes_of_both_worlds_have_their_classes_and_survive_being_stored() -> None:
    rng = np.random.default_rng(1)
    for scene in (draw_scene(rng), draw_corridor(rng), draw_corridor(rng), draw_corridor(rng)):
        assert scene_from_json(asdict(scene)) == scene
        classes = scene_classes(scene, mirrored=False)
        assert len(classes) == ATTRIBUTES
        assert (classes[-1] == UNKNOWN) == (world_of(scene) == "objects")
        assert caption_of(scene).endswith(".")


def test_work_is_spread_over_processes_in_order() -> None:
    assert spread(divmod, [7, 8, 9], [2, 3, 4], name="quotients", count=3, processes=2) == [(3, 1), (2, 2), (2, 1)]
