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
    unknown = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        torch.ops.mkldnn._linear_pointwise: _linear,
    }
    with FlopCounterMode(display=False, custom_mapping=unknown) as counter:
        work(argument)
    return float(counter.get_total_flops()) / 1e9


def _attention(query: Sequence[int], key: Sequence[int], *_: Any, **__: Any) -> int:
    """Scores and weighted values: L by S products of a head's width, twice, each a multiplication and an addition."""
    return 4 * math.prod(query) * key[-2]


def _linear(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    """A multiplication and an addition for every row and weight."""
    return 2 * math.prod(x) * weight[0]


def matmul_gflops(rows: int, width: int, clock: Callable[[], float] = time.process_time) -> float:
    """Billions of operations per second in the product of a feed-forward layer, float32; the best of forty.

    By whichever of the two libraries in torch is the faster one here. Seconds are of all threads' CPU time, or of the
    clock that is given.
    """
    rows_of, weight = torch.randn(rows, width), torch.randn(4 * width, width)
    products = (
        lambda: torch.nn.functional.linear(rows_of, weight),
        lambda: torch.ops.mkldnn._linear_pointwise(rows_of, weight, None, "none", [], ""),
    )
    times = []
    for _ in range(20):
        for product in products:
            start = clock()
            product()
            times.append(clock() - start)
    return 2 * rows_of.numel() * len(weight) / min(times) / 1e9
