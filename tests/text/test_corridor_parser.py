"""Prompts about a corridor: what they name is kept, what they leave open is chosen, all else is left alone."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmorama.text import language as corridor
from cosmorama.text import language as language
from cosmorama.text.language import Corridor, SceneObject, corridor_caption
from cosmorama.text.reader import NamedObject, PromptCorridor, parse_corridor, parse_scene, written_out

upsample = written_out


@st.composite
def corridors(draw):
    shelves, boxes, other = draw(st.permutations(language.COLORS))[:3]
    ahead = SceneObject(other, draw(st.sampled_from(language.SHAPES))) if draw(st.booleans()) else None
    floor, light = draw(st.sampled_from(language.FLOORS)), draw(st.sampled_from(corridor.LIGHTS))
    return Corridor(shelves, boxes, floor, light, draw(st.sampled_from(corridor.SPEEDS)), ahead)


@settings(deadline=None, max_examples=60)
@given(corridors())
def test_every_canonical_caption_is_read_as_its_corridor_and_stays_as_it_is(scene):
    caption = corridor_caption(scene)
    ahead = scene.ahead and NamedObject(scene.ahead.shape, scene.ahead.color)
    assert parse_corridor(caption) == PromptCorridor(
        scene.shelves, scene.boxes, scene.floor, scene.light, scene.speed, ahead
    )
    assert parse_scene(caption) is None
    assert upsample(caption) == caption


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ("a robot moves through a warehouse", PromptCorridor()),
        ("A forklift rolling quickly down an aisle", PromptCorridor(speed="fast")),
        ("blue racks with amber crates", PromptCorridor("blue", "orange")),
        ("first person view of a dark hallway", PromptCorridor(light="dim")),
        (
            "a vehicle drives past shelves towards a crimson barrel on a concrete floor",
            PromptCorridor(floor="grey", ahead=NamedObject("cylinder", "red")),
        ),
        ("the camera advances along a corridor, a ball lies ahead", PromptCorridor(ahead=NamedObject("ball"))),
    ],
)
def test_free_wordings_are_understood_and_written_out(prompt, named):
    assert parse_corridor(prompt) == named
    longer = upsample(prompt)
    assert longer.startswith("The camera drives ")
    assert upsample(longer) == longer
    written = parse_corridor(longer)
    for name in ("shelves", "boxes", "floor", "light", "speed"):
        assert getattr(named, name) in (None, getattr(written, name))
    assert (written.ahead is None) == (named.ahead is None)


@pytest.mark.parametrize(
    "prompt",
    [
        "the camera stands still in a corridor",
        "a corridor without shelves",
        "a hallway with red and blue shelves",
        "a corridor of red shelves with red boxes",
        "a corridor with a red ball and a blue cube",
        "a slow fast drive through a corridor",
        "a robot cooks in a warehouse",
        "a red corridor",
        "a red box",
        "red",
        "",
    ],
)
def test_what_the_language_cannot_say_is_left_alone(prompt):
    assert parse_corridor(prompt) is None
    assert prompt == "a red box" or upsample(prompt) == prompt


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=60))
def test_any_text_at_all_is_answered(prompt):
    assert parse_corridor(prompt) is None or upsample(prompt).startswith("The camera drives ")
