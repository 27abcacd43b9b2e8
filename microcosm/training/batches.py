"""What is trained on: stills and windows of clips, drawn from the rendered shards as they lie on the disk.

Nothing is encoded beforehand: the tokenizer is linear, and a window may begin at any frame of a clip, as every stretch
of a long clip does.
"""

from __future__ import annotations

import zipfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from cosmorama.text.language import mirror_caption
from cosmorama.world.microcosm.autoencoder import FRAMES_PER_LATENT
from microcosm.scenes.captions import empty_prompt, random_caption
from microcosm.scenes.dataset import SPLITS, Label, read_labels, shard_paths, still_time
from microcosm.scenes.shots import World
from microcosm.scenes.simulate import Frames
from microcosm.training.autoencoder import to_float
from microcosm.training.auxiliary import UNKNOWN, scene_classes

EMPTY_SHARE = 0.12
_BATCH = {1: 24, 5: 6, 16: 2}  # shots in a batch, by latent frames of each
_GIVEN = (0.55, 0.45)  # shares of clips of which one latent frame is given, or two
_LATEST_S = 0.35  # stills of objects are no later, as those are that a clip begins with


@dataclass(frozen=True, slots=True)
class Shots:
    """Rendered shots of equal size, all stills or all clips of one length."""

    world: World
    frames: Frames
    labels: list[Label]


