"""Cosmos models in Cosmorama's engine and in diffusers' own pipelines: the same weights, requests and seeds, on a CPU.

The checkpoints are of real architecture with random weights, a quarter as wide as the published 2B models: the network
512 (8 blocks), the video tokenizer 24; text is 1024 wide. Both sides run in one process in turns, and CPU time is
taken, so that what else the machine does touches both alike. The loop's time is per evaluation of the network:
diffusers evaluates Predict2 once more than its result depends on, and that would flatter a comparison of few steps.
Whole requests count everything, as a user would; those of the few steps of a case, and by the measured time per
evaluation those of the usual 35.

    python -m benchmarks.vs_diffusers                           the small sizes, as many as eight minutes have time for
    python -m benchmarks.vs_diffusers --case all --minutes 60   all sizes, and the memory at its peak
    python -m benchmarks.vs_diffusers --case 880 --steps 35     as long as a request usually is: a prompt's keys and
                                                                values, which are computed once, weigh less then

Cases are begun from the smallest on for as long as the next one is expected to end in time; what is left out is told.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.arithmetic import gflop_of, matmul_gflops

PROMPT = "a red ball rolls to the right on green floor and hits a blue cube"
NEGATIVE = "ugly blurred dark scene"


@dataclass(frozen=True, slots=True)
class Case:
    """One request on one kind of checkpoint, image to world. Without guidance: it only doubles the evaluations."""

    name: str
    kind: str
    tokens: int
    width: int
    height: int
    frames: int
    steps: int
    threads: int = 1
    repeats: int = 2
    dtype: str = "float32"

    @property
    def pixels(self) -> int:
        """Of all of its requests' frames; arithmetic is counted in as many requests again."""
        return self.width * self.height * self.frames * self.repeats * (2 if self.name == COUNTED else 1)


WIDTH = 512
TOKENIZER = {"base_dim": 24, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2}
USUAL_STEPS = 35
COUNTED = "880"  # the case whose arithmetic is counted too
SMALL = ("220", COUNTED)
KINDS = ("predict2-video2world", "predict2.5")
CASES = (
    *(Case("220", kind, 220, 160, 176, 5, 3) for kind in KINDS),
    *(Case(COUNTED, kind, 880, 320, 176, 13, 3, threads=threads) for threads in (1, 2) for kind in KINDS),
    *(Case("2240", kind, 2240, 448, 320, 13, 2, threads=threads) for threads in (1, 2) for kind in KINDS),
    Case("2240 bf16", "predict2-video2world", 2240, 448, 320, 13, 2, dtype="bfloat16"),
    *(Case("7920", "predict2-video2world", 7920, 640, 352, 33, 2, threads=threads, repeats=1) for threads in (1, 2)),
)
MEMORY = Case("61 frames at 448x320", "predict2-video2world", 8960, 448, 320, 61, 2, threads=2)


@dataclass(slots=True)
class Sample:
    """CPU seconds of one request: all of it, the network, the video encoder; and how often the network ran."""

    request_s: float = 0.0
    loop_s: float = 0.0
    encode_s: float = 0.0
    evaluations: int = 0


def build(case: Case, folder: Path) -> Any:
    """Write the checkpoint of a case; diffusers' pipeline on it."""
    from tests.world.checkpoints import save_predict

    pipeline = save_predict(
        case.kind,
        folder,
        text_width=1024,
        num_attention_heads=8,
        attention_head_dim=WIDTH // 8,
        num_layers=8,
        mlp_ratio=4.0,
        adaln_lora_dim=256,
        max_size=(128, 240, 240),
        wan=TOKENIZER,
    )
    import torch

    for part in (pipeline.transformer, pipeline.vae, pipeline.text_encoder):
        part.to(getattr(torch, case.dtype))
    return pipeline


def picture(case: Case) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The image that the clip starts from."""
    y, x, c = np.ogrid[: case.height, : case.width, :3]
    return (127.5 + 127.5 * np.sin(x / 9 + y / 7 + c)).astype(np.uint8)


def ours(case: Case, world: Any) -> Sample:
    """The request in Cosmorama's engine."""
    from cosmorama.engine.prepare import PreparedRequest
    from cosmorama.engine.rollout import Rollout
    from cosmorama.request import GenerationRequest
    from cosmorama.resolve import resolve

    request = GenerationRequest(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        image=b"handed over decoded",
        seed=1,
        guidance_scale=1.0,
        steps=case.steps,
        width=case.width,
        height=case.height,
        frames=case.frames,
        fps=16,
    )
    prepared = PreparedRequest(resolve(request, world.capabilities), PROMPT, picture(case)[None])
    sample = Sample()
    with watched(world.transformer, world.autoencoder.vae, sample):
        start = time.process_time()
        rollout = Rollout(world, prepared)
        rollout.advance()
        loop = time.process_time()
        while not rollout.done:
            rollout.advance()
        sample.loop_s = time.process_time() - loop
        for _ in rollout.decode():
            pass
        sample.request_s = time.process_time() - start
    return sample


