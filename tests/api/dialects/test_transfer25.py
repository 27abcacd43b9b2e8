"""The Transfer2.5 dialect."""

from __future__ import annotations

from typing import Any

import pytest

from cosmorama.request import CONTROL_KINDS, MODES, Capabilities, Range
from tests.api.dialects.reading import read, refusal, shape_of

BODY: dict[str, Any] = {"prompt": "the same in snow", "video": "aGk=", "edge": {}}
FOLLOWS = Capabilities(model="follows", modes=(*MODES, "transfer"), controls=CONTROL_KINDS, guidance_scale=Range(0, 7))


def test_defaults() -> None:
    request = read(BODY, model=FOLLOWS)
    assert request.mode == "transfer"
    assert (request.guidance_scale, request.steps) == (3, 35)
    [control] = request.controls
    assert (control.kind, control.weight, control.source, control.preset) == ("edge", 1.0, None, "medium")


def test_weights_over_one_in_sum_are_scaled() -> None:
    request = read(BODY | {"edge": {"control_weight": 1.5}, "vis": {"control_weight": 0.5}}, model=FOLLOWS)
    assert {control.kind: control.weight for control in request.controls} == {"edge": 0.75, "vis": 0.25}
    request = read(BODY | {"edge": {"control_weight": 0.3}, "vis": {"control_weight": 0.4}}, model=FOLLOWS)
    assert {control.kind: control.weight for control in request.controls} == {"edge": 0.3, "vis": 0.4}


def test_controls_carry_their_clip_and_preset() -> None:
    body = BODY | {
        "edge": {"control": "http://example.com/edges.mp4", "preset_edge_threshold": "low"},
        "vis": {"preset_blur_strength": "very_high"},
    }
    edge, vis = read(body, model=FOLLOWS).controls
    assert (edge.source, edge.preset) == ("http://example.com/edges.mp4", "low")
    assert (vis.source, vis.preset) == (None, "very_high")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"video": None}, ["video: Field required"]),
        ({"edge": None}, ["edge, depth, seg, vis: null", "at least one of them"]),
        ({"guidance": 8}, ["guidance: 8", "an integer from 0 to 7"]),
        ({"guidance": 3.5}, ["guidance: 3.5", "valid integer"]),
        ({"num_steps": 0}, ["num_steps: 0", "an integer from 1 to 100"]),
        ({"num_conditional_frames": 3}, ["num_conditional_frames: 3", "an integer from 0 to 2"]),
        ({"resolution": "720_16_9"}, ["resolution: '720_16_9'", "256, 480, 512, 720"]),
        ({"image_context": "aGk="}, ["image_context: 'aGk='", "null"]),
        ({"edge": {"mask": "aGk="}}, ["edge.mask: 'aGk='", "null"]),
        ({"edge": {"control_weight": -1}}, ["edge.control_weight: -1", "at least 0"]),
        ({"edge": {"preset_edge_threshold": "strong"}}, ["edge.preset_edge_threshold: 'strong'", "very_high"]),
        ({"edge": {"preset_blur_strength": "low"}}, ["unknown field 'edge.preset_blur_strength'", "vis.preset_blur"]),
        ({"depth": {"weight": 1}}, ["unknown field 'depth.weight'", "did you mean 'depth.control_weight'?"]),
        ({"steps": 0}, ["steps: 0", "an integer from 1 to 100"]),
    ],
)
def test_refusals(change: dict[str, Any], parts: list[str]) -> None:
    message = refusal(BODY | change, model=FOLLOWS, dialect="transfer25")
    for part in parts:
        assert part in message


def test_a_model_without_the_mode_says_who_has_it() -> None:
    message = refusal(BODY)
    assert "edge, depth, seg, vis: 'transfer' is not accepted; expected one of text2world, image2world" in message
    assert "models of the family transfer2.5 or cosmos3 take it" in message


def test_what_real_clients_send_besides() -> None:
    request = read(BODY | {"guidance": 7.0, "resolution": 720, "sigma_max": 80, "steps": 9}, model=FOLLOWS)
    assert (request.guidance_scale, request.steps) == (7.0, 9)
    assert request.warnings == ("sigma_max was not used: sampling begins at pure noise here",)


def test_shape() -> None:
    assert shape_of(BODY) == "transfer25"
    assert shape_of({"prompt": "a", "num_steps": 3, "video": "AAAA"}) == "transfer25"
    assert shape_of({"prompt": "a", "num_steps": 3, "video_params": {}}) == "predict1"
