"""Requests at the published sizes on a GPU that is only declared: where every tensor is, its type, and the bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

DENOISERS_GB = {"predict1-7b": 14.5, "predict2-2b": 4.1, "predict2.5-14b": 28.7, "transfer2.5-2b": 4.1}
"""In bfloat16, as docs/speed.md has them for 2B and 14B; a first number behind the point."""


def test_nothing_of_a_request_stays_on_the_cpu_beside_a_gpu() -> None:
    command = [sys.executable, "-m", "tests.world.fake_gpu", *DENOISERS_GB]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=540, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    found: dict[str, dict[str, Any]] = json.loads(ended.stdout.splitlines()[-1])
    for family, size in DENOISERS_GB.items():
        took = found[family]
        assert took["places"] == ["gpu:0"], family
        assert took["dtype"] == "torch.float32", family  # of estimates; networks compute in bfloat16
        assert abs(took["denoiser_gb"] - size) < 0.1, (family, took)
        chunks = 2 if family.startswith("transfer") else 1
        assert took["frames"] == chunks * 9 - (chunks - 1), (family, took)
