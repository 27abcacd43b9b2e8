"""How much arithmetic something is, and how fast this machine can do arithmetic at best."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def gflop_of(work: Callable[[Any], object], argument: object) -> float:
    """Billions of floating-point operations in the matrix products, convolutions and attention of `work(argument)`."""
    operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={operator: _attention}) as counter:
        work(argument)
    return float(counter.get_total_flops()) / 1e9


def _attention(query: Sequence[int], key: Sequence[int], *_: Any, **__: Any) -> int:
    """Scores and weighted values: L by S products of a head's width, twice, each a multiplication and an addition."""
    return 4 * math.prod(query) * key[-2]


def matmul_gflops(rows: int, width: int) -> float:
    """Billions of operations per CPU second in the product of a feed-forward layer, float32; the best of twenty."""
    left, right = torch.randn(rows, width), torch.randn(width, 4 * width)
    times = []
    for _ in range(20):
        start = time.process_time()
        left @ right
        times.append(time.process_time() - start)
    return 2 * left.numel() * right.shape[1] / min(times) / 1e9
