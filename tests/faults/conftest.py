"""What tests of faults need: a Postgres that can be stopped."""

from __future__ import annotations

from tests.jobs.conftest import postgres as postgres