def theirs(case: Case, pipeline: Any) -> Sample:
    """The request in diffusers' pipeline."""
    import torch
    from PIL import Image

    from tests.world.reference import without_torchvision

    sample = Sample()
    began: list[float] = []
    hook = pipeline.transformer.register_forward_pre_hook(lambda *_: began.append(time.process_time()))

    def ended(_pipeline: Any, _step: int, _timestep: Any, _values: dict[str, Any]) -> dict[str, Any]:
        sample.loop_s = time.process_time() - began[0]
        return {}

    options: dict[str, Any] = {"fps": 16} if case.kind.startswith("predict2-") else {}
    with without_torchvision(), watched(pipeline.transformer, pipeline.vae, sample):
        start = time.process_time()
        pipeline(
            image=Image.fromarray(picture(case)),
            prompt=PROMPT,
            negative_prompt=NEGATIVE,
            height=case.height,
            width=case.width,
            num_frames=case.frames,
            num_inference_steps=case.steps,
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(1),
            output_type="np",
            callback_on_step_end=ended,
            **options,
        )
        sample.request_s = time.process_time() - start
    hook.remove()
    return sample


@contextmanager
def watched(transformer: Any, vae: Any, sample: Sample) -> Iterator[None]:
    """Count evaluations of the network, and the CPU time of the video encoder."""

    def evaluated(*_: Any) -> None:
        sample.evaluations += 1

    encode = vae.encode

    def timed(*arguments: Any, **options: Any) -> Any:
        start = time.process_time()
        result = encode(*arguments, **options)
        sample.encode_s += time.process_time() - start
        return result

    hook = transformer.proj_out.register_forward_hook(evaluated)
    vae.encode = timed
    try:
        yield
    finally:
        hook.remove()
        del vae.encode


def measure(case: Case) -> dict[str, Any]:
    """Both sides in turns; medians, and how many times faster Cosmorama is."""
    import torch

    from cosmorama.world.registry import load_world

    torch.set_num_threads(case.threads)
    with tempfile.TemporaryDirectory() as folder:
        pipeline = build(case, Path(folder))
        world = load_world(folder, device="cpu", dtype=case.dtype)
    sides: dict[str, Callable[[Case], Sample]] = {
        "cosmorama": lambda case: ours(case, world),
        "diffusers": lambda case: theirs(case, pipeline),
    }
    samples: dict[str, list[Sample]] = {side: [] for side in sides}
    for _ in range(case.repeats):
        for side, run in sides.items():
            samples[side].append(run(case))
    result: dict[str, Any] = asdict(case)
    for side, runs in samples.items():
        request_s = statistics.median(run.request_s for run in runs)
        evaluation_s = statistics.median(run.loop_s / run.evaluations for run in runs)
        result[side] = {
            "request_cpu_s": request_s,
            "request_of_35_steps_cpu_s": request_s + (USUAL_STEPS - case.steps) * evaluation_s,
            "loop_cpu_s_per_evaluation": evaluation_s,
            "evaluations": runs[0].evaluations,
            "encode_cpu_s": statistics.median(run.encode_s for run in runs),
        }
    ratios = {name: result["diffusers"][name] / result["cosmorama"][name] for name in result["diffusers"]}
    result["times_faster"] = {
        "loop": ratios["loop_cpu_s_per_evaluation"],
        "request": ratios["request_cpu_s"],
        "request_of_35_steps": ratios["request_of_35_steps_cpu_s"],
        "conditioning_encode": ratios["encode_cpu_s"],
    }
    if case.name == COUNTED:
        longer = replace(case, steps=case.steps + 1)
        per_evaluation = {side: gflop_of(run, longer) - gflop_of(run, case) for side, run in sides.items()}
        speed = per_evaluation["cosmorama"] / result["cosmorama"]["loop_cpu_s_per_evaluation"]
        result["arithmetic"] = {
            "gflop_per_evaluation": per_evaluation,
            "times_less": per_evaluation["diffusers"] / per_evaluation["cosmorama"],
            "share_of_matmul_peak": speed / matmul_gflops(case.tokens, WIDTH),
        }
    return result


