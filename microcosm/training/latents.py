"""Encodes the rendered data once, so that training never touches pixels: `python -m microcosm.training.latents`.

Every shot is encoded as it is and mirrored. Clips give their whole 121 frames and two windows of 33 frames that start
later, as a continuation does. Of the stills of objects those are taken that show how a clip begins: a clip from text is
a still that the model makes first, and goes on from. A drive may begin anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from cosmorama.world.microcosm.autoencoder import VideoAutoencoder
from microcosm.scenes.dataset import CLIP_FRAMES, DATA, SPLITS, Label, read_shard, shard_paths, still_time
from microcosm.scenes.shots import AnyScene
from microcosm.training.autoencoder import RUNS, to_float

KINDS = [kind for kind in SPLITS if kind != "heldout"]
WINDOW_FRAMES = 33
LATEST_WINDOW_START = 64
LATEST_STILL_S = 0.35


Encoded = tuple[Tensor, list[AnyScene], list[bool], int]
"""What a file holds of a group: latents float16 [N, C, T, H, W], and the rest of `Group`."""


class Rows:
    """Latents float16 [N, C, T, H, W] in parts, which stay where they are: mapped from files, processes share them."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts = parts
        self._ends = np.cumsum([len(part) for part in parts])
        self.shape = (int(self._ends[-1]), *parts[0].shape[1:])

    def __getitem__(self, rows: NDArray[np.integer]) -> Tensor:
        """Some rows, as one tensor."""
        places = np.searchsorted(self._ends, rows, side="right")
        return torch.stack(
            [self.parts[part][row - self._ends[part]] for part, row in zip(places.tolist(), rows.tolist(), strict=True)]
        )

    def first(self, frames: int) -> Rows:
        """The first latent frames of each."""
        return Rows([part[:, :, :frames] for part in self.parts])


@dataclass(frozen=True, slots=True)
class Group:
    """Latents of equal shape and frame rate.

    Attributes:
        latents: [N, C, T, H, W].
        scenes: What each shows.
        mirrored: Whether each is the mirror image of its scene.
        fps: Frame rate of all.
    """

    latents: Rows
    scenes: list[AnyScene]
    mirrored: list[bool]
    fps: int


def _encode(vae: VideoAutoencoder, frames: np.ndarray) -> Tensor:
    """uint8 [N, T, h, w, 3] to float16 latents, a few clips at a time."""
    parts = np.array_split(frames, min(len(frames), -(-frames.shape[0] * frames.shape[1] // 33)))
    return torch.cat([vae.encode_small(to_float(np.ascontiguousarray(part))).half() for part in parts])


def _windows(frames: np.ndarray, labels: list[Label]) -> np.ndarray:
    """Two later windows [2 N, 33, h, w, 3] of each clip; where they start follows from its seed."""
    cut = []
    for clip, label in zip(frames, labels, strict=True):
        for start in np.random.default_rng((label.seed, 2)).integers(1, LATEST_WINDOW_START, 2):
            cut.append(clip[start : start + WINDOW_FRAMES])
    return np.stack(cut)


def encode_split(kind: str, data: Path, vae: VideoAutoencoder, out: Path) -> None:
    """Encode the shards of a split that are rendered and not yet encoded, each to a file of its name."""
    stills, whole = (SPLITS[kind].frames == frames for frames in (1, CLIP_FRAMES))
    for shard in track(shard_paths(kind, data), f"encode {kind}"):
        path = out / f"{shard.stem}.pt"
        if path.exists():
            continue
        arrays, labels = read_shard(shard)
        groups = []
        if stills and SPLITS[kind].world == "objects":
            labels = [label for label in labels if still_time(label.seed) < LATEST_STILL_S]
        for name in arrays.files:
            frames, rows = arrays[name], [label for label in labels if label.array == name]
            for fps in [24] if stills else sorted({label.fps for label in rows}):
                chosen = [label for label in rows if stills or label.fps == fps]
                stack = frames[[label.row for label in chosen]]
                scenes = [label.scene for label in chosen]
                groups.append(_group(vae, stack, scenes, fps))
                if whole:
                    later = [scene for scene in scenes for _ in range(2)]
                    groups.append(_group(vae, _windows(stack, chosen), later, fps))
        temporary = path.with_suffix(".tmp")
        torch.save(groups, temporary)
        temporary.rename(path)


def _group(vae: VideoAutoencoder, frames: np.ndarray, scenes: list[AnyScene], fps: int) -> Encoded:
    both = torch.cat([_encode(vae, frames), _encode(vae, frames[..., ::-1, :])])
    return both, scenes * 2, [False] * len(scenes) + [True] * len(scenes), fps


def load_groups(kind: str, folder: Path) -> list[Group]:
    """The encoded groups of a split, those of equal shape and rate joined."""
    joined: dict[tuple[object, ...], list[Encoded]] = {}
    for path in sorted(folder.glob(f"{kind}-*.pt")):
        for encoded in torch.load(path, weights_only=False, mmap=True):
            latents, _, _, fps = encoded
            joined.setdefault((*latents.shape[1:], fps), []).append(encoded)
    groups = []
    for encoded in joined.values():
        latents, scenes, mirrored, rates = zip(*encoded, strict=True)
        groups.append(Group(Rows(latents), list(chain(*scenes)), list(chain(*mirrored)), rates[0]))
    return groups


def main(
    kinds: Annotated[list[str], typer.Argument()] = KINDS,
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
