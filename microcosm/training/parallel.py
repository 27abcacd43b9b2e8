"""Data-parallel training on one machine: one single-threaded process per core, weights averaged now and then.

On small models two such processes do nearly twice the work of one process with two threads, which spends its time
waiting at the end of every short operation.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor


def in_processes(work: Callable[..., object], count: int, *arguments: Any) -> None:
    """Call `work(rank, *arguments)` with every rank below `count`, in processes of their own if there are several."""
    if count == 1:
        work(0, *arguments)
        return
    with tempfile.TemporaryDirectory(prefix="microcosm-") as folder:
        mp.spawn(_joined, (count, Path(folder) / "store", work, arguments), count)  # type: ignore[attr-defined, no-untyped-call]


def _joined(rank: int, count: int, store: Path, work: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=count)
    try:
        work(rank, *arguments)
    finally:
        dist.destroy_process_group()


@torch.no_grad()
def average_weights(parameters: Iterable[Tensor]) -> None:
    """Replace weights by their mean over the workers, which may take steps of their own between (arXiv 2311.08105)."""
    if not dist.is_initialized():
        return
    weights = list(parameters)
    flat = torch.cat([weight.detach().flatten() for weight in weights])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for weight, part in zip(weights, flat.split([weight.numel() for weight in weights]), strict=True):
        weight.copy_(part.view_as(weight))


def agreed(value: float) -> float:
    """The first worker's `value`, so that all stop at the same step."""
    if not dist.is_initialized():
        return value
    shared = torch.tensor(value, dtype=torch.float64)
    dist.broadcast(shared, 0)
    return float(shared)
