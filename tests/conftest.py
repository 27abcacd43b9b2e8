"""Shared fixtures: a tiny checkpoint with random weights, in the layout of a real one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cosmorama.world.microcosm.loader import load_microcosm
from cosmorama.world.microcosm.sampling import CosmosFlowWorld
from tests.needs import pytest_sessionfinish as pytest_sessionfinish
from tests.needs import pytest_terminal_summary as pytest_terminal_summary
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
    "tests/test_docs.py",
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
