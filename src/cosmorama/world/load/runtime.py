"""How torch is to run in this process: what its environment has to say before it is imported, and its threads after."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from math import ceil
from pathlib import Path

_PINNED_EXACTLY_FROM_MB = 16
_CGROUPS = Path("/sys/fs/cgroup")


def torch_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Environment variables that torch reads when it is imported; none that the operator has set.

    Blocks of gigabytes in changing sizes (denoiser, decoder, other clips) fragment an allocator whose segments cannot
    grow. Pinned memory, where offloaded weights wait, would be rounded up to powers of two: up to 1.9 times as much.

    OpenMP's threads spin for some milliseconds after each operation. Beside anything else that wants a core (the
    process that answers, a page that shows previews) a small model waits for those that spin.
    """
    chosen = {} if "OMP_WAIT_POLICY" in environment else {"OMP_WAIT_POLICY": "passive"}
    if {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & {*environment}:
        return chosen
    policy = "expandable_segments:True"
    with suppress(PackageNotFoundError, ValueError):
        major, minor = (int(number) for number in version("torch").split(".")[:2])
        if (major, minor) >= (2, 13):  # others may not know it, and refuse to start
            policy += f",pinned_max_round_threshold_mb:{_PINNED_EXACTLY_FROM_MB}"
    return chosen | {"PYTORCH_CUDA_ALLOC_CONF": policy}


def use_threads(threads: int | None) -> None:
    """Have torch compute with so many threads; None: as many as it would take, but no more than may run at a time."""
    import torch

    torch.set_num_threads(threads or min(torch.get_num_threads(), usable_cpus()))


def usable_cpus(cgroups: Path = _CGROUPS) -> int:
    """How many processors this process may keep busy: those it may run on, and what its container is given.

    torch counts a machine's cores. With more threads than its quota a container is halted for most of every period.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = []
    for folder in _folders(cgroups):
        with suppress(OSError, ValueError):  # "max" is no number: no limit
            quota, period = (folder / "cpu.max").read_text().split()
            quotas.append(int(quota) / int(period))
        with suppress(OSError, ValueError):  # version 1, where -1 is no limit
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            quotas.append(int(quota) / int(period))
    return max(1, min([count, *(ceil(quota) for quota in quotas if quota > 0)]))


def _folders(cgroups: Path) -> list[Path]:
    """The folders of this process's control groups and of those that they are in."""
    found = [cgroups, cgroups / "cpu"]
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            number, names, path = line.split(":", 2)
            if number == "0" or "cpu" in names.split(","):
                own = (cgroups if number == "0" else cgroups / "cpu") / path.lstrip("/")
                found += [own, *(parent for parent in own.parents if cgroups in parent.parents)]
    return found
