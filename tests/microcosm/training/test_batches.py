"""What is trained on: the shares of worlds and lengths, and prompts that fit."""

from collections import Counter
from dataclasses import asdict

import numpy as np
import torch

from microcosm.scenes.corridor import draw_corridor
from microcosm.scenes.shots import caption_of, scene_from_json, world_of
from microcosm.scenes.simulate import draw_scene
from microcosm.training.auxiliary import ATTRIBUTES, UNKNOWN, scene_classes
from microcosm.training.batches import STAGES, Batches
from microcosm.training.latents import Group, Rows


def _group(frames: int, count: int, corridor: bool) -> Group:
    rng = np.random.default_rng(count)
    scenes = [draw_corridor(rng) if corridor else draw_scene(rng) for _ in range(count)]
    return Group(Rows(torch.zeros(count, 2, frames, 2, 2).half().split(2)), scenes, [False] * count, 24)


def test_computing_time_is_shared_as_the_stage_says() -> None:
    groups = [_group(frames, 3 + frames, corridor) for frames in (1, 5, 16) for corridor in (False, True)]
    groups.append(_group(5, 40, False))  # more of a kind: not more of the time
    batches = Batches(groups, STAGES["both"])
    spent: Counter[tuple[str, int]] = Counter()
    for _ in range(4000):
        batch = batches.draw()
        spent[batch.world, batch.clean.shape[2]] += batch.clean.shape[0] * batch.clean.shape[2]
    for world, shares in STAGES["both"].shares.items():
        for length, share in shares.items():
            assert abs(spent[world, length] / spent.total() - share) < 0.03


def test_a_stage_leaves_out_what_it_does_not_name() -> None:
    assert STAGES["onward"].share(_group(5, 2, corridor=False))
    assert not STAGES["onward"].share(_group(5, 2, corridor=True))


def test_scenes_of_both_worlds_have_their_classes_and_survive_being_stored() -> None:
    rng = np.random.default_rng(1)
    for scene in (draw_scene(rng), draw_corridor(rng), draw_corridor(rng), draw_corridor(rng)):
        assert scene_from_json(asdict(scene)) == scene
        classes = scene_classes(scene, mirrored=False)
        assert len(classes) == ATTRIBUTES
        assert (classes[-1] == UNKNOWN) == (world_of(scene) == "objects")
        assert caption_of(scene).endswith(".")
