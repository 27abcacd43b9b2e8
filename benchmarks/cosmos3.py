"""Cosmos3 stills, Cosmorama against diffusers: CPU time of a denoising step with guidance, and of what comes before.

Both sides run the same random checkpoint in turns in one process, at the token counts of real stills and with a prompt
of realistic length. The transformer has Cosmos3's architecture and head size at a fraction of its width and depth, so
the ratios carry over as far as time goes with the number of tokens; absolute times do not.

    python -m benchmarks.cosmos3 --json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

SIZES = {"256 px": (256, 256), "480p": (832, 480)}
BARS = {"256 px": 4.0, "480p": 1.8}
"""How many times less CPU time a step must take than diffusers'."""
SENTENCE = "A robot arm picks up a cup and puts it on a shelf. "
WIDE: dict[str, Any] = {
    "head_dim": 128,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_attention_heads": 4,
    "num_hidden_layers": 6,
    "num_key_value_heads": 1,
    "rope_axes_dim": (24, 20, 20),
}


def measure(size: str, *, steps: int, rounds: int, prompt_tokens: int) -> dict[str, Any]:
    """Both sides on one size.

    Args:
        size: One of `SIZES`.
        steps: Denoising steps of a run.
        rounds: Runs of each side; medians are reported.
        prompt_tokens: Length of the prompt and of the negative prompt; the test tokenizer's tokens are bytes.
    """
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        sides = _Sides(Path(folder), size, steps, (SENTENCE * prompt_tokens)[:prompt_tokens])
        runs = [(sides.diffusers(), sides.ours()) for _ in range(rounds)]
    theirs, ours = ([run[side] for run in runs] for side in (0, 1))
    step = [statistics.median(seconds for run in side for seconds in run["steps"]) for side in (theirs, ours)]
    before = [statistics.median(run["before"] for run in side) for side in (theirs, ours)]
    difference = (ours[0]["latents"] - theirs[0]["latents"]).abs().max() / theirs[0]["latents"].abs().max()
    return {
        "size": size,
        "text_tokens": sides.text_tokens,
        "image_tokens": sides.image_tokens,
        "diffusers_step_s": round(step[0], 4),
        "cosmorama_step_s": round(step[1], 4),
        "step_ratio": round(step[0] / step[1], 2),
        "diffusers_before_s": round(before[0], 4),
        "cosmorama_before_s": round(before[1], 4),
        "request_ratio_50_steps": round((before[0] + 50 * step[0]) / (before[1] + 50 * step[1]), 2),
        "relative_difference": float(difference),
        "bar": BARS[size],
        "passed": step[0] / step[1] >= BARS[size],
    }


class _Sides:
    def __init__(self, folder: Path, size: str, steps: int, prompt: str) -> None:
        from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import Cosmos3OmniPipeline

        from cosmorama.request import GenerationRequest
        from cosmorama.resolve import resolve
        from cosmorama.world.cosmos3.prompt import ClipFacts, chat, described
        from cosmorama.world.registry import load_world
        from tests.world.cosmos3_checkpoints import KARRAS, save_cosmos3

        save_cosmos3(folder, scheduler=KARRAS, **WIDE)
        self._pipeline: Any = Cosmos3OmniPipeline.from_pretrained(folder, safety_checker=None)
        self._pipeline.set_progress_bar_config(disable=True)
        self._world = cast(Any, load_world(str(folder), device="cpu"))
        width, height = SIZES[size]
        request = GenerationRequest(
            prompt=prompt,
            negative_prompt=prompt[::-1],
            prompt_upsampling=False,
            width=width,
            height=height,
            frames=1,
            steps=steps,
            guidance_scale=4.0,
            seed=1,
        )
        self._request = resolve(request, self._world.capabilities)
        self.image_tokens = -(-width // 32) * -(-height // 32)
        clip = ClipFacts(width, height, 1, self._request.fps)
        text = chat(self._world.tokenizer, described(prompt, clip), clip.kind, system_prompt=True)
        self.text_tokens = len(self._world.tokens(text))

    def diffusers(self) -> dict[str, Any]:
        import torch

        request = self._request
        starts: list[float] = []
        ends: list[float] = []

        def step_ended(*arguments: Any) -> Any:
            ends.append(time.process_time())
            return arguments[-1]

        hook = self._pipeline.transformer.register_forward_pre_hook(lambda *_: starts.append(time.process_time()))
        start = time.process_time()
        made = self._pipeline(
            request.prompt,
            negative_prompt=request.negative_prompt,
            num_frames=1,
            height=request.height,
            width=request.width,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance_scale,
            generator=torch.Generator().manual_seed(1),
            output_type="latent",
            callback_on_step_end=step_ended,
        )
        hook.remove()
        times = [starts[0], *ends]
        return {"before": starts[0] - start, "steps": _gaps(times), "latents": made.video}

    def ours(self) -> dict[str, Any]:
        from cosmorama.engine.prepare import PreparedRequest
        from cosmorama.engine.rollout import Rollout

        start = time.process_time()
        rollout = Rollout(self._world, PreparedRequest(self._request, self._request.prompt or "", None))
        times = []
        while not rollout.done:
            rollout.advance()
            times.append(time.process_time())
        return {"before": times[0] - start, "steps": _gaps(times), "latents": rollout.latents}


def _gaps(times: list[float]) -> list[float]:
    return [after - before for before, after in pairwise(times)]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--size", choices=list(SIZES), action="append", help="default: all")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt-tokens", type=int, default=200, help="beside about 140 of chat and facts")
    options = parser.parse_args()
    results = [
        measure(size, steps=options.steps, rounds=options.rounds, prompt_tokens=options.prompt_tokens)
        for size in options.size or SIZES
    ]
    if options.json:
        print(json.dumps({"machine": platform.processor() or platform.machine(), "threads": 1, "results": results}))
        return
    for result in results:
        print(
            f"{result['size']}: {result['image_tokens']} image and {result['text_tokens']} text tokens, a step takes "
            f"{result['cosmorama_step_s']} s instead of {result['diffusers_step_s']} s: {result['step_ratio']}x "
            f"(bar {result['bar']}x)"
        )


if __name__ == "__main__":
    main()
