"""What Cosmos3 is told about the clip: sentences behind a plain prompt, fields inside a structured one."""

from __future__ import annotations

import json

import pytest

from cosmorama.world.cosmos3.prompt import ClipFacts, described, described_negative

CLIP, STILL = ClipFacts(1280, 720, 189, 24), ClipFacts(960, 960, 1, 24)
SAYS = "The video is 7.9 seconds long and is of 24 FPS. This video is of 720x1280 resolution."


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("a ball", f"a ball. {SAYS}"),
        ("a ball.", f"a ball. {SAYS}"),
        ("it rolls on...", f"it rolls on... {SAYS}"),
        ("", SAYS),
        ("{not json", f"{{not json. {SAYS}"),
        ("[1, 2]", f"[1, 2]. {SAYS}"),
    ],
)
def test_a_plain_prompt_is_followed_by_the_facts(prompt: str, told: str) -> None:
    assert described(prompt, CLIP) == told


def test_a_structured_prompt_has_the_facts_inside_and_no_sentence_behind_it() -> None:
    prompt = {"subjects": ["Kügelchen"], "duration": "3s", "fps": 60, "resolution": {"H": 1, "W": 1}}
    told = described(json.dumps(prompt), CLIP)
    assert json.loads(told) == {
        "subjects": ["Kügelchen"],
        "duration": "7s",
        "fps": 24.0,
        "resolution": {"H": 720, "W": 1280},
        "aspect_ratio": "16,9",
    }
    assert "Kügelchen" in told


def test_a_still_has_neither_duration_nor_rate() -> None:
    told = json.loads(described('{"subjects": []}', STILL))
    assert told == {"subjects": [], "resolution": {"H": 960, "W": 960}, "aspect_ratio": "1,1"}


def test_a_structured_negative_prompt_stays_as_it_is() -> None:
    assert described_negative('{"quality": "blurred"}', CLIP) == '{"quality": "blurred"}'
    assert described_negative("blurred...", STILL) == "blurred... This image is not of 960x960 resolution."
