"""What a process says, whoever in it says it and in whatever way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LIBRARY = """
import logging, sys, threading, warnings
early = logging.getLogger("early")  # attached before, as by a library that was imported already
early.addHandler(logging.StreamHandler())
early.propagate = False

from cosmorama import logs
from cosmorama.settings import Settings
logs.configure(Settings(log_format=sys.argv[1]), "worker")

early.error("from the start")
late = logging.getLogger("late")
late.addHandler(logging.StreamHandler())
late.addHandler(logging.StreamHandler(sys.stdout))
logging.getLogger("late.module").warning("reaches the root as well")
late.propagate = False
logging.getLogger("late.module").warning("in\\ntwo lines")
silent = logging.getLogger("silent")
silent.propagate = False
silent.warning("nobody listens")
silent.addHandler(logging.FileHandler(sys.argv[2]))
silent.warning("for a file")
warnings.warn("old and deprecated")
print("printed", end=" ")
print("at last")
sys.stderr.write("\\r 10 %")
sys.stderr.write("\\r100 %\\n")
sys.stderr.flush()
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
raise SystemExit("the end")
"""


def said(form: str, file: Path) -> str:
    done = subprocess.run([sys.executable, "-c", LIBRARY, form, str(file)], capture_output=True, text=True)
    assert done.returncode == 1
    assert file.read_text() == "for a file\n"
    if form == "json":
        assert done.stdout == ""
    return done.stderr


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return [json.loads(line) for line in said("json", tmp_path_factory.mktemp("logs") / "file").splitlines()]


def test_as_json_every_line_is_a_record(records: list[dict[str, Any]]) -> None:
    assert all(record.keys() >= {"time", "level", "logger", "message", "process", "job"} for record in records)
    assert {record["process"] for record in records} == {"worker"}


def test_what_libraries_log_comes_once_with_its_level_and_its_logger(records: list[dict[str, Any]]) -> None:
    logged = [(r["logger"], r["level"], r["message"]) for r in records if r["logger"].startswith(("early", "late"))]
    assert logged == [
        ("early", "ERROR", "from the start"),
        ("late.module", "WARNING", "reaches the root as well"),
        ("late.module", "WARNING", "in\ntwo lines"),
    ]


def test_warnings_and_printed_lines_are_records(records: list[dict[str, Any]]) -> None:
    [warning] = [record for record in records if record["logger"] == "py.warnings"]
    assert "old and deprecated" in warning["message"]
    assert [record["message"] for record in records if record["logger"] == "stdout"] == ["printed at last"]
    printed = [record["message"] for record in records if record["logger"] == "stderr"]
    assert "100 %" in printed
    assert "ZeroDivisionError: division by zero" in printed
    assert "nobody listens" in printed
    assert printed[-1] == "the end"


def test_as_text_too_each_is_said_once(tmp_path: Path) -> None:
    text = said("text", tmp_path / "file")
    for logged in ("from the start", "reaches the root as well", "old and deprecated"):
        assert text.count(logged) == 1
    assert "ERROR worker early from the start" in text
    assert "WARNING worker late.module in\\ntwo lines\n" in text  # nobody can make a line of his own


def test_a_console_that_is_gone_ends_nothing() -> None:
    program = (
        "import logging, os, sys; from cosmorama import logs; from cosmorama.settings import Settings;"
        "logs.configure(Settings(log_format='json'), 'worker'); os.close(2);"
        "logging.error('lost'); print('lost'); sys.stderr.write('lost\\n'); os._exit(7)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60).returncode == 7
