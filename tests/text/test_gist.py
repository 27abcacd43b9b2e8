"""Prompts in free words: what is said of what can be pictured is kept, and of what cannot nothing is made up."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cosmorama.text.gist import corridor_in, gist, scene_in
from cosmorama.text.reader import NamedObject, PromptScene, parse_scene
from microcosm.evaluation.strangers import Stranger, read_strangers, strangers
from tests.text.test_upsampling import WORDS


def right(one: Stranger) -> bool | None:
    """Whether a prompt is read as it is meant; None: it is not read."""
    found = scene_in(one.prompt)
    if found is None:
        return None
    named = [NamedObject(thing.shape, thing.color) for thing in one.objects]
    alike = sorted(map(str, found.objects)) == sorted(map(str, named))
    return alike and one.floor in (None, found.floor) and one.direction in (None, found.direction)


@pytest.mark.parametrize(
    ("prompts", "least", "most_wrong"),
    [(strangers(), 0.98, 0.02), (read_strangers(Path(__file__).parent / "free_prompts.txt"), 0.90, 0.07)],
    ids=["of the evaluation", "others"],
)
def test_prompts_as_people_type_them_are_read(prompts: list[Stranger], least: float, most_wrong: float) -> None:
    read = [right(one) for one in prompts]
    assert read.count(True) >= least * len(prompts)
    assert read.count(False) <= most_wrong * len(prompts)


@pytest.mark.parametrize(
    ("prompt", "known"),
    [
        ("please show me a shiny red ball that glides left, 4k", "A red ball rolls to the left."),
        ("A robot arm pushes a red cube on a wooden table", "A red cube slides on a wooden floor."),
        ("A ball, red. It falls. Night.", "A red ball falls and bounces under a dark night sky."),
        ("can you make a blue metal can drop onto concrete?", "A blue cylinder falls and lands on a grey floor."),
        (
            "two cubes, one blue one orange: the blue one slides right until it hits the orange one",
            "A blue cube slides to the right and hits an orange cube.",
        ),
        ("a green cube is hit by a blue ball", "A blue ball rolls and hits a green cube."),
        ("a green ball falls and hits the wooden floor", "A green ball falls and bounces on a wooden floor."),
        ("a big red ball", "A red ball stands still."),
        ("a shiny red ball slides to the left next to a cube", "A red ball rolls to the left next to a cube."),
        ("a blue cube, no text, no watermark, no camera shake", "A blue cube stands still."),
        ("a yellow ball in front of a red car", "A yellow ball stands still."),
        (
            "cinematic: a robot drives through a narrow warehouse aisle, blue shelves with orange boxes, dust",
            "The camera drives forward through a corridor of blue shelves with orange boxes.",
        ),
        # More than there is in a scene: two objects are kept, and the first motion.
        ("three shiny red balls", "A red ball stands still next to a red ball."),
        ("many nice cubes", "A cube stands still next to a cube."),
        ("a red ball, a blue cube and a green can, all shiny", "A red ball stands still next to a blue cube."),
        ("the red ball hits the blue ball and the green ball", "A red ball rolls and hits a blue ball."),
        ("two red balls roll to the left", "A red ball rolls to the left next to a red ball."),
        ("five balls bounce", "A ball falls and bounces next to a ball."),
        ("a shiny ball falls and then rolls away", "A ball falls and bounces."),
        ("a red ball rolls left, then right", "A red ball rolls to the left."),
    ],
)
def test_what_is_left_of_free_words(prompt: str, known: str) -> None:
    assert gist(prompt) == known


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a dragon",
        "an oil painting of a cat under a night sky",
        "a red ball, but no cube",
        "a red cube that does not fall down",
        "a kitchen with red chairs and a blue wall",
        "can you show me something",
        "a warehouse without shelves of any kind",
        "a red ball rolls right",  # all of it is known
        "a robot drives down an aisle of blue racks",
    ],
)
def test_nothing_is_made_of_what_cannot_be_said(prompt: str) -> None:
    assert gist(prompt) is None


@example("navy amber next to and left balls")  # a ball rolls to the left next to a ball
@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.sampled_from([*WORDS, "shiny", "car", "no", "can", "red car", "please,"]), max_size=12).map(" ".join)
)
def test_what_is_left_says_what_was_read_and_can_be_read_whole(prompt: str) -> None:
    known, found = gist(prompt), scene_in(prompt)
    if known is not None:
        assert found is not None
        assert scene_in(known) == parse_scene(known) == found
        assert len(found.objects) <= 2


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=80))
def test_any_text_is_answered(prompt: str) -> None:
    known = gist(prompt)
    assert known is None or known.endswith(".")


@pytest.mark.parametrize("prompt", ["x" * 20_000, "a." * 10_000, "red " * 490, "no " * 600, "ball, " * 330])
def test_a_long_prompt_costs_next_to_nothing(prompt: str) -> None:
    started = time.process_time()
    gist(prompt)
    assert time.process_time() - started < 0.2


def test_of_a_corridor_what_is_known_is_kept() -> None:
    found = corridor_in("ultra realistic robot pov, driving slowly along a hallway of yellow shelves, a red cube ahead")
    assert found is not None
    assert (found.shelves, found.speed, found.ahead) == ("yellow", "slow", NamedObject("cube", "red"))
    assert scene_in("a red ball on a shelf, shiny") is None


def test_a_scene_with_everything() -> None:
    assert scene_in("Wow: the crimson rolling sphere bumps a lime crate at night on asphalt; from the left, 8k") == (
        PromptScene((NamedObject("ball", "red"), NamedObject("cube", "green")), "collide", "right", "grey", "night")
    )