@dataclass(slots=True)
class Batch:
    """Inputs of one training step.

    Attributes:
        frames: [B, 3, 1 + 8 (T - 1), h, w] in [-1, 1].
        prompts: What they show.
        given: How many latent frames are given, [B].
        world: Which world all show.
        fps: The rate of all.
        targets: What the prompts mean, [B, attributes]; see `auxiliary.scene_classes`.
    """

    frames: Tensor
    prompts: list[str]
    given: Tensor
    world: World
    fps: int
    targets: Tensor

    @property
    def latent_frames(self) -> int:
        """T."""
        return 1 + (self.frames.shape[2] - 1) // FRAMES_PER_LATENT

    def to(self, device: str) -> Batch:
        """The same on a device."""
        moved = {name: getattr(self, name).to(device) for name in ("frames", "given", "targets")}
        return replace(self, **moved)


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of the training, and how it spends its time.

    Attributes:
        shares: Of the time, by world and number of latent frames, of which 1 are stills.
        minutes: How long it is.
        decay_minutes: Of these, at the end, with a falling learning rate.
    """

    shares: dict[World, dict[int, float]]
    minutes: int
    decay_minutes: int = 3


STAGES = {
    "images": Stage({"objects": {1: 1.0}}, 40),
    "clips": Stage({"objects": {1: 0.25, 5: 0.75}}, 40),
    "full": Stage({"objects": {1: 0.4, 5: 0.35, 16: 0.25}}, 80),
    "onward": Stage({"objects": {1: 0.15, 5: 0.7, 16: 0.15}}, 160, 24),
    # Of objects the network knows by then how stills look.
    "both": Stage({"objects": {1: 0.07, 5: 0.35, 16: 0.08}, "corridor": {1: 0.2, 5: 0.22, 16: 0.08}}, 104, 42),
}


def mapped(path: Path) -> dict[str, Frames]:
    """The arrays of an uncompressed npz, mapped from the file: processes share one copy of what they read."""
    arrays: dict[str, Frames] = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for info in archive.infolist():
            file.seek(info.header_offset + 26)
            name_length, extra_length = (int.from_bytes(file.read(2), "little") for _ in range(2))
            file.seek(info.header_offset + 30 + name_length + extra_length)
            np.lib.format.read_magic(file)
            shape, _, kind = np.lib.format.read_array_header_1_0(file)
            arrays[info.filename.removesuffix(".npy")] = np.memmap(path, kind, "r", file.tell(), shape)
    return arrays


def shots_by_size(kind: str, folder: Path) -> dict[str, list[tuple[Frames, Label]]]:
    """The shots of a split by the size of their frames, "160x88" and so on: frames [T, h, w, 3] and what they are."""
    found: dict[str, list[tuple[Frames, Label]]] = defaultdict(list)
    for path in shard_paths(kind, folder):
        arrays = mapped(path)
        for label in read_labels(path):
            found[label.array].append((arrays[label.array][label.row], label))
    return found


def read_shots(folder: Path) -> list[Shots]:
    """All rendered shots, shard by shard and size by size."""
    found = []
    for kind, split in SPLITS.items():
        for path in shard_paths(kind, folder) if kind != "heldout" else []:
            by_size: dict[str, list[Label]] = defaultdict(list)
            for label in read_labels(path):
                by_size[label.array].append(label)
            found += [Shots(split.world, frames, by_size[name]) for name, frames in mapped(path).items()]
    return found


@dataclass(frozen=True, slots=True)
class _Group:
    """Where batches of one world, length, size and rate are drawn from: shots, and which of their labels."""

    world: World
    length: int
    rows: list[tuple[Shots, Label]]


class Sampler(IterableDataset[Batch]):
    """Draws batches of equal shape and rate."""

    def __init__(self, shots: list[Shots], stage: Stage, seed: int, rank: int, times: int = 1) -> None:
        self._seed, self._times = seed, times
        groups: dict[tuple[object, ...], _Group] = {}
        totals: dict[tuple[World, int], int] = defaultdict(int)
        for some in shots:
            for length in stage.shares.get(some.world, {}):
                if (some.frames.shape[1] == 1) != (length == 1) or some.frames.shape[1] < _frames(length):
                    continue
                for label in some.labels:
                    if length == 1 and some.world == "objects" and still_time(label.seed) > _LATEST_S:
                        continue
                    key = (some.world, length, some.frames.shape[2:], label.fps if length > 1 else 24)
                    groups.setdefault(key, _Group(some.world, length, [])).rows.append((some, label))
                    totals[some.world, length] += 1
        self.groups = list(groups.values())
        # Shares are of the time, which goes by latent frames.
        weights = [
            stage.shares[one.world][one.length]
            / (one.length * _BATCH[one.length])
            * (len(one.rows) / totals[one.world, one.length])
            for one in self.groups
        ]
        self._weights: NDArray[np.float64] = np.array(weights) / sum(weights)
        # Workers with one seed draw batches of the same shape, so that none waits long for another.
        self.rng, self._shapes = np.random.default_rng([seed, rank]), np.random.default_rng(seed)

    def __iter__(self) -> Iterator[Batch]:
        """Batches without end; loading processes draw other ones each."""
        if (loader := get_worker_info()) is not None:
            self.rng = np.random.default_rng([self._seed, loader.id, 1])
            self._shapes = np.random.default_rng([self._seed, loader.id, 2])
        while True:
            yield self.draw()

    def stream(self, loaders: int) -> Iterator[Batch]:
        """Batches without end, drawn ahead by `loaders` processes of their own, or here."""
        if not loaders:
            return iter(self)
        return iter(DataLoader(self, batch_size=None, num_workers=loaders, prefetch_factor=4))

    def draw(self) -> Batch:
        """The next batch."""
        group = self.groups[int(self._shapes.choice(len(self.groups), p=self._weights))]
        rng, length, count = self.rng, group.length, self._times * _BATCH[group.length]
        frames, prompts, targets = [], [], []
        for row in rng.integers(len(group.rows), size=count):
            shots, label = group.rows[int(row)]
            clip = shots.frames[label.row]
            start = int(rng.integers(len(clip) - _frames(length) + 1))
            part, mirrored = clip[start : start + _frames(length)], bool(rng.random() < 0.5)
            frames.append(part[:, :, ::-1] if mirrored else part)
            caption, meant = random_caption(label.scene, rng), scene_classes(label.scene, mirrored)
            if rng.random() < EMPTY_SHARE:
                caption, meant = empty_prompt(rng), [UNKNOWN] * len(meant)
            prompts.append(mirror_caption(caption) if mirrored else caption)
            targets.append(meant)
        given = 1 + rng.choice(len(_GIVEN), size=count, p=_GIVEN)
        return Batch(
            to_float(np.ascontiguousarray(np.stack(frames))),
            prompts,
            torch.from_numpy(given.clip(max=length - 1)),
            group.world,
            group.rows[0][1].fps if length > 1 else 24,
            torch.tensor(targets),
        )


def _frames(length: int) -> int:
    return 1 + FRAMES_PER_LATENT * (length - 1)
