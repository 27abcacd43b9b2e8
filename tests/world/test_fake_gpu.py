"""Requests at the published sizes on a GPU that is only declared: where every tensor is, its type, and the bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

DENOISERS_GB = {
    "predict1-7b": 14.5,
    "predict2-2b": 4.1,
    "predict2.5-14b": 28.7,
    "transfer2.5-2b": 4.1,
    "cosmos3-text": 30.4,
}
"""In bfloat16, as docs/speed.md has them for 2B and 14B; a first number behind the point."""


MODES = ("transfer", "policy", "forward_dynamics", "distilled")
"""Of Cosmos3, whose networks then have two of their layers."""
PREVIEWED = {"predict1-7b": 9}
"""Frames of two latent ones, which is all that is made but by Transfer2.5 and transfer, in two chunks."""


def test_nothing_of_a_request_stays_on_the_cpu_beside_a_gpu() -> None:
    modes = [f"cosmos3-{mode}" for mode in MODES]
    command = [sys.executable, "-m", "tests.world.fake_gpu", *DENOISERS_GB, *modes]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=540, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    found: dict[str, dict[str, Any]] = json.loads(ended.stdout.splitlines()[-1])
    for family in (*DENOISERS_GB, *modes):
        took = found[family]
        assert took["places"] == ["gpu:0"], family
        assert took["dtype"] == "torch.float32", family  # of estimates; networks compute in bfloat16
        if family in DENOISERS_GB:
            assert abs(took["denoiser_gb"] - DENOISERS_GB[family]) < 0.1, (family, took)
        assert took["previewed"] == PREVIEWED.get(family, 5), (family, took)
        assert took["frames"] == (9 if "transfer" in family else PREVIEWED.get(family, 5)), (family, took)
    assert found["cosmos3-policy"]["actions"] == [4, 10]
    assert found["cosmos3-forward_dynamics"]["actions"] is None
