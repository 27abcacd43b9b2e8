"""What the U-Net trains on: stills, and windows of 33 frames, drawn from the rendered shards as they lie on the disk.

Nothing is encoded beforehand: a window may begin at any frame of a clip, as every stretch of a long clip does.
"""

from __future__ import annotations

import zipfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from cosmorama.text.language import mirror_caption
from cosmorama.world.microcosm.autoencoder import FRAMES_PER_LATENT
from microcosm.scenes.captions import empty_prompt, random_caption
from microcosm.scenes.dataset import SPLITS, Label, read_labels, shard_paths, still_time
from microcosm.scenes.shots import World
from microcosm.scenes.simulate import Frames
from microcosm.training.autoencoder import to_float

EMPTY_SHARE = 0.12
WINDOW_LATENTS = 5
SHORT_SHARE = 0.1
GIVEN_SHARES = (0.0, 0.45, 0.38, 0.1, 0.07)
"""How often 0, 1, 2, ... latent frames of a window are given. More than two are where a long clip ends."""
WINDOW_FRAMES = 1 + FRAMES_PER_LATENT * (WINDOW_LATENTS - 1)


@dataclass(frozen=True, slots=True)
class Shots:
    """Rendered shots of equal size, all stills or all clips."""

    world: World
    frames: Frames
    labels: list[Label]

    @property
    def are_stills(self) -> bool:
        """Whether each is one picture."""
        return bool(self.frames.shape[1] == 1)


@dataclass(slots=True)
class Windows:
    """Inputs of one training step.

    Attributes:
        frames: [B, 3, 1 or 33, h, w] in [-1, 1].
        prompts: What they show.
        seconds: When each latent frame ends, [B, T]; of a still, how long after the start of the action it is.
        given: How many latent frames are given, [B].
    """

    frames: Tensor
    prompts: list[str]
    seconds: Tensor
    given: Tensor
    world: World

    def to(self, device: str) -> Windows:
        """The same on a device."""
        return replace(
            self, frames=self.frames.to(device), seconds=self.seconds.to(device), given=self.given.to(device)
        )


@dataclass(frozen=True, slots=True)
class Mixture:
    """How a stage spends its time: shares of stills and windows, world by world, and how many make a batch."""

    stills: dict[World, float]
    windows: dict[World, float] = field(default_factory=dict)
    still_batch: int = 16
    window_batch: int = 3

    def enlarged(self, times: int) -> Mixture:
        """The same shares in larger batches."""
        return replace(self, still_batch=times * self.still_batch, window_batch=times * self.window_batch)


MIXTURES = {
    "stills": Mixture({"objects": 0.6, "corridor": 0.4}),
    "windows": Mixture({"objects": 0.28, "corridor": 0.14}, {"objects": 0.36, "corridor": 0.22}),
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


class Sampler(IterableDataset[Windows]):
    """Draws batches of equal shape."""

    def __init__(self, shots: list[Shots], mixture: Mixture, seed: int, rank: int) -> None:
        self.mixture = mixture
        self.groups: dict[tuple[World, bool, tuple[int, ...]], list[Shots]] = defaultdict(list)
        for some in shots:
            self.groups[some.world, some.are_stills, some.frames.shape[2:]].append(some)
        rows: dict[tuple[World, bool], int] = defaultdict(int)
        for (world, stills, _), group in self.groups.items():
            rows[world, stills] += sum(len(some.labels) for some in group)
        weights = []
        for (world, stills, _), group in self.groups.items():
            share = (mixture.stills if stills else mixture.windows).get(world, 0.0)
            # Shares are of the time, which goes by latent frames.
            cost = mixture.still_batch if stills else mixture.window_batch * WINDOW_LATENTS
            weights.append(share / cost * sum(len(some.labels) for some in group) / rows[world, stills])
        self._keys, self._weights = list(self.groups), np.array(weights) / sum(weights)
        self._seed = seed
        # Workers with one seed draw batches of the same shape, so that none waits long for another.
        self.rng, self._shapes = np.random.default_rng([seed, rank]), np.random.default_rng(seed)

    def __iter__(self) -> Iterator[Windows]:
        """Batches without end; loading processes draw other ones each."""
        if (loader := get_worker_info()) is not None:
            self.rng = np.random.default_rng([self._seed, loader.id, 1])
            self._shapes = np.random.default_rng([self._seed, loader.id, 2])
        while True:
            yield self.draw()

    def stream(self, loaders: int) -> Iterator[Windows]:
        """Batches without end, drawn ahead by `loaders` processes of their own, or here."""
        if not loaders:
            return iter(self)
        return iter(DataLoader(self, batch_size=None, num_workers=loaders, prefetch_factor=4))

    def draw(self) -> Windows:
        """The next batch."""
        world, stills, _ = key = self._keys[int(self._shapes.choice(len(self._keys), p=self._weights))]
        group, rng = self.groups[key], self.rng
        counts = np.array([len(some.labels) for some in group])
        count = self.mixture.still_batch if stills else self.mixture.window_batch
        frames, prompts, seconds = [], [], []
        for which in rng.choice(len(group), size=count, p=counts / counts.sum()):
            shots = group[int(which)]
            row = int(rng.integers(len(shots.labels)))
            label, clip = shots.labels[row], shots.frames[shots.labels[row].row]
            if stills:
                part, ends = clip, [still_time(label.seed)]
            else:
                start = int(rng.integers(len(clip) - WINDOW_FRAMES + 1))
                part = clip[start : start + WINDOW_FRAMES]
                ends = [index * FRAMES_PER_LATENT / label.fps for index in range(WINDOW_LATENTS)]
            mirrored = bool(rng.random() < 0.5)
            frames.append(part[:, :, ::-1] if mirrored else part)
            seconds.append(ends)
            caption = random_caption(label.scene, rng)
            caption = mirror_caption(caption) if mirrored else caption
            prompts.append(empty_prompt(rng) if rng.random() < EMPTY_SHARE else caption)
        given = np.zeros(count, int) if stills else rng.choice(len(GIVEN_SHARES), size=count, p=GIVEN_SHARES)
        pixels = to_float(np.ascontiguousarray(np.stack(frames)))
        latents = 1 if stills else WINDOW_LATENTS
        if not stills and self._shapes.random() < SHORT_SHARE:  # as the last of a clip that is no longer
            latents = int(self._shapes.integers(2, WINDOW_LATENTS))
        return Windows(
            pixels[:, :, : 1 + FRAMES_PER_LATENT * (latents - 1)],
            prompts,
            torch.tensor(seconds)[:, :latents],
            torch.from_numpy(given.clip(max=latents - 1)),
            world,
        )
