"""Uncurated sheets and figures of a weights folder on held-out scenes: `python -m microcosm.evaluate OUT [--json]`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from cosmorama.text.scene_language import Scene, canonical_caption
from microcosm.autoencoder import psnr, to_float
from microcosm.captions import random_caption
from microcosm.dataset import SPLITS
from microcosm.export import WEIGHTS
from microcosm.probe import floor_kind, object_color
from microcosm.sample import Model
from microcosm.simulate import SIZES, Frames, Shot, draw_shot, render

WIDTH, HEIGHT = SIZES[0]
LATENT_SIZE = (12, 20)
CLIP_FRAMES = 33
MOVING = 0.08  # a pixel that changes by more than this (of a range of 2) somewhere in the clip is a moving one


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A shot whose seed no training split contains, as a clip of 33 frames at 24 fps."""

    shot: Shot
    frames: Frames

    @property
    def caption(self) -> str:
        """Its canonical caption."""
        return canonical_caption(self.shot.scene)


def held_out(count: int, keep: Callable[[Scene], bool] = lambda scene: True) -> list[HeldOut]:
    """The first held-out 16:9 shots at 24 fps whose scene `keep` takes."""
    found: list[HeldOut] = []
    seed = SPLITS["heldout"].first_seed
    while len(found) < count:
        shot = draw_shot(seed)
        seed += 1
        if shot.size_px == SIZES[0] and shot.fps == 24 and keep(shot.scene):
            found.append(HeldOut(shot, render(shot, list(np.arange(CLIP_FRAMES) / 24))))
    return found


def moving_pixels(frames: Tensor) -> Tensor:
    """Bool [B, 1, 1, h, w]: pixels of clips [B, 3, T, h, w] that change during the clip."""
    return (frames.amax(2) - frames.amin(2)).amax(1)[:, None, None] > MOVING


def compare(frames: Tensor, other: Tensor) -> dict[str, float]:
    """PSNR in dB of two stacks of clips [B, 3, T, h, w]: over all pixels and over the moving ones of the first."""
    moving = moving_pixels(frames).expand_as(frames)
    return {"all": round(psnr(frames, other), 2), "moving": round(psnr(frames[moving], other[moving]), 2)}


def autoencoder_figures(model: Model, clips: Sequence[HeldOut]) -> dict[str, float]:
    """What a clip loses by being encoded and decoded."""
    frames = to_float(np.stack([clip.frames for clip in clips]))
    return compare(frames, _reconstruct(model, frames))


def _reconstruct(model: Model, frames: Tensor) -> Tensor:
    with torch.inference_mode():
        decoded = [model.vae.decode_small(model.vae.encode(one[None]), HEIGHT, WIDTH) for one in frames]
    return torch.cat(decoded)[:, :, 7:].clamp(-1, 1)


def adherence(model: Model, count: int, weight: float, steps: int) -> tuple[dict[str, Any], Frames]:
    """How often a still shows the named object color and floor, between its bounds; and the sheet of stills."""
    shots = held_out(count, lambda scene: len(scene.objects) == 1)
    rng = np.random.default_rng(0)
    # Half canonical, half other wordings.
    prompts = [clip.caption if i % 2 else _naming(clip.shot.scene, rng) for i, clip in enumerate(shots)]
    made = []
    for start in track(range(0, count, 16), "stills"):
        part = prompts[start : start + 16]
        made.append(model.sample(part, (1, *LATENT_SIZE), weight=weight, steps=steps, seed=start))
    stills = model.frames(torch.cat(made), WIDTH, HEIGHT)[:, 0]
    real = np.stack([clip.frames[12] for clip in shots])
    scenes = [clip.shot.scene for clip in shots]
    figures = {
        "model": _hits(stills, scenes),
        "real_frames": _hits(real, scenes),
        "shuffled_prompts": _hits(stills, [scenes[i] for i in np.random.default_rng(1).permutation(count)]),
        "prompts": count,
        "guidance_weight": weight,
    }
    return figures, _grid(stills, 8)


def _naming(scene: Scene, rng: np.random.Generator) -> str:
    """A wording that names the floor (terse captions may leave it out)."""
    while True:
        caption = random_caption(scene, rng)
        if " on " in caption:
            return caption


