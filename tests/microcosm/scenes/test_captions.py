"""The scene language and the training captions written in it."""

import numpy as np
import pytest

from cosmorama.text.language import Scene, SceneObject, canonical_caption, mirror_caption
from cosmorama.world.microcosm.text_encoder import words
from microcosm.scenes.captions import empty_prompt, random_caption
from microcosm.scenes.simulate import draw_scene

RED_BALL = SceneObject("red", "ball")


def test_canonical_caption_names_everything() -> None:
    scene = Scene((RED_BALL, SceneObject("orange", "cube")), "collide", "left", "wooden", "night")
    assert canonical_caption(scene) == (
        "A red ball rolls to the left and hits an orange cube on a wooden floor under a dark night sky. "
        "The camera is static."
    )


@pytest.mark.parametrize("seed", range(50))
def test_mirroring_swaps_left_and_right_and_nothing_else(seed: int) -> None:
    rng = np.random.default_rng(seed)
    caption = random_caption(draw_scene(rng), rng)
    mirrored = mirror_caption(caption)
    assert mirror_caption(mirrored) == caption
    swapped = {"left": "right", "right": "left"}
    assert words(mirrored) == [swapped.get(word, word) for word in words(caption)]


def test_the_mirror_image_of_a_canonical_caption_is_the_caption_of_the_mirror_image() -> None:
    left, right = (Scene((RED_BALL,), "roll", direction, "blue", "day") for direction in ("left", "right"))
    assert mirror_caption(canonical_caption(left)) == canonical_caption(right)


@pytest.mark.parametrize(
    ("objects", "motion", "direction"),
    [((), "still", None), ((RED_BALL,), "collide", "left"), ((RED_BALL,), "roll", None), ((RED_BALL,), "fall", "left")],
)
def test_impossible_scenes_are_refused(objects: tuple[SceneObject, ...], motion: str, direction: str | None) -> None:
    with pytest.raises(ValueError, match=r"object|direction"):
        Scene(objects, motion, direction, "grey", "day")  # type: ignore[arg-type]


def test_empty_prompts_hold_no_scene() -> None:
    rng = np.random.default_rng(0)
    prompts = {empty_prompt(rng) for _ in range(200)}
    assert "" in prompts
    assert not any({"ball", "cube", "cylinder"} & set(words(prompt)) for prompt in prompts)
