"""What the denoiser makes, for those to learn from that come after it: `python -m microcosm.training.made` (resumable).

`stills-<number>.npz` has stills for prompts, uint8 [N, 88, 160, 3], as they are sampled; lines of JSON beside it say
what each is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import repeat
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor

from cosmorama.engine.prepare import PreparedRequest, Preparer
from cosmorama.request import GenerationRequest
from cosmorama.resolve import resolve
from cosmorama.world.microcosm.autoencoder import VideoAutoencoder
from cosmorama.world.microcosm.loader import load_microcosm
from cosmorama.world.microcosm.sampling import CosmosFlowWorld
from microcosm.evaluation.rollouts import finished
from microcosm.scenes.captions import random_caption
from microcosm.scenes.dataset import spread
from microcosm.scenes.shots import caption_of
from microcosm.scenes.simulate import draw_shot
from microcosm.training.autoencoder import to_uint8
from microcosm.training.loop import WEIGHTS

MADE = Path("microcosm-made")
_FIRST_SEED, _STILLS = 20_000_000, 200  # of what stills show, and stills in a file
_STILL_STEPS = 12  # fewer than are served: what is wrong with them is the same
_CANONICAL = 0.4  # share


def stills(world: CosmosFlowWorld, number: int) -> tuple[dict[str, NDArray[np.uint8]], list[dict[str, Any]]]:
    """Stills for prompts, and of each the prompt as it was read and the scene that it says."""
    first, frames, rows = _FIRST_SEED + number * _STILLS, [], []
    rng = np.random.default_rng(first)
    for seed in range(first, first + _STILLS):
        scene = draw_shot(seed).scene
        prompt = caption_of(scene) if rng.random() < _CANONICAL else random_caption(scene, rng)
        request = GenerationRequest(prompt=prompt, frames=1, seed=seed, steps=_STILL_STEPS)
        prepared = Preparer()(resolve(request, world.capabilities), world.capabilities)
        frames.append(to_uint8(next(sampled(world, prepared))[None].transpose(1, 2))[0, 0])
        rows.append({"prompt": prepared.prompt, "scene": asdict(scene)})
    return {"frames": np.stack(frames)}, rows


def sampled(world: CosmosFlowWorld, prepared: PreparedRequest) -> Iterator[Tensor]:
    """Small frames of a request as they are sampled, [t, 3, h, w] of each latent frame."""
    latents = finished(world, prepared).latents
    assert isinstance(world.autoencoder, VideoAutoencoder)
    return world.autoencoder.small_stream(latents, prepared.request.height, prepared.request.width)


def write(number: int, weights: Path, out: Path) -> None:
    """A file of stills, unless it is there."""
    name = f"stills-{number:04d}"
    if (out / f"{name}.npz").exists():
        return
    torch.set_num_threads(1)
    world = load_microcosm(weights)
    assert isinstance(world, CosmosFlowWorld)
    world.still_refiner = None
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        arrays, rows = stills(world, number)
    (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    np.savez(out / f".{name}.npz", **arrays)  # type: ignore[arg-type]
    (out / f".{name}.npz").rename(out / f"{name}.npz")


def main(
    weights: Annotated[Path, typer.Option(help="The denoiser's.")] = WEIGHTS,
    out: Annotated[Path, typer.Option()] = MADE,
    files: Annotated[int, typer.Option(help=f"Files of {_STILLS} stills.")] = 5,
    processes: int = 2,
) -> None:
    """Sample stills."""
    out.mkdir(parents=True, exist_ok=True)
    spread(write, range(files), repeat(weights), repeat(out), name="made", count=files, processes=processes)


if __name__ == "__main__":
    typer.run(main)
