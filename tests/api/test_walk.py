"""docs/architecture.md says which files a newcomer opens to follow a request: at most eight, and they are those."""

from __future__ import annotations

import ast
import re
import sys
import threading
from pathlib import Path
from types import FrameType

import pytest

import cosmorama
from tests.api.fake_app import run, serving

SOURCE = Path(cosmorama.__file__).parent
PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
BODY = {"prompt": "a red ball", "steps": 1, "video_params": {"width": 960, "height": 704, "frames_count": 9}}
Walk = list[tuple[str, str]]


def walks() -> dict[str, Walk]:
    """The tables of the page, by what is said before them."""
    section = PAGE.read_text().partition("## The files of a request")[2].partition("\n## ")[0]
    row = re.compile(r"^\| `([\w/.]+)` \| `([\w.]+)` \|", re.MULTILINE)
    lead, *tables = section.split("| file | function | what it does |")
    found = {}
    for table in tables:
        found[next(iter(re.findall("POST /v1/[a-z]+", lead)[-1:]), "")] = row.findall(table)
        lead = table.rpartition("|\n\n")[2]
    return found


def test_each_function_is_in_its_file() -> None:
    found = walks()
    assert list(found) == ["POST /v1/jobs", "POST /v1/infer", ""]
    for walk in found.values():
        assert 0 < len(walk) <= 8
        for file, name in walk:
            names = set()
            for node in ast.parse((SOURCE / file).read_text()).body:
                within = node.body if isinstance(node, ast.ClassDef) else []
                names |= {f"{node.name}.{each.name}" for each in within if hasattr(each, "name")}  # type: ignore[attr-defined]
                names.add(getattr(node, "name", ""))
            assert name in names, (file, name)


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/infer"])
def test_a_request_goes_through_them_in_this_order(path: str, tmp_path: Path) -> None:
    called: dict[tuple[str, str], None] = {}
    listening = threading.Event()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and listening.is_set() and frame.f_code.co_filename.startswith(str(SOURCE)):
            file = frame.f_code.co_filename.removeprefix(f"{SOURCE}/")
            called.setdefault((file, frame.f_code.co_qualname))

    async def posted() -> None:
        async with serving(tmp_path) as server:
            listening.set()
            answer = await server.client.post(path, json=BODY)
            listening.clear()
            assert answer.is_success, answer.text

    threading.setprofile(note)  # of threads that begin from now on
    sys.setprofile(note)
    try:
        run(posted)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    walk = walks()[f"POST {path}"]
    assert [each for each in called if each in walk] == walk
