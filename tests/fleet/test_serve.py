"""One server by itself does what every way to run one does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet.ways import (  # noqa: F401
    Way,
    expected,
    test_a_clip_has_the_same_bytes,
    test_a_job_that_runs_is_cancelled,
    test_a_synchronous_request_is_answered_with_its_clip,
    test_progress_is_told,
    test_what_the_model_cannot_make_is_refused_by_name,
)
from tests.serving import running_server


@pytest.fixture(scope="module")
def way(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Way]:
    with running_server(tiny_checkpoint, tmp_path_factory.mktemp("serve")) as server:
        yield Way(server)
