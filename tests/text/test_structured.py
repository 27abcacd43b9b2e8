"""Captions in JSON from a chat endpoint, for models that read them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from cosmorama.engine.inputs import STRUCTURED_S, STRUCTURED_TOKENS, preparer_of
from cosmorama.engine.prepare import Preparer
from cosmorama.request import Capabilities, GenerationRequest
from cosmorama.resolve import resolve
from cosmorama.settings import Settings
from cosmorama.text.chat import ChatEndpoint
from cosmorama.text.upsampling import ChatUpsampler, Facts, caption_of

CLIP = Facts(1280, 720, 189, 24)
STILL = Facts(960, 960, 1, 24)
CAPTION: dict[str, Any] = {"subjects": [{"description": "a red ball"}], "temporal_caption": "It rolls.", "fps": 60}


def body_of(server: Any) -> dict[str, Any]:
    return dict(json.loads(server.bodies[-1]))


def test_facts_are_those_of_the_clip_whatever_the_answer_says() -> None:
    wrong = CAPTION | {"duration": "99s", "resolution": {"W": 1, "H": 1}, "aspect_ratio": "1,1"}
    caption = json.loads(caption_of(json.dumps(wrong), CLIP) or "")
    facts = {"resolution": {"W": 1280, "H": 720}, "aspect_ratio": "16,9", "duration": "7s", "fps": 24}
    assert caption == CAPTION | facts
    still = json.loads(caption_of(json.dumps(wrong), STILL) or "")
    assert (still["aspect_ratio"], "duration" in still, "fps" in still) == ("1,1", False, False)


@pytest.mark.parametrize(
    "answer",
    ["", "a red ball", "[1]", "{", '{"x": 1}', json.dumps({"subjects": []}), "[" * 100_000,
     json.dumps({"subjects": "x" * 20_001})],
)  # fmt: skip
def test_what_is_no_caption_is_not_used(answer: str) -> None:
    assert caption_of(answer, CLIP) is None


def test_a_caption_in_a_fence_is_one() -> None:
    assert caption_of(f"```json\n{json.dumps(CAPTION)}\n```", CLIP) is not None


@pytest.mark.parametrize("style", ["external_api", "reasoner"])
def test_what_the_endpoint_is_asked(chat_server: Any, style: Any) -> None:
    chat_server.says(json.dumps(CAPTION))
    upsampler = ChatUpsampler(ChatEndpoint(chat_server.url, "m"), style=style)
    caption, warnings = upsampler.caption("a red ball", CLIP, np.zeros((8, 8, 3), np.uint8))
    assert (json.loads(caption)["fps"], warnings) == (24, ())
    turns = body_of(chat_server)["messages"]
    assert [turn["role"] for turn in turns] == (["system", "user"] if style == "external_api" else ["user"])
    text, image = turns[-1]["content"]
    assert "a red ball" in text["text"]
    assert "1280x720 pixels, 7.9 seconds at 24 frames per second" in text["text"]
    assert image["image_url"]["url"].startswith("data:image/jpeg;base64,")
    told = turns[0]["content"] if style == "external_api" else text["text"]
    assert all(name in told for name in ("subjects", "cinematography", "temporal_caption", "begins with the picture"))


def test_a_caption_in_json_is_left_alone(chat_server: Any) -> None:
    upsampler = ChatUpsampler(ChatEndpoint(chat_server.url, "m"))
    assert upsampler.caption(json.dumps(CAPTION), CLIP) == (json.dumps(CAPTION), ())
    assert not chat_server.bodies


@pytest.mark.parametrize("failure", ["status", "not json", "empty", "prose"])
def test_a_failure_leaves_the_prompt_and_is_said(chat_server: Any, failure: str) -> None:
    chat_server.says("A red ball rolls.") if failure == "prose" else chat_server.fails(failure)
    upsampler = ChatUpsampler(ChatEndpoint(chat_server.url, "m", timeout_s=5))
    made = upsampler.caption("a red ball", CLIP)
    assert made == ("a red ball", ("prompt upsampling failed, and the prompt was used as it was",))


def test_only_families_that_read_json_are_given_it(chat_server: Any) -> None:
    chat_server.says(json.dumps(CAPTION))
    preparer = Preparer(upsampler=ChatUpsampler(ChatEndpoint(chat_server.url, "m")))
    cosmos3 = Capabilities(model="cosmos3", family="cosmos3")
    prepared = preparer(resolve(GenerationRequest(prompt="a red ball"), cosmos3), cosmos3)
    assert json.loads(prepared.prompt)["resolution"] == {"W": 1280, "H": 704}
    other = Capabilities(model="predict2.5", family="predict2.5")
    chat_server.says("A red ball rolls over a floor.")
    assert (
        preparer(resolve(GenerationRequest(prompt="a ball"), other), other).prompt == "A red ball rolls over a floor."
    )
    assert resolve(GenerationRequest(prompt="a", image=b"x"), cosmos3).prompt_upsampling is True
    assert resolve(GenerationRequest(prompt="a", image=b"x"), other).prompt_upsampling is False


def test_limits_and_sampling_follow_from_settings() -> None:
    server: dict[str, Any] = {
        "prompt_upsampling_endpoint_url": "http://localhost:1/v1",
        "prompt_upsampling_model": "m",
        "prompt_upsampling_top_k": 20,
        "prompt_upsampling_extra_body": {"x": 1},
    }
    upsampler = preparer_of(Settings(**server)).upsampler
    assert isinstance(upsampler, ChatUpsampler)
    assert (upsampler.endpoint.timeout_s, upsampler.endpoint.max_tokens) == (30, 512)
    assert (upsampler.structured.timeout_s, upsampler.structured.max_tokens) == (STRUCTURED_S, STRUCTURED_TOKENS)
    assert dict(upsampler.structured.options) == {"temperature": None, "top_k": 20, "x": 1}
    assert dict(upsampler.endpoint.options) == {"temperature": 0.01, "top_k": 20, "x": 1}
    warm = preparer_of(Settings(**server, prompt_upsampling_temperature=0.7)).upsampler
    assert isinstance(warm, ChatUpsampler)
    assert warm.structured.options["temperature"] == 0.7
    chosen = preparer_of(Settings(**server, prompt_upsampling_timeout_s=7, prompt_upsampling_template_style="reasoner"))
    assert isinstance(chosen.upsampler, ChatUpsampler)
    assert (chosen.upsampler.structured.timeout_s, chosen.upsampler.style) == (7, "reasoner")


def test_the_whole_route_of_the_endpoint_is_taken_too(chat_server: Any) -> None:
    chat_server.says("A ball.")
    ChatUpsampler(ChatEndpoint(f"{chat_server.url}/chat/completions", "m"))("a ball")
    assert chat_server.paths == ["/v1/chat/completions"]
