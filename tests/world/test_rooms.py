"""The rooms of world/ lie on floors: imports, deferred ones included, never lead back to where they began."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import cosmorama.world

WORLD = Path(cosmorama.world.__path__[0])
NAME = "cosmorama.world."


def modules() -> dict[str, Path]:
    files = {str(file.relative_to(WORLD).with_suffix("")).replace("/", "."): file for file in WORLD.rglob("*.py")}
    return {name.removesuffix(".__init__"): file for name, file in files.items() if name != "__init__"}


def imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def graph() -> dict[str, set[str]]:
    known = modules()
    return {
        name: {found.removeprefix(NAME) for found in imports(file) if found.removeprefix(NAME) in known} - {name}
        for name, file in known.items()
    }


def room(module: str) -> str:
    return module.partition(".")[0]


def test_no_module_leads_back_to_itself() -> None:
    tuple(TopologicalSorter(graph()).static_order())


def test_no_room_leads_back_to_itself() -> None:
    rooms: dict[str, set[str]] = {}
    for module, needed in graph().items():
        rooms.setdefault(room(module), set()).update({room(other) for other in needed} - {room(module)})
    assert rooms["registry"], "the registry knows the rooms"
    tuple(TopologicalSorter(rooms).static_order())


def test_a_circle_would_be_found() -> None:
    with pytest.raises(CycleError):
        tuple(TopologicalSorter({"a": {"b"}, "b": {"a"}}).static_order())
