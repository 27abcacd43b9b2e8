"""Training captions: a scene in many wordings, and the prompts that must mean nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cosmorama.request import DEFAULT_NEGATIVE_PROMPT
from cosmorama.text.language import (
    BOX_WORDS,
    COLOR_WORDS,
    CORRIDOR_WORDS,
    DRIVE_WORDS,
    DRIVER_WORDS,
    FLOOR_WORDS,
    LIGHT_WORDS,
    SHAPE_WORDS,
    SHELF_WORDS,
    SKY_WORDS,
    SPEED_WORDS,
    Color,
    Corridor,
    Scene,
    SceneObject,
    article,
)
from microcosm.scenes.shots import AnyScene, caption_of

EMPTY_PROMPTS = ("", "", "", DEFAULT_NEGATIVE_PROMPT, DEFAULT_NEGATIVE_PROMPT)
NEGATIVE_PHRASES = (
    "blurry", "low quality", "artifacts", "people", "worst quality", "distorted", "watermark", "text", "noise", "ugly",
    "deformed", "flickering", "low resolution", "grainy", "overexposed", "bad", "shaky", "static", "cartoon", "faces",
)  # fmt: skip
_CANONICAL_SHARE = 0.6
_INDOORS = ("floor", "ground", "concrete")
_CAMERA = ("static camera", "the camera is static", "fixed camera", "the camera does not move")


def random_caption(scene: AnyScene, rng: np.random.Generator) -> str:
    """A wording of `scene`: the canonical one in most cases, otherwise from terse to detailed."""
    if rng.random() < _CANONICAL_SHARE:
        return caption_of(scene)
    text = _drive(scene, rng) if isinstance(scene, Corridor) else _objects(scene, rng)
    return text[0].upper() + text[1:] if rng.random() < 0.6 else text


def _objects(scene: Scene, rng: np.random.Generator) -> str:
    first = _name(scene.objects[0], rng)
    parts = [f"{article(first)} {_action(scene, rng)}"]
    floor = _pick(rng, FLOOR_WORDS[scene.floor])
    if rng.random() < 0.88:
        parts[0] += f" on {floor if rng.random() < 0.3 else article(floor)}"
    if scene.motion != "collide" and len(scene.objects) == 2 and rng.random() < 0.9:
        parts[0] += f"{_pick(rng, (' next to', ' near', ' beside', ', with'))} {article(_name(scene.objects[1], rng))}"
    if rng.random() < 0.7:
        parts.append(f"{_pick(rng, ('under', 'in', 'against', 'background:'))} {_article_for_sky(scene, rng)}")
    if rng.random() < 0.3:
        parts.append(_pick(rng, _CAMERA))
    return ", ".join(parts) + _pick(rng, (".", ""))


def _drive(scene: Corridor, rng: np.random.Generator) -> str:
    """Speed and light may be left out; what is ahead and the floor mostly are not."""
    speed = f" {_usual(rng, SPEED_WORDS[scene.speed])}" if rng.random() < 0.85 else ""
    way = _pick(rng, (" forward through", " through", " forward along", " down"))
    place = article(_usual(rng, CORRIDOR_WORDS))
    things = f"{_colored(scene.shelves, SHELF_WORDS, rng)} with {_colored(scene.boxes, BOX_WORDS, rng)}"
    driver = f"{_pick(rng, ('a', 'the'))} {_usual(rng, DRIVER_WORDS)}"
    text = f"{driver} {_usual(rng, DRIVE_WORDS)}{speed}{way} {place} of {things}"
    if rng.random() < 0.15:
        text = f"a first person view of {driver} moving{speed} forward past {things} in {place}"
    if rng.random() < 0.9:
        floor = _pick(rng, [words for words in FLOOR_WORDS[scene.floor] if words.endswith(_INDOORS)])
        text += f" on {floor if rng.random() < 0.3 else article(floor)}"
    if rng.random() < 0.8:
        light = _pick(rng, LIGHT_WORDS[scene.light])
        text += f" in {light}"
    if scene.ahead is not None:
        text += f"{_pick(rng, (', towards', ' towards', ', ahead stands', ', in front of it'))} "
        text += article(_name(scene.ahead, rng))
    return text + _pick(rng, (".", ""))


def empty_prompt(rng: np.random.Generator) -> str:
    """A prompt that must mean nothing: no words, the API's default negative prompt, or negative words."""
    if rng.random() < 0.75:
        return _pick(rng, EMPTY_PROMPTS)
    picked = rng.permutation(len(NEGATIVE_PHRASES))[: rng.integers(1, 7)]
    return ", ".join(NEGATIVE_PHRASES[i] for i in picked)


def _name(thing: SceneObject, rng: np.random.Generator) -> str:
    return f"{_usual(rng, COLOR_WORDS[thing.color])} {_usual(rng, SHAPE_WORDS[thing.shape])}"


def _colored(color: Color, words: Sequence[str], rng: np.random.Generator) -> str:
    """Things of a color, which is left out now and then."""
    named = f"{_usual(rng, COLOR_WORDS[color])} " if rng.random() < 0.93 else ""
    return named + _usual(rng, words)


def _action(scene: Scene, rng: np.random.Generator) -> str:
    ball, way = scene.objects[0].shape == "ball", scene.direction
    if scene.motion == "fall":
        lands = (
            ("bounces", "falls and bounces", "drops and bounces")
            if ball
            else ("lands", "falls and lands", "drops and lands")
        )
        return _pick(rng, ("falls", "drops", "is falling", "drops from above", "falls down", "is dropped", *lands))
    if scene.motion == "still":
        return _pick(
            rng, ("stands still", "rests", "sits", "stays", "is standing motionless", "is resting", "does not move")
        )
    travel = _pick(
        rng, ("rolls", "is rolling") if ball else ("slides", "is sliding"), ("moves", "glides", "travels", "is moving")
    )
    where = _pick(rng, (f"to the {way}", f"{way}", f"from {'left to right' if way == 'right' else 'right to left'}"))
    if scene.motion == "roll":
        return f"{travel} {where}"
    target = article(_name(scene.objects[1], rng))
    hit = _pick(rng, ("hits", "strikes", "collides with", "bumps into", "crashes into", "pushes"))
    if rng.random() < 0.25:
        return f"{hit} {target}"
    return f"{travel} {where} and {hit} {target}"


def _article_for_sky(scene: Scene, rng: np.random.Generator) -> str:
    words = _pick(rng, SKY_WORDS[scene.sky])
    return words if words in ("daylight", "outdoors", "darkness", "night") else article(words)


def _usual(rng: np.random.Generator, words: Sequence[str]) -> str:
    """The first word two times in three, otherwise one of the others."""
    return words[0] if rng.random() < 0.65 else _pick(rng, words)


def _pick(rng: np.random.Generator, *options: Sequence[str]) -> str:
    """One of the options; of several groups the first is taken two times in three."""
    group = options[0] if len(options) == 1 or rng.random() < 0.67 else options[1]
    return group[int(rng.integers(len(group)))]
