"""A field that came twice is told wherever JSON is read: over HTTP, in a batch, in a file of actions."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from cosmorama import strictjson
from cosmorama.api.dialects.wire import WireError, parse_object
from cosmorama.batch import RowsError, read_rows
from cosmorama.cli.request import action_of_file
from cosmorama.errors import InvalidRequestError
from tests.api.fake_app import run, serving

TWICE = [
    ('{"seed":1,"seed":2}', "seed"),
    ('{"prompt":"a","prompt":"b"}', "prompt"),
    ('{"prompt":"a \\\\","seed":"\\"","seed":2}', "seed"),
    ('{"controls":[{"kind":"edge"},{"kind":"vis","weight":1,"weight":0.5}]}', "weight"),
    ('{"metadata":{"a":"\\"b\\\\\\"c","a":null}}', "a"),
    ('\ufeff{"a":1,"\\u0061":2}', "a"),
]


@pytest.mark.parametrize(("text", "field"), TWICE)
def test_two_values_of_a_field_are_refused_by_its_name(text: str, field: str) -> None:
    with pytest.raises(WireError, match=f"^{field}: has two values") as refused:
        parse_object(text.encode())
    assert refused.value.field == field


def _any(chance: random.Random, depth: int = 0) -> Any:
    text = "".join(chance.choices('ab"\\\\/\n\u00e9\u4e16:,{}[]', k=chance.randrange(4)))
    match chance.randrange(5 if depth < 4 else 3):
        case 0:
            return chance.choice([None, True, 1, -2.5])
        case 1 | 2:
            return text
        case 3:
            return [_any(chance, depth + 1) for _ in range(chance.randrange(4))]
    return {f"{text}{n}": _any(chance, depth + 1) for n in range(chance.randrange(4))}


def test_what_is_said_once_is_never_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor read a second time."""
    monkeypatch.setattr(strictjson, "loads", lambda _: pytest.fail("it was taken for one with a field twice"))
    chance = random.Random(7)
    for number in range(2000):
        body = {"a": _any(chance), 'b"\\': _any(chance)}
        text = json.dumps(body, ensure_ascii=bool(number % 2), indent=number % 3 or None)
        assert parse_object(text.encode()) == body


def test_the_same_value_twice_does_no_harm() -> None:
    assert parse_object(b'{"seed":1,"seed":1}') == strictjson.loads('{"seed":1,"seed":1}') == {"seed": 1}


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/infer", "/v1/videos", "/v1/upsample", "/v1/sheets"])
def test_two_values_are_told_on_every_path_and_in_every_part_of_a_request(path: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as server:
            kind = {"Content-Type": "application/json"}
            answer = await server.client.post(path, content=b'{"prompt":"a","seed":1,"seed":2}', headers=kind)
            assert answer.status_code in (400, 422)
            assert answer.json()["error"]["message"] == "seed: has two values; send one of them"
            if path == "/v1/videos":
                assert answer.json()["error"]["param"] == "seed"
                form = {"prompt": (None, "a"), "extra_params": (None, '{"seed":1,"seed":2}')}
                assert "seed: has two values" in (await server.client.post(path, files=form)).text
            if path in ("/v1/jobs", "/v1/infer", "/v1/videos"):
                for header, *values in (("Idempotency-Key", "a", "b"), ("X-Cosmorama-Priority", "high", "low")):
                    headers = [(header, value) for value in values]
                    answer = await server.client.post(path, json={"prompt": "a"}, headers=headers)
                    assert answer.status_code in (400, 422)
                    assert f"{header}: '{', '.join(values)}' is not accepted; expected one value" in answer.text
            if path in ("/v1/jobs", "/v1/videos"):
                answer = await server.client.get(f"{path}?limit=1&limit=2")
                assert answer.status_code in (400, 422)
                assert "limit: '1, 2' is not accepted; expected one value" in answer.text
                assert (await server.client.get(f"{path}?limit=1&limit=1")).status_code == 200
            assert (await server.jobs.list()).jobs == ()

    run(test)


def test_lines_of_a_batch_and_files_of_actions_are_read_as_strictly(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    deep = "[" * 100_000
    rows.write_text(f'{{"prompt":"a"}}\n{{"prompt":"a","prompt":"b"}}\n{{"prompt":{deep}\n')
    with pytest.raises(RowsError, match=r"line 2: prompt: has two values.*line 3: this is not JSON.*nested too deep"):
        read_rows(rows)
    actions = tmp_path / "actions.json"
    for text, why in (('{"domain":8,"domain":7}', "domain: has two values"), (deep, "nested too deep")):
        actions.write_text(text)
        with pytest.raises(InvalidRequestError, match=why):
            action_of_file(actions)
