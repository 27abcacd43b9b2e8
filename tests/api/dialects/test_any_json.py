"""Whatever JSON comes in, a parser answers with a request or with the client's mistake."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cosmorama.api.dialects import DIALECTS
from cosmorama.api.dialects.base import worded
from cosmorama.api.dialects.openai_videos import parse_form
from cosmorama.api.dialects.wire import field_paths, parse_object
from cosmorama.errors import CosmoramaError
from cosmorama.request import Capabilities, GenerationRequest
from cosmorama.resolve import resolve
from cosmorama.settings import Settings
from tests.api.dialects.conftest import PAINTER

NAMES = sorted({name for dialect in DIALECTS for name in field_paths(dialect.body)})
WORDS = [
    "text2video",
    "text2image",
    "video2video",
    "policy",
    "forward_dynamics",
    "720",
    "720_16_9",
    "av",
    "first",
    "low",
]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.integers(0, 200)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(WORDS)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES) | st.text(), inner, max_size=5),
    max_leaves=12,
)
BODIES = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), VALUES, max_size=8)
MODELS = [Capabilities(model="microcosm"), PAINTER]
SETTINGS = Settings()


def outcome_of(dialect: str, body: dict[str, Any], model: Capabilities) -> GenerationRequest | CosmoramaError:
    [spoken] = [found for found in DIALECTS if found.name == dialect]
    try:
        return resolve(spoken.parse(body, SETTINGS), model)
    except CosmoramaError as error:
        return error


@pytest.mark.parametrize("dialect", [dialect.name for dialect in DIALECTS])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(body=BODIES, model=st.sampled_from(MODELS))
def test_any_object(dialect: str, body: dict[str, Any], model: Capabilities) -> None:
    found = outcome_of(dialect, body, model)
    if isinstance(found, CosmoramaError):
        assert found.status == 422
        assert len(str(found)) < 20_000
    else:
        assert resolve(found, model) == found
        assert found.frames <= model.frames.maximum
        assert found.fps in model.fps
        assert found.seed is not None
        assert found.usual is None


WHOLE: dict[str, dict[str, Any]] = {
    "cosmos3": {"model_mode": "text2video"},
    "transfer25": {"video": "AAAA", "edge": {}},
}
ODD: tuple[Any, ...] = (
    None, "", " ", "a" * 30_000, "\0", "\u7403", "null", "1e5", -1, 0, 1.5, 1e308, -1e308, 2**63, 2**200, True, False,
    [], {}, [None], [[]], {"a": 1}, [1] * 5000, "file:///etc/passwd", "http://127.0.0.1:1/x", "data:,",
)  # fmt: skip


@pytest.mark.parametrize(
    ("dialect", "path"),
    [(dialect.name, path) for dialect in DIALECTS for path in field_paths(dialect.body).values()],
)
def test_what_is_wrong_with_a_field_names_it(dialect: str, path: str) -> None:
    [spoken] = [found for found in DIALECTS if found.name == dialect]
    *outer, last = path.split(".")
    for odd in ODD:
        body: dict[str, Any] = {"prompt": "a", **WHOLE.get(dialect, {})}
        inner = body
        for name in outer:
            inner[name] = dict(inner.get(name) or {})
            inner = inner[name]
        inner[last] = odd
        try:
            resolve(spoken.parse(body, SETTINGS), PAINTER)
        except CosmoramaError as error:
            assert error.status == 422  # noqa: PT017
            message = str(worded(error, spoken.names_of(body)))
            assert last in message or (outer[:1] and outer[0] in message), (odd, message)
            assert len(message) < 2000, (odd, message)
            assert "None" not in message, (odd, message)


@settings(max_examples=40, deadline=None)
@given(fields=st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=12), st.text(max_size=12)))
def test_any_form(fields: dict[str, str]) -> None:
    try:
        request = parse_form(fields, SETTINGS)
    except CosmoramaError as error:
        assert error.status == 422  # noqa: PT017
    else:
        assert request.prompt == fields["prompt"]


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60) | BODIES.map(lambda body: json.dumps(body).encode()))
def test_any_bytes(body: bytes) -> None:
    try:
        assert isinstance(parse_object(body), dict)
    except CosmoramaError as error:
        assert error.status == 422  # noqa: PT017


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"controls": [1]}, "controls.0: 1 is not accepted; expected an object"),
        ({"controls": [{"kind": "edge", "wieght": 2}]}, "'controls.0.wieght'; did you mean 'controls.0.weight'?"),
        ({"adapters": [{"name": "a", "q": 1}]}, "unknown field 'adapters.0.q'; known here: name, scale"),
        ({"controls": [1] * 65}, "expected at most 64 entries"),
        ({"guidance_interval": ["a"] * 100}, "guidance_interval.0: 'a' is not accepted; expected a valid number"),
    ],
)
def test_entries_of_lists_are_told_like_fields(body: dict[str, Any], said: str) -> None:
    [native] = [dialect for dialect in DIALECTS if dialect.name == "cosmorama"]
    with pytest.raises(CosmoramaError) as error:
        native.parse({"prompt": "a", **body}, Settings())
    assert said in str(error.value)
    assert len(str(error.value)) < 500
