"""What every trainer must do."""

from __future__ import annotations

import math
from typing import Any

import torch

from microcosm.training.loop import Trainer


def learns(training: Trainer[Any, Any]) -> None:
    """Two steps of finite values change its network; then it is saved."""
    before = [parameter.clone() for parameter in training.net.parameters()]
    for _ in range(2):
        assert all(map(math.isfinite, training.take_step(next(training.batches), 1e-3).values()))
    assert any(not torch.equal(*pair) for pair in zip(before, training.net.parameters(), strict=True))
    training.save()
