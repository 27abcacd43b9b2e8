"""What tests need that no Python package brings. Where it is missing they are skipped, and the run ends with a list of
the lines that bring it; with COSMORAMA_TESTS=all, as in continuous integration, such a run fails.

A reason to skip that holds `apt-get install ...` or `pip install ...` is on that list.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

_BRINGS = re.compile(r"(?:apt-get|pip) install [^\n)]+")


def osmesa() -> None:
    """Skip the test where MuJoCo cannot be had or cannot render without a screen."""
    # Without the library its import ends in an AttributeError, so the library is asked for first.
    library = ctypes.util.find_library("OSMesa")
    try:
        ctypes.CDLL(library or "libOSMesa.so.8")
    except OSError:
        pytest.skip("rendering without a screen needs OSMesa (apt-get install libosmesa6)")
    pytest.importorskip("mujoco", reason="the simulator needs MuJoCo (pip install '.[train]')")


def program(name: str, line: str) -> str:
    """The path of a program; skip the test where `line` has not brought it.

    What pip installs lies beside the interpreter, which need not be on the path: `make test` calls it by its own.
    """
    beside = Path(sys.executable).parent
    found = shutil.which(name, path=str(beside)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed ({line})")
    return found


def postgres() -> Path:
    """The folder of Postgres's programs; skip the test where there is none."""
    initdb = shutil.which("initdb") or next(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")), None)
    if initdb is None:
        pytest.skip("Postgres is not installed (apt-get install postgresql)")
    pytest.importorskip("psycopg", reason="the Postgres driver is not installed (pip install '.[postgres]')")
    return Path(initdb).resolve().parent


def chromium() -> str:
    """The path of the browser; skip the test where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("COSMORAMA_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no Chromium, and none named in COSMORAMA_CHROMIUM (apt-get install chromium)")
    return found


def missing(reasons: Iterable[str]) -> dict[str, int]:
    """The lines that bring what was missing, and how many tests each would let run."""
    found: dict[str, int] = {}
    for reason in reasons:
        line = _BRINGS.search(reason)
        if line is not None:
            found[line[0]] = found.get(line[0], 0) + 1
    return dict(sorted(found.items()))


def all_wanted() -> bool:
    """Whether a run must not skip a test because something is missing."""
    return os.environ.get("COSMORAMA_TESTS") == "all"


def _missing(config: pytest.Config) -> dict[str, int]:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    skipped = [] if reporter is None else reporter.stats.get("skipped", [])
    return missing(str(report.longrepr[2]) for report in skipped if isinstance(report.longrepr, tuple))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if all_wanted() and session.exitstatus == pytest.ExitCode.OK and _missing(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    found = _missing(config)
    if found:
        terminalreporter.section("skipped, because something is missing here")
        for line, count in found.items():
            terminalreporter.write_line(f"{count:4} test{'s' * (count != 1)}: {line}")
        if all_wanted():
            terminalreporter.write_line("COSMORAMA_TESTS=all: nothing may be missing, so this run has failed")
