"""A run of the tests tells what was missing for some of them, and fails where nothing may be missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = """
import pytest
@pytest.mark.parametrize("number", range(3))
def test_of_rendering(number):
    pytest.skip("no such library (apt-get install libexample)")
def test_of_a_package():
    pytest.importorskip("no_such_package", reason="needs it (pip install '.[example]')")
def test_of_a_case_that_does_not_apply():
    pytest.skip("it has no such thing")
def test_that_runs():
    pass
"""


@pytest.mark.parametrize(("wanted", "status", "processes"), [("", 0, "1"), ("all", 1, "0"), ("all", 1, "1")])
def test_what_was_missing_is_listed_once_with_the_line_that_brings_it(
    tmp_path: Path, wanted: str, status: int, processes: str
) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "conftest.py").write_text(
        "from tests.needs import pytest_sessionfinish, pytest_terminal_summary  # noqa: F401\n"
    )
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", processes, str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "COSMORAMA_TESTS": wanted, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == status, run.stdout + run.stderr
    assert run.stdout.count("3 tests: apt-get install libexample") == 1
    assert run.stdout.count("1 test: pip install '.[example]'") == 1
    assert run.stdout.count(" test: ") + run.stdout.count(" tests: ") == 2