def _hits(frames: Frames, scenes: Sequence[Scene]) -> dict[str, float]:
    colors = [object_color(frame) == scene.objects[0].color for frame, scene in zip(frames, scenes, strict=True)]
    floors = [floor_kind(frame) == scene.floor for frame, scene in zip(frames, scenes, strict=True)]
    return {"object_color": round(float(np.mean(colors)), 3), "floor": round(float(np.mean(floors)), 3)}


def continuation(
    model: Model, clips: Sequence[HeldOut], given: int, weight: float, steps: int
) -> tuple[dict[str, Any], Frames]:
    """Clips continued from `given` latent frames, between copying the last given frame and the ceiling."""
    frames = to_float(np.stack([clip.frames for clip in clips]))
    known = 1 + 8 * (given - 1)
    latents = torch.cat([model.vae.encode(one[None]) for one in frames])
    made = [
        model.sample(
            [clip.caption for clip in clips[start : start + 4]],
            (5, *LATENT_SIZE),
            given=latents[start : start + 4, :, :given],
            weight=weight,
            steps=steps,
            seed=start,
        )
        for start in track(range(0, len(clips), 4), f"given {known}")
    ]
    shown = model.frames(torch.cat(made), WIDTH, HEIGHT)
    predicted = to_float(shown)
    rest = frames[:, :, known:]
    still = frames[:, :, known - 1 : known].expand_as(rest)
    figures = {
        "model": compare(rest, predicted[:, :, known:]),
        "copy_last_frame": compare(rest, still),
        "autoencoder_ceiling": compare(rest, _reconstruct(model, frames)[:, :, known:]),
        "first_frame_psnr": round(psnr(frames[:, :, :1], predicted[:, :, :1]), 2),
        "clips": len(clips),
    }
    rows = [row for clip, one in zip(clips[:4], shown, strict=False) for row in (_strip(clip.frames), _strip(one))]
    return figures, np.concatenate(rows)


def text_clips(model: Model, clips: Sequence[HeldOut], length: int, weight: float, steps: int) -> Frames:
    """One strip of eight frames per clip of `length` latent frames made from its caption alone."""
    rows = []
    for start in track(range(0, len(clips), 4), "text2world"):
        prompts = [clip.caption for clip in clips[start : start + 4]]
        latents = model.sample(prompts, (length, *LATENT_SIZE), weight=weight, steps=steps, seed=start)
        rows += [_strip(one) for one in model.frames(latents, WIDTH, HEIGHT)]
    return np.concatenate(rows)


def _strip(frames: NDArray[np.uint8]) -> Frames:
    return np.concatenate(list(frames[:: len(frames) // 8][:8]), axis=1)


def _grid(images: Frames, columns: int) -> Frames:
    rows = [images[start : start + columns] for start in range(0, len(images) // columns * columns, columns)]
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows])


def main(
    out: Annotated[Path, typer.Argument(help="Folder for the sheets and figures.json.")],
    weights: Annotated[Path, typer.Option()] = WEIGHTS,
    stills: Annotated[int, typer.Option(help="Held-out prompts for adherence.")] = 64,
    clips: Annotated[int, typer.Option(help="Held-out clips for continuation.")] = 8,
    steps: int = 20,
    weight: Annotated[float, typer.Option(help="Guidance weight; 0 takes the API default's.")] = 0.0,
    threads: int = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Evaluate a weights folder."""
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    model = Model.load(weights)
    weight = weight or dict(map(tuple, model.facts["guidance_map"]))[7.0]
    shots = held_out(clips)
    figures: dict[str, Any] = {"training": model.facts["training"], "autoencoder": autoencoder_figures(model, shots)}
    figures["adherence"], sheet = adherence(model, stills, weight, steps)
    Image.fromarray(sheet).save(out / "text2world_stills.png")
    Image.fromarray(text_clips(model, shots, 5, weight, steps)).save(out / "text2world_33_frames.png")
    Image.fromarray(text_clips(model, shots[:4], 16, weight, steps)).save(out / "text2world_121_frames.png")
    for name, given in (("image2world", 1), ("video2world", 2)):
        figures[name], sheet = continuation(model, shots, given, weight, steps)
        Image.fromarray(sheet).save(out / f"{name}.png")
    captions = "".join(f"{clip.caption}\n" for clip in shots)
    (out / "clip_prompts.txt").write_text(captions)
    (out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    if as_json:
        print(json.dumps(figures))
    else:
        Console().print(figures)


if __name__ == "__main__":
    typer.run(main)
