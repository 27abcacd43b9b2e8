import json
import logging
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmorama.text import language as language
from cosmorama.text.chat import ChatEndpoint
from cosmorama.text.language import Scene, SceneObject, canonical_caption
from cosmorama.text.reader import NamedObject, PromptScene, parse_scene, written_out
from cosmorama.text.upsampling import ChatUpsampler

upsample = written_out
objects = st.builds(SceneObject, st.sampled_from(language.COLORS), st.sampled_from(language.SHAPES))


@st.composite
def scenes(draw):
    motion = draw(st.sampled_from(language.MOTIONS))
    things = draw(st.lists(objects, min_size=2 if motion == "collide" else 1, max_size=2))
    direction = draw(st.sampled_from(language.DIRECTIONS)) if motion in ("roll", "collide") else None
    floor, sky = draw(st.sampled_from(language.FLOORS)), draw(st.sampled_from(language.SKIES))
    return Scene(tuple(things), motion, direction, floor, sky)


@st.composite
def prompts(draw):
    """A free wording, with what it names: everything in it is known, everything else is left open."""
    color = draw(st.sampled_from([None, *language.COLORS]))
    shape = draw(st.sampled_from(language.SHAPES))
    count = draw(st.sampled_from([1, 2]))
    motion = draw(st.sampled_from([None, "fall", "roll", "still"] if count == 1 else [None, "collide", "still"]))
    direction = draw(st.sampled_from([None, *language.DIRECTIONS])) if motion == "roll" else None
    floor = draw(st.sampled_from([None, *language.FLOORS]))
    sky = draw(st.sampled_from([None, *language.SKIES]))
    noun = draw(st.sampled_from([word for word in language.SHAPE_WORDS[shape] if word != "can"]))
    noun = noun if count == 1 else noun + ("es" if noun.endswith("x") else "s")
    words = [language.article("x")[:1] if count == 1 else "two"]
    words += [draw(st.sampled_from(language.COLOR_WORDS[color]))] if color else []
    words += [noun]
    words += [draw(st.sampled_from(language.MOTION_WORDS[motion]))] if motion else []
    words += [f"to the {direction}"] if direction else []
    words += ["on the " + draw(st.sampled_from(language.FLOOR_WORDS[floor]))] if floor else []
    words += [", " + draw(st.sampled_from(language.SKY_WORDS[sky]))] if sky else []
    return " ".join(words), PromptScene((NamedObject(shape, color),) * count, motion, direction, floor, sky)


def assert_kept(named: PromptScene, written: PromptScene) -> None:
    if named.motion:
        assert written.motion == named.motion
    if named.direction:
        assert written.direction == named.direction
    if named.floor:
        assert written.floor == named.floor
    if named.sky:
        assert written.sky == named.sky
    assert len(written.objects) == len(named.objects) or (named.motion == "collide" and len(named.objects) == 1)
    for wanted, made in zip(named.objects, written.objects, strict=False):
        assert made.shape == wanted.shape
        assert wanted.color in (None, made.color)


@settings(deadline=None, max_examples=60)
@given(scenes())
def test_every_canonical_caption_is_read_as_its_scene_and_stays_as_it_is(scene):
    caption = canonical_caption(scene)
    named = tuple(NamedObject(thing.shape, thing.color) for thing in scene.objects)
    assert parse_scene(caption) == PromptScene(named, scene.motion, scene.direction, scene.floor, scene.sky)
    assert upsample(caption) == caption


@settings(deadline=None, max_examples=60)
@given(prompts())
def test_a_free_wording_is_understood_and_all_that_it_names_is_kept(case):
    prompt, named = case
    assert parse_scene(prompt) == named
    longer = upsample(prompt)
    assert_kept(named, parse_scene(longer))
    assert upsample(longer) == longer == upsample(prompt)
    assert longer.startswith(("A ", "An "))


WORDS = sorted(
    {"a", "the", "two", "three", "and", "next to", "with", "is", "one", "not", "big", "into", "left", ".", "on"}
    | {word for words in language.COLOR_WORDS.values() for word in words[:2]}
    | {word for words in language.SHAPE_WORDS.values() for word in (*words[:2], words[0] + "s")}
    | {word for words in language.MOTION_WORDS.values() for word in words[:3]}
    | {"on " + words[0] for words in language.FLOOR_WORDS.values()}
)  # fmt: skip


@pytest.mark.parametrize("prompt", ["three one ball", "two one balls", "a ball and three red one"])
def test_a_number_is_not_passed_over(prompt):
    assert parse_scene(prompt) is None


@settings(deadline=None, max_examples=120)
@given(st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join))
def test_any_sequence_of_words_is_either_kept_in_full_or_left_alone(prompt):
    named, longer = parse_scene(prompt), upsample(prompt)
    assert upsample(longer) == longer
    if named is None:
        assert longer == prompt
    else:
        assert_kept(named, parse_scene(longer))
        assert not {"not", "big", "three"} & set(prompt.split())


