"""The GPU benchmark runs: every section, on tiny networks on a CPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_networks import Bench

TINY = Bench(torch.device("cpu"), tiny=True)


@pytest.fixture(autouse=True)
def memory_that_nobody_filled_is_nan() -> Iterator[None]:
    """So that a weight or a buffer that is never set shows at once, and not when the memory happens to hold a NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("name", gpu.SECTIONS)
def test_every_section_runs(name: str) -> None:
    figures = gpu.SECTIONS[name](TINY)
    json.dumps(figures)
    assert figures


def test_both_sides_compute_the_same() -> None:
    figures = gpu.denoiser(TINY)
    assert figures["relative_error"] < 2e-2  # bfloat16
    assert figures["same_twice"]


def test_whole_requests_have_the_same_bytes_whatever_runs_beside_them() -> None:
    figures = gpu.engine(TINY)
    assert figures["same_bytes_again"]
    assert figures["same_bytes_beside_another"]


def test_a_section_that_fails_stops_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(bench: Bench) -> gpu.Figures:
        raise RuntimeError("no kernel image")

    arguments = ["gpu", "--tiny", "--device", "cpu", "--out", str(tmp_path / "out.json"), "broken", "env"]
    with (
        patch.dict(gpu.SECTIONS, {"broken": fails}),
        patch("sys.argv", arguments),
        pytest.raises(SystemExit) as ended,
    ):
        gpu.main()
    assert ended.value.code
    figures = json.loads((tmp_path / "out.json").read_text())
    assert "no kernel image" in figures["broken"]["failed"]
    assert figures["env"]["torch"] == torch.__version__


def test_sections_that_there_are_not_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    with patch("sys.argv", ["gpu", "denoizer"]), pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2
    assert "denoizer" in capsys.readouterr().err


def test_sides_are_measured_in_turns() -> None:
    order: list[str] = []
    found = gpu.interleaved(TINY, {"a": lambda: order.append("a"), "b": lambda: order.append("b")})
    assert order == ["a", "b"] * 2
    assert found.keys() == {"a_ms", "b_ms"}
