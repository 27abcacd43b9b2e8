"""What a GPU makes of whole requests and of its memory: sections of `benchmarks.gpu`."""

from __future__ import annotations

import gc
import resource
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_networks import GB, Bench, Figures, drained, interleaved, peak_gb, wait
from cosmorama.engine.engine import Engine
from cosmorama.engine.outcome import Outcome
from cosmorama.engine.prepare import PreparedRequest
from cosmorama.engine.rollout import Rollout
from cosmorama.world.load.offload import offload_layers


def engine(bench: Bench) -> Figures:
    """Whole requests through the engine."""
    small = {"frames": 5} if bench.tiny else {"frames": 33, "width": 832, "height": 480}
    first, other = (
        bench.request(steps=4, **small),
        bench.request(steps=3, **small | {"seed": 2, "frames": 1 if bench.tiny else 5}),
    )
    found: Figures = {}
    with tempfile.TemporaryDirectory() as folder, _engine(bench, 2) as made:

        def run(name: str, *requests: Any) -> bytes:
            begun = time.perf_counter()
            for number, request in enumerate(requests):
                made.submit(f"{name}{number}", request, output=Path(folder) / f"{name}{number}")
            outcomes: dict[str, Outcome | Exception] = {}
            while made.pending:
                if not made.step():
                    made.wait()
                outcomes.update(made.finished())
            found[name] = {"s": round(time.perf_counter() - begun, 2)}
            outcome = outcomes[f"{name}0"]
            if isinstance(outcome, Exception):
                raise outcome
            found[name]["stages_s"] = {stage: round(seconds, 3) for stage, seconds in outcome.timings.items()}
            return outcome.path.read_bytes()

        alone, again, together = run("alone", first), run("again", first), run("together", first, other)
    return found | {"same_bytes_again": alone == again, "same_bytes_beside_another": alone == together}


@contextmanager
def _engine(bench: Bench, max_active: int) -> Iterator[Engine]:
    made = Engine(bench.world(), max_active=max_active)
    try:
        yield made
    finally:
        made.close()


@torch.inference_mode()
def sync(bench: Bench) -> Figures:
    """Whether the host waits for the device within a step, with and without step reuse."""
    found: Figures = {}
    world = bench.world()
    for reuse in (0.0, 0.04):
        request = bench.request(steps=3, reuse=reuse, frames=9, width=832, height=480)
        if bench.tiny:
            request = bench.request(steps=3, reuse=reuse)
        rollout = Rollout(world, PreparedRequest(request, "a robot arm", None))
        rollout.advance()
        if bench.cuda:
            torch.cuda.set_sync_debug_mode("error")
        try:
            while not rollout.done:
                rollout.advance()
            found[f"reuse_{reuse}"] = "the host never waits" if bench.cuda else "not to be seen on a CPU"
        except RuntimeError as error:
            ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "cosmorama" in frame.filename]
            found[f"reuse_{reuse}"] = f"waits in {Path(ours[-1].filename).name}:{ours[-1].lineno}: {str(error)[:80]}"
        finally:
            if bench.cuda:
                torch.cuda.set_sync_debug_mode("default")
    return found


@torch.inference_mode()
def fragment(bench: Bench) -> Figures:
    """Requests of three sizes in turns."""
    world = bench.world()
    sizes: tuple[dict[str, int], ...] = ({}, {"width": 960, "height": 960, "frames": 61}, {"width": 832, "height": 480})
    started = [bench.begun(world, **changes) for changes in (sizes[:1] if bench.tiny else sizes)]
    for _ in range(2):
        for sampling, latents in started:
            sampling.denoise(latents, 0)
            drained(chunk for chunk, _ in zip(sampling.decode(latents), range(3), strict=False))
    if not bench.cuda:
        return {"turns": 2 * len(started)}
    stats = torch.cuda.memory_stats()
    allocated, reserved = stats["allocated_bytes.all.peak"], stats["reserved_bytes.all.peak"]
    return {"allocated_peak_gb": round(allocated / GB, 2), "reserved_beyond_gb": round((reserved - allocated) / GB, 2)}


def oom(bench: Bench) -> Figures:
    """A request that does not fit, and the one after it. Nothing to see on a CPU."""
    if not bench.cuda:
        return {"skipped": "takes a GPU"}
    found: Figures = {}
    with tempfile.TemporaryDirectory() as folder, _engine(bench, 1) as made:
        torch.cuda.empty_cache()
        room = 3.0 * GB
        filler = torch.empty(int(torch.cuda.mem_get_info()[0] - room), dtype=torch.uint8, device=bench.device)
        before = torch.cuda.memory_allocated()
        for name, changes in (("large", {}), ("small", {"width": 320, "height": 192, "frames": 5})):
            try:
                made.make(bench.request(**changes), Path(folder) / name)
                found[name] = "made"
            except Exception as error:  # what it ends with is the figure  # noqa: BLE001
                found[name] = f"{type(error).__name__}: {error}"[:160]
            gc.collect()
            found[f"{name}_left_over_mb"] = round((torch.cuda.memory_allocated() - before) / 1e6)
        del filler
    return found


@torch.inference_mode()
def offload(bench: Bench) -> Figures:
    """The 2B's denoiser with its layers on the host. Nothing to see on a CPU."""
    if not bench.cuda:
        return {"skipped": "takes a GPU"}
    world = bench.world()
    sampling, latents = bench.begun(world)

    def go() -> Tensor:
        return torch.as_tensor(sampling.denoise(latents, 0))

    exact = go()
    found: Figures = {"plain": interleaved(bench, {"evaluation": go}, 2)}
    network = world.transformer.to("cpu")
    held = sum(p.nbytes for p in network.parameters())
    torch.cuda.empty_cache()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    offload_layers(network, bench.device)
    found["same_numbers"] = torch.equal(exact, go())
    found["by_layers"] = interleaved(bench, {"evaluation": go}, 2) | {"peak_gb": peak_gb(bench, go)}
    found["weights_gb"] = round(held / GB, 2)
    found["host_memory_more_gb"] = round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6, 2)
    return found


@torch.inference_mode()
def stills(bench: Bench) -> Figures:
    """How long the host takes to launch an evaluation, and how long the evaluation takes."""
    world, found = bench.world(), {}
    for width, height in ((64, 64),) if bench.tiny else ((1360, 768), (832, 480), (256, 256)):
        sampling, latents = bench.begun(world, frames=1, width=width, height=height)
        sampling.denoise(latents, 0)
        wait(bench)
        begun = time.perf_counter()
        for _ in range(5):
            sampling.denoise(latents, 0)
        launched = time.perf_counter() - begun
        wait(bench)
        whole = time.perf_counter() - begun
        found[f"{width}x{height}"] = {"launch_ms": round(launched * 200, 1), "whole_ms": round(whole * 200, 1)}
    return found
