"""The API's default request (1280x704, 121 frames, 35 steps, guidance 7) on this machine, stage by stage.

Runs in a process of its own, as the server's worker does, and prints seconds per stage, the process's peak memory, and
the denoiser's arithmetic throughput as a share of the matrix-multiplication peak measured in the same process.

    python benchmarks/default_request.py --json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from cosmorama.request import GenerationRequest

PROMPT = "a red ball rolls to the right and hits a blue cube on a green floor"
PEAK_OF = 1536, 512
"""Rows and width of the product that the peak is measured with."""


def measure(model: str, request: GenerationRequest) -> dict[str, Any]:
    """One request in this process."""
    start = time.perf_counter()
    import torch

    import cosmorama
    from benchmarks.arithmetic import gflop_of, matmul_gflops
    from cosmorama.engine.prepare import PreparedRequest
    from cosmorama.engine.rollout import Rollout
    from cosmorama.resolve import resolve

    loaded = cosmorama.load(model)
    load_s = time.perf_counter() - start
    peaks = [matmul_gflops(*PEAK_OF, time.perf_counter)]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        outcome = loaded.generate_file(request, Path(folder) / "clip.mp4")
        wall_s = time.perf_counter() - start
        size = outcome.path.stat().st_size
    peak_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peaks.append(matmul_gflops(*PEAK_OF, time.perf_counter))

    rollout = Rollout(loaded.world, PreparedRequest(resolve(request, loaded.capabilities), PROMPT, None))
    gflop = gflop_of(_finish, rollout)
    achieved = gflop / outcome.timings["denoise"]
    peak = statistics.mean(peaks)
    return {
        "machine": {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "request": f"{request.width}x{request.height}, {request.frames} frames, {request.steps} steps, "
        f"guidance {request.guidance_scale:g}, {outcome.fps:g} fps",
        "load_s": round(load_s, 2),
        "stages_s": {stage: round(seconds, 2) for stage, seconds in outcome.timings.items()},
        "total_s": round(wall_s, 2),
        "peak_memory_gb": round(peak_rss / 1e9, 2),
        "denoiser_gflop": round(gflop, 1),
        "denoiser_gflops": round(achieved, 1),
        "matmul_peak_gflops": [round(p, 1) for p in peaks],
        "denoiser_share_of_peak": round(achieved / peak, 3),
        "file_mb": round(size / 1e6, 2),
    }


def _finish(rollout: Any) -> None:
    while not rollout.done:
        rollout.advance()


def main() -> None:
    """Parse arguments, measure in a fresh process, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="microcosm")
    parser.add_argument("--steps", type=int, default=35)
    parser.add_argument("--frames", type=int, default=121)
    parser.add_argument("--json", action="store_true", help="print JSON (else the same, a line per figure)")
    arguments = parser.parse_args()
    request = replace(GenerationRequest(prompt=PROMPT, seed=1), steps=arguments.steps, frames=arguments.frames)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        figures = pool.apply(measure, (arguments.model, request))
    if arguments.json:
        print(json.dumps(figures, indent=2))
    else:
        for name, value in figures.items():
            print(f"{name}: {value}")


if __name__ == "__main__":
    main()
