"""A mistake is told under the name that the client wrote: aliases, objects of extra fields, flat bodies, forms."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from cosmorama.api.dialects import DIALECTS, SHAPED
from cosmorama.api.dialects.base import choose, wording
from cosmorama.errors import CosmoramaError
from cosmorama.resolve import resolve
from cosmorama.settings import Settings
from tests.api.dialects.conftest import PAINTER

PICTURE, CLIP = "data:image/png;base64,AAAA", "data:video/mp4;base64,AAAA"
ODD: tuple[Any, ...] = ("", "null", "35", "１２", -1, 35.5, 2**70, 1e308, True, [], [None], {"a": 1})
CLIENTS: dict[str, dict[str, Any]] = {
    "predict1, flat": {"prompt": "a", "width": 64, "height": 64, "num_frames": 5, "fps": 24, "num_steps": 9},
    "predict1, other names": {"prompt": "a", "video_params": {"frames": 5, "fps": 24}, "num_inference_steps": 9},
    "predict25": {"prompt": "a", "image": PICTURE, "resolution": 256, "num_frames": 93, "num_steps": 9},
    "generator1": {"prompt": "a", "fps": 24, "resolution": "256", "num_frames": 25, "num_inference_steps": 9},
    "transfer25": {"prompt": "a", "video": CLIP, "blur": {"control_weight": 0.5}, "guidance_scale": 3, "steps": 9},
    "openai, a path of an adapter": {"prompt": "a", "n": 1, "frame_rate": 24, "lora": {"lora_path": "/x", "scale": 1}},
    "openai, nested": {"prompt": "a", "size": "64x64", "video_params": {"num_frames": 5, "fps": 24}},
    "openai, extra": {"prompt": "a", "extra_body": {"num_inference_steps": 9, "seed": 1, "guidance_scale": 3}},
    "openai, reference": {"prompt": "a", "image_reference": {"content": "AAAA", "format": "base64"}},
    "openai, control": {"prompt": "a", "extra_params": {"edge": {"control_path": CLIP, "weight": 1}, "max_frames": 5}},
    "openai, hint": {"prompt": "a", "extra_params": {"control_hint": "depth", "control": CLIP, "control_weight": 1}},
    "openai, actions": {
        "prompt": "a",
        "image_url": PICTURE,
        "extra_params": {"action_mode": "policy", "domain_name": "av", "num_frames": 5, "image_size": 480},
    },
}
TOLD_ELSEWHERE = {"image_url", "image_reference.content"}
"""Empty ones are none, and then it is told that a reference is missing."""


def paths(body: dict[str, Any], outer: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in body.items():
        yield (*outer, name)
        yield from paths(value, (*outer, name)) if isinstance(value, dict) else ()


@pytest.mark.parametrize(
    ("client", "path"),
    [(client, path) for client, body in CLIENTS.items() for path in paths(body)],
    ids=lambda value: value if isinstance(value, str) else ".".join(value),
)
def test_what_is_wrong_is_called_what_the_client_called_it(client: str, path: tuple[str, ...]) -> None:
    name = client.partition(",")[0]
    spoken = next(dialect for dialect in DIALECTS if dialect.name == name)
    for odd in ODD:
        body = copy.deepcopy(CLIENTS[client])
        inner = body
        for part in path[:-1]:
            inner = inner[part]
        inner[path[-1]] = odd
        try:
            request = spoken.read(body, Settings())
            with wording(request):
                resolve(request, PAINTER)
        except CosmoramaError as error:
            assert error.status == 422  # noqa: PT017
            called = ".".join(path)
            assert called in str(error) or (called in TOLD_ELSEWHERE and not odd) or "lora: " in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"num_steps": 9, "fps": 24}, "generator1"),
        ({"num_steps": 9, "num_output_frames": 93, "video": CLIP}, "predict25"),
        ({"num_steps": 9, "width": 64, "height": 64, "video": CLIP}, "predict1"),
        ({"num_steps": 9, "guidance": 3, "video": CLIP}, "transfer25"),
    ],
)
def test_steps_under_another_name_do_not_make_a_transfer(body: dict[str, Any], name: str) -> None:
    assert choose(SHAPED, {"prompt": "a", **body}, None).name == name


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"num_steps": 5, "num_inference_steps": 6}, "'num_inference_steps' and 'num_steps' are one field"),
        ({"width": 64, "video_params": {"width": 96}}, "'width' and 'video_params.width' are one field"),
        ({"video_params": {"fps": 24, "frames_per_sec": 25}}, "'video_params.fps' and 'frames_per_sec' are one field"),
        ({"num_frames": 5, "frames_count": 6}, "are one field, and have two values"),
    ],
)
def test_two_values_of_one_field_are_a_mistake(body: dict[str, Any], said: str) -> None:
    with pytest.raises(CosmoramaError, match=said):
        choose(SHAPED, body, "predict1").read({"prompt": "a", **body}, Settings())


@pytest.mark.parametrize("carrier", ["extra_params", "extra_body", "nvext", "video_params"])
def test_what_is_called_like_no_field_is_not_kept_with_the_job(carrier: str) -> None:
    openai = choose(DIALECTS, {}, "openai")
    request = openai.read({"prompt": "a", "seed": None, carrier: {"x" * 100_000: 1, "fps": 24}}, Settings())
    assert ("fps", f"{carrier}.fps") in request.names
    assert sum(map(len, sum(request.names, ()))) < 5000
    assert len(request.warnings[0]) < 200