def peak_memory(case: Case) -> dict[str, Any]:
    """Bytes that one request needs beyond the loaded model at its peak, on either side in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        _apart(_write, case, folder)
        needed = {
            side: _apart(peak, case, folder) for side, peak in (("cosmorama", _peak_ours), ("diffusers", _peak_theirs))
        }
    share = needed["cosmorama"]["request_bytes"] / needed["diffusers"]["request_bytes"]
    return {"case": case.name, "kind": case.kind, **needed, "request_share": share}


def _apart(work: Callable[[Case, str], Any], case: Case, folder: str) -> Any:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, (case, folder))


def _write(case: Case, folder: str) -> None:
    build(case, Path(folder))


def _peak_ours(case: Case, folder: str) -> dict[str, int]:
    from cosmorama.world.registry import load_world

    world = load_world(folder, device="cpu", dtype=case.dtype)
    return _peak_of(case, lambda case: ours(case, world))


def _peak_theirs(case: Case, folder: str) -> dict[str, int]:
    import torch

    from tests.world.checkpoints import load_pipeline

    pipeline = load_pipeline(case.kind, Path(folder), getattr(torch, case.dtype))
    return _peak_of(case, lambda case: theirs(case, pipeline))


def _peak_of(case: Case, request: Callable[[Case], Sample]) -> dict[str, int]:
    """Resident bytes before a request and how much more there were at its peak."""
    import torch

    torch.set_num_threads(case.threads)
    # Weights are mapped from their files, and resident only once they were used.
    request(replace(case, width=128, height=96, frames=5, steps=1))
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
    before = _status("VmRSS")
    request(case)
    return {"loaded_bytes": before, "request_bytes": _status("VmHWM") - before}


def _status(name: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def in_time(cases: Iterable[Case], minutes: float) -> Iterator[Case]:
    """The cases that are expected to end in time, by what the one before took for each of its pixels."""
    begun = last = time.monotonic()
    before: Case | None = None
    for case in cases:
        now = time.monotonic()
        expected = 0.0 if before is None else (now - last) * case.pixels / before.pixels
        if now - begun + expected > 60 * minutes:
            print(f"{case.name} tokens, {case.kind}, {case.threads} thread(s): left out, no time", file=sys.stderr)
            continue
        before, last = case, now
        yield case


def main() -> None:
    """Run the cases that were asked for and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    names = [*dict.fromkeys(case.name for case in CASES), "memory", "all"]
    parser.add_argument("--case", choices=names, nargs="+", default=SMALL, help="only these; default: %(default)s")
    parser.add_argument("--kind", choices=KINDS, nargs="+", default=KINDS, help="only these families; default: all")
    parser.add_argument("--steps", type=int, help="so many denoising steps instead of each case's own")
    parser.add_argument("--minutes", type=float, default=8, help="begin nothing that would take longer; default: 8")
    chosen = parser.parse_args()
    wanted = set(names if "all" in chosen.case else chosen.case)
    asked = (case for case in CASES if case.name in wanted and case.kind in chosen.kind)
    cases = [replace(case, steps=chosen.steps or case.steps) for case in asked]
    results = []
    for case in in_time(cases, chosen.minutes):
        results.append(measure(case))
        if not chosen.json:
            faster = ", ".join(f"{name} {value:.2f}x" for name, value in results[-1]["times_faster"].items())
            if counted := results[-1].get("arithmetic"):
                faster += f", {counted['times_less']:.2f}x less, {counted['share_of_matmul_peak']:.0%} of peak"
            print(f"{case.name} tokens, {case.kind}, {case.threads} thread(s): {faster}", flush=True)
    memory = peak_memory(MEMORY) if "memory" in wanted else None
    if chosen.json:
        machine = {"processor": platform.processor() or platform.machine(), "cores": multiprocessing.cpu_count()}
        print(json.dumps({"machine": machine, "cases": results, "memory": memory}, indent=2))
    elif memory is not None:
        needed, needed_there = (memory[side]["request_bytes"] / 2**20 for side in ("cosmorama", "diffusers"))
        print(f"peak, {memory['case']}: {needed:.0f} and {needed_there:.0f} MiB, {memory['request_share']:.2f}x")


if __name__ == "__main__":
    main()
