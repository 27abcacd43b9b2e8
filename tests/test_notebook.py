"""The notebook runs from its top to its bottom, and what a cell ends with can be shown."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import save_tiny

NOTEBOOK = Path(__file__).parents[1] / "examples" / "sampling_control.ipynb"


def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = save_tiny(tmp_path / "model", sizes=((320, 192),))
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    names: dict[str, Any] = {}
    shown = []
    for cell in cells:
        assert cell["outputs"] == [], "clear all outputs before saving it"
        tree = ast.parse("".join(cell["source"]).replace('"microcosm"', repr(str(model))))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, str(NOTEBOOK), "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names)
            shown.append(value._repr_html_() if hasattr(value, "_repr_html_") else repr(value))
    assert sum("<video" in text for text in shown) == 2
    assert {"guidance-1.mp4", "seed-2.mp4"} <= {path.name for path in names["folder"].iterdir()}
