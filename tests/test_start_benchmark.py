"""The benchmark of the start runs, and says what it measured."""

from __future__ import annotations

import json

import pytest

from benchmarks import start


def test_the_time_of_a_start_is_measured_on_both_sides(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(start, "SIDES", {"as it is": "", "slower": "import time; list(range(10**7))"})
    monkeypatch.setattr("sys.argv", ["start", "--only", "load", "--runs", "1", "--json"])
    start.main()
    figures = json.loads(capsys.readouterr().out)
    assert figures.keys() == {"load"}
    assert {"as it is", "slower", "times", "runs", "load"} == figures["load"].keys()
    assert all(figures["load"][side][kind] > 0 for side in ("as it is", "slower") for kind in ("wall_s", "cpu_s"))
