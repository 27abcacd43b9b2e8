"""Trains a larger denoiser on a machine with a GPU: `python -m microcosm.gpu --out OUT`, again and again.

Every call works for `--minutes`, so that it fits where a command may not run long, and goes on where the one before
stopped: it renders with all cores while the GPU trains, and writes the weights as they are to OUT. When the plan is
done it says so and ends at once. What stands beside the denoiser in a checkpoint is trained after it, as ever. Without
a GPU the same runs on the CPU, for trying it out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from microcosm.scenes.dataset import DATA, SPLITS, shard_paths
from microcosm.training.autoencoder import main as fit_autoencoder
from microcosm.training.batches import STAGES
from microcosm.training.export import main as export
from microcosm.training.world import Options, Training

NAME = "gpu"
FIRST = {"images": 12, "shorts": 4, "clips": 2}
"""Shards that have to be there before training begins."""
RENDERED = ("shorts", "clips", "corridor-images", "corridor-shorts", "corridor-clips", "images")
"""And the order in which the others are rendered meanwhile."""


def main(
    out: Annotated[Path, typer.Option(help="Where the weights go, and a copy of the checkpoint.")],
    minutes: Annotated[float, typer.Option(help="Length of this call.")] = 8.5,
    training_minutes: Annotated[float, typer.Option(help="Of training in all, whatever the number of calls.")] = 24.0,
    data: Annotated[Path, typer.Option()] = DATA,
    runs: Annotated[Path, typer.Option()] = Path("microcosm-runs/gpu"),
    heads: Annotated[int, typer.Option(help="Of the transformer, 80 wide each.")] = 8,
    batch: Annotated[int, typer.Option(help="Times the batch that a core of a CPU takes.")] = 12,
    processes: Annotated[int, typer.Option(help="That render; 0: what is there is all.")] = os.cpu_count() or 1,
    shards: Annotated[int | None, typer.Option(help="At most so many of each split.")] = None,
) -> None:
    """Work for some minutes."""
    end = time.monotonic() + 60 * minutes
    for folder in (out, runs, data):
        folder.mkdir(parents=True, exist_ok=True)
    if processes:
        for kind, count in FIRST.items():
            _render([kind], data, processes, min(count, shards or count), wait_until=end)
    if not (runs / "vae").exists():
        fit_autoencoder(data, runs)
    renderer = _render(RENDERED, data, max(1, processes - 4), shards) if processes else None
    try:
        done = _train(end, training_minutes, data, runs, heads, batch)
    finally:
        if renderer is not None:
            _stop(renderer)
    if (runs / f"{NAME}.pt").exists():
        export(runs=runs, name=NAME, out=out / "weights")
        shutil.copy(runs / f"{NAME}.pt", out)
    there = ", ".join(f"{len(shard_paths(kind, data))} {kind}" for kind in SPLITS)
    print(f"{done:.1f} of {training_minutes:.1f} minutes trained; shards: {there}", flush=True)


def _train(end: float, total: float, data: Path, runs: Path, heads: int, batch: int) -> float:
    """Train the stages one after another, in `total` minutes, until `end` or until all are done; the minutes done."""
    before, share = 0.0, total / sum(stage.minutes for stage in STAGES.values())
    for name, stage in STAGES.items():
        minutes, done = share * stage.minutes, _trained_minutes(runs) - before
        left = min(minutes - done, (end - time.monotonic()) / 60 - 0.3)
        before += minutes
        if left <= 0.01:
            continue
        device = "cuda" if torch.cuda.is_available() else "cpu"
        options = Options(
            stage=name,
            minutes=left,
            decay_minutes=share * stage.decay_minutes,
            runs=runs,
            data=data,
            name=NAME,
            ema=0.999 if device == "cuda" else 0.99,
            processes=1,
            heads=heads,
            bf16=True,
            device=device,
            batch=batch,
            loaders=8 if device == "cuda" else 0,
            later_minutes=minutes - done - left,
        )
        Training(options, 0).run()
    return _trained_minutes(runs)


def _trained_minutes(runs: Path) -> float:
    path = runs / f"{NAME}.pt"
    if not path.exists():
        return 0.0
    return float(torch.load(path, map_location="cpu", weights_only=False)["progress"]["seconds"]) / 60


def _render(
    kinds: tuple[str, ...] | list[str],
    data: Path,
    processes: int,
    shards: int | None,
    *,
    wait_until: float | None = None,
) -> subprocess.Popen[bytes]:
    """Render splits in a process of their own; with `wait_until` wait for it, at most so long."""
    command = [sys.executable, "-m", "microcosm.scenes.dataset", *kinds, "--folder", str(data)]
    command += ["--processes", str(processes)] + ([] if shards is None else ["--shards", str(shards)])
    process = subprocess.Popen(command, start_new_session=True)
    if wait_until is not None:
        try:
            if process.wait(max(1.0, wait_until - time.monotonic())):
                raise SystemExit("rendering failed; is libosmesa6 there, or MUJOCO_GL=egl set?")
        except subprocess.TimeoutExpired:
            _stop(process)
            raise SystemExit(0) from None
    return process


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a renderer and the processes it started; finished shards stay."""
    try:
        os.killpg(process.pid, 15)
    except ProcessLookupError:
        return
    process.wait()


if __name__ == "__main__":
    typer.run(main)
