"""Data-parallel training on one machine: one single-threaded process per core, weights averaged now and then.

On small models two such processes do nearly twice the work of one process with two threads, which spends its time
waiting at the end of every short operation.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

_RANK, _MEETING = "MICROCOSM_RANK", "MICROCOSM_MEETING"


@contextmanager
def workers(module: str, count: int) -> Iterator[int]:
    """Run this program, `python -m module` with its own arguments, `count` times at once; yields this one's rank."""
    if count == 1:
        yield 0
        return
    rank = int(os.environ.get(_RANK, "0"))
    meeting = os.environ.get(_MEETING) or os.path.join(tempfile.mkdtemp(prefix="microcosm-"), "store")
    if rank == 0:
        for other in range(1, count):
            environment = {**os.environ, _RANK: str(other), _MEETING: meeting}
            # A session of its own, as schedulers share a busy processor among sessions first.
            subprocess.Popen([sys.executable, "-m", module, *sys.argv[1:]], env=environment, start_new_session=True)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count)
    try:
        yield rank
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
