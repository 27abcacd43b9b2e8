"""Shared fixtures: a tiny checkpoint with random weights, in the layout of a real one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cosmorama.world.cosmos_flow import CosmosFlowWorld
from cosmorama.world.microcosm.loader import load_microcosm
from tests.tiny import save_tiny


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
