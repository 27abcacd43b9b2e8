"""What the denoiser makes, for those to learn from that come after it: `python -m microcosm.training.made` (resumable).

`stills-<number>.npz` has stills for prompts, uint8 [N, 88, 160, 3], as they are sampled. `<split>-<number>.npz` has of
clips that go on from the first frames of that shard's the frames that are looked at later, uint8 [N, T, 2, 3, h, w] for
each size. Lines of JSON beside them say what each row is.
"""

from __future__ import annotations

import json
import multiprocessing
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from itertools import repeat
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from cosmorama.engine.prepare import PreparedRequest, Preparer
from cosmorama.request import GenerationRequest
from cosmorama.resolve import resolve
from cosmorama.world.microcosm.autoencoder import FRAMES_PER_LATENT, OUTPUT_SCALE, VideoAutoencoder
from cosmorama.world.microcosm.loader import load_microcosm
from cosmorama.world.microcosm.sampling import CosmosFlowWorld
from cosmorama.world.microcosm.tracker import LOOKS
from microcosm.evaluation.rollouts import finished
from microcosm.scenes.captions import random_caption
from microcosm.scenes.dataset import DATA, Label, read_shard, shard_paths
from microcosm.scenes.shots import caption_of
from microcosm.scenes.simulate import Frames, draw_shot
from microcosm.training.autoencoder import to_uint8
from microcosm.training.export import WEIGHTS

MADE = Path("microcosm-made")
_FIRST_SEED, _STILLS = 20_000_000, 200  # of what stills show, and stills in a file
_STILL_STEPS, _CLIP_STEPS = 12, (4, 8)  # fewer than are served: what is wrong with them is the same
_CANONICAL, _ONE_GIVEN, _UNGUIDED, _OTHER_FORMS = 0.4, 0.65, 0.6, 0.7  # shares


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


def clips(world: CosmosFlowWorld, path: Path) -> tuple[dict[str, NDArray[np.uint8]], list[dict[str, Any]]]:
    """What goes on from the first frames of a shard's clips, and of each its row there, and how many were given."""
    arrays, labels = read_shard(path)
    looks, rows, loaded = defaultdict(list), [], {name: arrays[name] for name in arrays.files}
    rng = np.random.default_rng(labels[0].seed)
    for label in labels:
        if label.array == "160x88" or rng.random() < _OTHER_FORMS:
            given = 1 if rng.random() < _ONE_GIVEN else 1 + FRAMES_PER_LATENT
            prepared = _onward(world, loaded[label.array][label.row], label, given, rng)
            pieces = list(sampled(world, prepared))[1:]
            looked = torch.stack([piece[list(LOOKS)] for piece in pieces])
            looks[label.array].append((looked * 127.5 + 128).clamp(0, 255).byte().numpy())
            rows.append({"array": label.array, "row": label.row, "seed": label.seed, "fps": label.fps, "given": given})
    return {name: np.stack(some) for name, some in looks.items()}, rows


def _onward(
    world: CosmosFlowWorld, clip: Frames, label: Label, given: int, rng: np.random.Generator
) -> PreparedRequest:
    count, height, width = clip.shape[:3]
    large = clip[:given].repeat(OUTPUT_SCALE, axis=1).repeat(OUTPUT_SCALE, axis=2)
    request = GenerationRequest(
        prompt=random_caption(label.scene, rng),
        frames=count,
        width=OUTPUT_SCALE * width,
        height=OUTPUT_SCALE * height,
        fps=label.fps,
        seed=label.seed,
        steps=int(rng.integers(*_CLIP_STEPS)),
        guidance_scale=1.0 if rng.random() < _UNGUIDED else 7.0,
    )
    return PreparedRequest(resolve(request, world.capabilities), request.prompt or "", large)


def sampled(world: CosmosFlowWorld, prepared: PreparedRequest) -> Iterator[Tensor]:
    """Small frames of a request as they are sampled, [t, 3, h, w] of each latent frame."""
    latents = finished(world, prepared).latents
    assert isinstance(world.autoencoder, VideoAutoencoder)
    return world.autoencoder.small_stream(latents, prepared.request.height, prepared.request.width)


def write(source: int | Path, weights: Path, out: Path) -> None:
    """A file of stills, by its number, or what goes on from a shard of clips, unless it is there."""
    name = source.stem if isinstance(source, Path) else f"stills-{source:04d}"
    if (out / f"{name}.npz").exists():
        return
    torch.set_num_threads(1)
    world = load_microcosm(weights)
    assert isinstance(world, CosmosFlowWorld)
    world.still_refiner = world.tracker = None
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        arrays, rows = clips(world, source) if isinstance(source, Path) else stills(world, source)
    (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    np.savez(out / f".{name}.npz", **arrays)  # type: ignore[arg-type]
    (out / f".{name}.npz").rename(out / f"{name}.npz")


def main(
    data: Annotated[Path, typer.Option(help="Rendered clips.")] = DATA,
    weights: Annotated[Path, typer.Option(help="The denoiser's.")] = WEIGHTS,
    out: Annotated[Path, typer.Option()] = MADE,
    still_files: Annotated[int, typer.Option(help=f"Files of {_STILLS} stills.")] = 5,
    clip_shards: Annotated[int, typer.Option(help="Shards of short and of long clips to go on from, each.")] = 24,
    processes: int = 2,
) -> None:
    """Sample stills and clips."""
    out.mkdir(parents=True, exist_ok=True)
    shards = [path for split in ("shorts", "clips") for path in shard_paths(split, data)[:clip_shards]]
    sources: list[int | Path] = [*range(still_files), *shards]
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        for _ in track(pool.map(write, sources, repeat(weights), repeat(out)), "made", total=len(sources)):
            pass


if __name__ == "__main__":
    typer.run(main)
