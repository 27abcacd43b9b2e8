"""From nothing to ready: `cosmorama.load()` in a new process, and `cosmorama serve` until /v1/health/ready answers 200.

    python -m benchmarks.start --json             # two minutes
    python -m benchmarks.start --runs 9 --only load

Microcosm's networks are stored and built without diffusers and transformers. What that saves stands beside: the other
side of each pair imports them first, in the process that loads the model, as it had to before. The two sides of a pair
take turns, and which of them is first alternates. A first run that is not counted reads the files.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests import serving

SIDES = {"as it is": "", "diffusers and transformers first": "import diffusers.models.modeling_utils, transformers"}
# Python imports it when a process starts; only a worker's is one that multiprocessing spawns: it loads the model.
_SITE = """
if "spawn_main" in " ".join(__import__("sys").orig_argv):
    {before}
"""


def main() -> None:
    """Parse arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--runs", type=int, default=3, help="of each side")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a line per part")
    arguments = parser.parse_args()
    figures = {name: measured(PARTS[name], arguments.runs) for name in arguments.only}
    if arguments.json:
        print(json.dumps(figures, indent=2))
    else:
        for name, sides in figures.items():
            print(f"{name}: {sides}")


def measured(start: Callable[[str], tuple[float, float]], runs: int) -> dict[str, Any]:
    """Medians of wall and CPU seconds of both sides, and how many times as long the second takes (CPU)."""
    taken: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    for run in range(runs + 1):
        order = list(SIDES) if run % 2 else list(reversed(SIDES))
        for side in order:
            found = start(SIDES[side])
            if run:
                taken[side].append(found)
    middle = {side: [statistics.median(column) for column in zip(*rows, strict=True)] for side, rows in taken.items()}
    figures: dict[str, Any] = {
        side: {"wall_s": round(wall, 2), "cpu_s": round(cpu, 2)} for side, (wall, cpu) in middle.items()
    }
    plain, other = (middle[side][1] for side in SIDES)
    return figures | {"times": round(other / plain, 2), "runs": runs, "load": round(os.getloadavg()[0], 1)}


def load(before: str) -> tuple[float, float]:
    """Wall and CPU seconds of a process that loads Microcosm and ends."""
    began, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", f"{before}\nimport cosmorama; cosmorama.load('microcosm')"], check=True)
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - began, now.ru_utime - used.ru_utime + now.ru_stime - used.ru_stime


def serve(before: str) -> tuple[float, float]:
    """Wall seconds of a server with Microcosm from its start until it is ready, and CPU seconds of all processes."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sitecustomize.py").write_text(_SITE.format(before=before or "pass"))
        path = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])
        began = time.perf_counter()
        with serving.running_server("microcosm", Path(folder) / "server", PYTHONPATH=path) as server:
            wall_s = time.perf_counter() - began
            whole = psutil.Process(server.process.pid)
            return wall_s, sum(sum(one.cpu_times()[:2]) for one in (whole, *whole.children(recursive=True)))


PARTS: dict[str, Callable[[str], tuple[float, float]]] = {"load": load, "serve": serve}


if __name__ == "__main__":
    main()