@settings(deadline=None, max_examples=40)
@given(st.text(max_size=60))
def test_any_text_at_all_is_answered(prompt):
    assert upsample(prompt) == prompt or parse_scene(prompt) is not None


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "The teal robot is cooking food in a kitchen. Steam rises from a simmering pot.",
        "a red ball and a dog",
        "a big red ball",
        "three red balls",
        "two red balls and a blue cube",
        "a red ball, but no cube",
        "a red ball that does not fall",
        "a red and blue ball",
        "a grey ball",
        "a red ball on a blue cube",
        "a red ball to the left of a blue cube",
        "the left ball rolls",
        "a red ball falls and rolls away",
        "two red balls roll to the left",
        "a red ball rolls left and a blue cube rolls left",
        "a red ball falls to the left",
        "a red ball on a red floor",
        "a concrete block falls",
        "an orange falls",
        "a red ball can roll",
        "a green floor at night",
        "a red ball on green grass",
        "ein roter Ball",
        "a red 球",
        "a red ball 🔴",
    ],
)
def test_a_prompt_outside_the_language_is_left_exactly_as_it_is(prompt):
    assert upsample(prompt) == prompt


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a crimson sphere glides left on the grass at night", ["red ball rolls to the left", "green floor", "night"]),
        ("two balls, one red and one blue", ["red ball", "blue ball"]),
        ("The ball is red and the cube is blue.", ["red ball", "blue cube"]),
        ("A red ball rolls right. The ball hits a blue cube.", ["red ball rolls to the right and hits a blue cube"]),
        ("a red ball next to a blue cube rolls left", ["A red ball rolls to the left", "next to a blue cube"]),
        ("A yellow box moves from left to right, static camera", ["yellow cube slides to the right"]),
        ("a can drops from above onto concrete", ["cylinder falls and lands on a grey floor"]),
        ("two purple cubes collide", ["A purple cube slides to the", "hits a purple cube"]),
    ],
)
def test_what_a_wording_means(prompt, parts):
    for part in parts:
        assert part in upsample(prompt)


def test_what_is_left_open_depends_on_the_words_alone_and_varies_with_them():
    assert upsample("a red ball") == written_out("  A red  BALL ".strip())
    assert len({upsample(f"a {color} {shape}") for color in language.COLORS for shape in ("ball", "orb", "cube")}) == 18
    assert len({upsample(f"a {word}").split(" on ")[1] for word in ("ball", "orb", "cube", "box", "drum", "can")}) > 2


def test_a_chat_endpoint_lengthens_the_prompt(chat_server):
    chat_server.says("A red ball,\nrolling over a mossy stone.")
    upsampler = ChatUpsampler(ChatEndpoint(chat_server.url, "some-model", "sk-secret"))
    assert upsampler("a red ball") == "A red ball, rolling over a mossy stone."
    request = json.loads(chat_server.bodies[0])
    assert (request["model"], request["max_tokens"], request["temperature"]) == ("some-model", 512, 0.01)
    assert [message["role"] for message in request["messages"]] == ["system", "user"]
    assert request["messages"][1]["content"] == "a red ball"
    assert chat_server.paths == ["/v1/chat/completions"]
    assert chat_server.headers[0]["Authorization"] == "Bearer sk-secret"


def test_the_picture_that_a_clip_begins_with_is_sent_and_left_out_where_none_are_taken(chat_server):
    picture = np.full((16, 16, 3), 200, np.uint8)
    chat_server.says("A red ball rolls.")
    text, said = ChatUpsampler(ChatEndpoint(chat_server.url, "m", options={"temperature": None})).expanded("a", picture)
    body = json.loads(chat_server.bodies[0])
    assert (text, said) == ("A red ball rolls.", ())
    assert "temperature" not in body
    assert [part["type"] for part in body["messages"][1]["content"]] == ["text", "image_url"]
    assert "begins with the picture" in body["messages"][0]["content"]
    chat_server.status = 400
    text, said = ChatUpsampler(ChatEndpoint(chat_server.url, "m")).expanded("a", picture)
    assert (text, said) == ("a", ("prompt upsampling failed, and the prompt was used as it was",))
    alone = json.loads(chat_server.bodies[-1])["messages"]
    assert alone[1]["content"] == "a"
    assert "picture" not in alone[0]["content"]


def test_a_long_answer_is_cut_at_a_sentence_end_within_250_words(chat_server):
    chat_server.says("One two three four five six seven. " * 60)
    words = ChatUpsampler(ChatEndpoint(chat_server.url, "m"))("a red ball").split()
    assert len(words) == 245
    assert words[-1] == "seven."


@pytest.mark.parametrize(
    "failure", ["status", "redirect", "not json", "no text", "empty", "null", "huge", "slow", "hang up"]
)
def test_any_failure_leaves_the_prompt_and_warns_without_the_key(chat_server, caplog, failure):
    chat_server.fails(failure)
    upsampler = ChatUpsampler(ChatEndpoint(chat_server.url, "m", "sk-secret", timeout_s=0.4))
    with caplog.at_level(logging.DEBUG):
        assert upsampler("a red ball") == "a red ball"
    assert [record.levelname for record in caplog.records if record.name.startswith("cosmorama")] == ["WARNING"]
    assert "sk-secret" not in caplog.text
    assert len(chat_server.paths) == 1


@pytest.mark.parametrize("prompt", ["x" * 20_000, "a." * 10_000, "red " * 5_000, "\u7403" * 20_000, "{" * 20_000])
def test_a_long_prompt_costs_next_to_nothing(prompt):
    started = time.process_time()
    assert written_out(prompt) == prompt
    assert time.process_time() - started < 0.1
