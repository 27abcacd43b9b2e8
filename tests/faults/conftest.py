"""What tests of faults need: a Postgres that can be stopped, and chance."""

from __future__ import annotations

import os
import random
import time

import pytest

from tests.jobs.conftest import postgres as postgres


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Another one every time; its seed is shown where a test fails."""
    seed = int(os.environ.get("COSMORAMA_FAULTS_SEED", time.time_ns() % 10**6))
    print(f"COSMORAMA_FAULTS_SEED={seed}")
    return random.Random(seed)
