"""Shared fixtures: a tiny checkpoint with random weights, in the layout of a real one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cosmorama.world.microcosm.loader import load_microcosm
from cosmorama.world.microcosm.sampling import CosmosFlowWorld
from tests import needs
from tests.tiny import save_tiny

# Tests run in two processes and start more: with more threads than cores, threads wait for each other. The variable is
# for the processes that they start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

LONGEST = (
    "tests/fleet",
    "tests/faults",
    "tests/api/test_process.py",
    "tests/world/ranks/test_sequence.py",
    "tests/world/load/test_quantize.py",
    "tests/test_client.py",
    "tests/microcosm",
    "tests/api",
    "tests/world",
)
"""What takes longest begins first: two processes that take a file at a time then end at about the same time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        return next((i for i, start in enumerate(LONGEST) if item.nodeid.startswith(start)), len(LONGEST))

    items.sort(key=place)


def _missing(config: pytest.Config) -> dict[str, int]:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    skipped = [] if reporter is None else reporter.stats.get("skipped", [])
    return needs.missing(str(report.longrepr[2]) for report in skipped if isinstance(report.longrepr, tuple))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if needs.all_wanted() and session.exitstatus == pytest.ExitCode.OK and _missing(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    found = _missing(config)
    if found:
        terminalreporter.section("skipped, because something is missing here")
        for line, count in found.items():
            terminalreporter.write_line(f"{count:4} test{'s' * (count != 1)}: {line}")
        if needs.all_wanted():
            terminalreporter.write_line("COSMORAMA_TESTS=all: nothing may be missing, so this run has failed")


@pytest.fixture(scope="session", autouse=True)
def state_of_our_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test touches the jobs of whoever runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COSMORAMA_STATE_DIR", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete checkpoint folder."""
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_world(tiny_checkpoint: Path) -> CosmosFlowWorld:
    """The tiny checkpoint, loaded as a user's would be."""
    return load_microcosm(tiny_checkpoint)
