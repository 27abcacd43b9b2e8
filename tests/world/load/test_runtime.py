"""What torch is told before it is imported, and how many threads it has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cosmorama
from cosmorama.world.load.runtime import torch_environment, usable_cpus, use_threads


def test_the_allocators_policy_is_the_operators_where_there_is_one() -> None:
    assert "expandable_segments:True" in torch_environment({})["PYTORCH_CUDA_ALLOC_CONF"]
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        assert torch_environment({name: "backend:native"}) == {"OMP_WAIT_POLICY": "passive"}


def test_waiting_threads_sleep_unless_the_operator_says_otherwise() -> None:
    assert torch_environment({})["OMP_WAIT_POLICY"] == "passive"
    assert "OMP_WAIT_POLICY" not in torch_environment({"OMP_WAIT_POLICY": "active"})


def test_a_program_that_loads_a_model_runs_it_so() -> None:
    program = "import os, cosmorama; cosmorama.load(); print(os.environ['OMP_WAIT_POLICY'])"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "passive"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "5000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu.max": "nonsense"}, 8),
        ({}, 8),
    ],
)
def test_a_container_has_as_many_processors_as_it_is_given(
    files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_cpus(tmp_path) == expected


def test_threads_are_no_more_than_may_run(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        use_threads(3)
        assert torch.get_num_threads() == 3
        monkeypatch.setattr("cosmorama.world.load.runtime.usable_cpus", lambda: 2)
        use_threads(None)
        assert torch.get_num_threads() == 2
        cosmorama.load(threads=4)
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
