"""Encodes the rendered data once, so that training never touches pixels: `python -m microcosm.latents`.

Every shot is encoded as it is and mirrored. Clips give their whole 121 frames and two windows of 33 frames that start
later, as a continuation does. Of the stills those are taken that show how a clip begins: a clip from text is a still
that the model makes first, and goes on from.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.progress import track
from torch import Tensor

from cosmorama.text.scene_language import Scene
from cosmorama.world.microcosm.autoencoder import VideoAutoencoder
from microcosm.autoencoder import RUNS, to_float
from microcosm.dataset import DATA, Label, read_shards, still_time

WINDOW_FRAMES = 33
LATEST_WINDOW_START = 64
LATEST_STILL_S = 0.35


@dataclass(frozen=True, slots=True)
class Group:
    """Latents of equal shape and frame rate.

    Attributes:
        latents: float16 [N, C, T, H, W].
        scenes: What each shows.
        mirrored: Whether each is the mirror image of its scene.
        fps: Frame rate of all.
    """

    latents: Tensor
    scenes: list[Scene]
    mirrored: list[bool]
    fps: int


def _encode(vae: VideoAutoencoder, frames: np.ndarray) -> Tensor:
    """uint8 [N, T, h, w, 3] to float16 latents, a few clips at a time."""
    parts = np.array_split(frames, min(len(frames), -(-frames.shape[0] * frames.shape[1] // 33)))
    return torch.cat([vae.encode(to_float(np.ascontiguousarray(part))).half() for part in parts])


def _windows(frames: np.ndarray, labels: list[Label]) -> np.ndarray:
    """Two later windows [2 N, 33, h, w, 3] of each clip; where they start follows from its seed."""
    cut = []
    for clip, label in zip(frames, labels, strict=True):
        for start in np.random.default_rng((label.seed, 2)).integers(1, LATEST_WINDOW_START, 2):
            cut.append(clip[start : start + WINDOW_FRAMES])
    return np.stack(cut)


def encode_split(kind: str, data: Path, vae: VideoAutoencoder, out: Path) -> None:
    """Encode the shards of a split that are rendered and not yet encoded, each to `<kind>-<number>.pt`."""
    for number, (arrays, labels) in enumerate(track(read_shards(kind, data), f"encode {kind}")):
        path = out / f"{kind}-{number:04d}.pt"
        if path.exists():
            continue
        groups = []
        if kind == "images":
            labels = [label for label in labels if still_time(label.seed) < LATEST_STILL_S]
        for name in arrays.files:
            frames, rows = arrays[name], [label for label in labels if label.array == name]
            for fps in sorted({label.fps for label in rows}) if kind != "images" else [24]:
                chosen = [label for label in rows if kind == "images" or label.fps == fps]
                stack = frames[[label.row for label in chosen]]
                scenes = [label.scene for label in chosen]
                groups.append(_group(vae, stack, scenes, fps))
                if kind == "clips":
                    later = [scene for scene in scenes for _ in range(2)]
                    groups.append(_group(vae, _windows(stack, chosen), later, fps))
        temporary = path.with_suffix(".tmp")
        torch.save([(group.latents, group.scenes, group.mirrored, group.fps) for group in groups], temporary)
        temporary.rename(path)


def _group(vae: VideoAutoencoder, frames: np.ndarray, scenes: list[Scene], fps: int) -> Group:
    both = torch.cat([_encode(vae, frames), _encode(vae, frames[..., ::-1, :])])
    return Group(both, scenes * 2, [False] * len(scenes) + [True] * len(scenes), fps)


def load_groups(kind: str, folder: Path) -> list[Group]:
    """The encoded groups of a split, those of equal shape and rate joined."""
    joined: dict[tuple[object, ...], list[Group]] = {}
    for path in sorted(folder.glob(f"{kind}-*.pt")):
        for fields in torch.load(path, weights_only=False, mmap=True):
            group = Group(*fields)
            joined.setdefault((*group.latents.shape[1:], group.fps), []).append(group)
    return [
        Group(
            torch.cat([part.latents for part in parts]),
            [scene for part in parts for scene in part.scenes],
            [flag for part in parts for flag in part.mirrored],
            parts[0].fps,
        )
        for parts in joined.values()
    ]


def main(
    kinds: Annotated[list[str], typer.Argument()] = ["images", "clips", "shorts"],  # noqa: B006
    data: Annotated[Path, typer.Option()] = DATA,
    runs: Annotated[Path, typer.Option()] = RUNS,
) -> None:
    """Encode what has been rendered."""
    vae = VideoAutoencoder.from_pretrained(runs / "vae")
    (runs / "latents").mkdir(parents=True, exist_ok=True)
    for kind in kinds:
        encode_split(kind, data, vae, runs / "latents")


if __name__ == "__main__":
    typer.run(main)
