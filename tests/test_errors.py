"""Errors keep what they know when they travel between processes."""

from __future__ import annotations

import pickle

import pytest

from cosmorama.errors import CancelledError, InvalidRequestError, MediaError, Problem, WorkerError


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequestError(Problem("steps", 0, "1 to 50"), Problem("fps", 3, "12 to 40")),
        MediaError("image", "too large", status=413),
        WorkerError("the worker died"),
        CancelledError("cancelled"),
    ],
)
def test_errors_survive_a_pipe(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
    assert copy.status == error.status


def test_a_long_value_is_shown_in_brief() -> None:
    assert len(str(Problem("prompt", "x" * 10_000, "less"))) < 200
