"""Renders the training and held-out data: `python -m microcosm.scenes.dataset` (resumable; finished shards are kept).

A shard is `<kind>-<number>.npz` with one uint8 array [N, T, height, width, 3] per frame size (named "160x88" and so
on) and `<kind>-<number>.jsonl` with one label per shot. Everything follows from the seeds in `SPLITS`.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import typer
from numpy.typing import NDArray
from rich.progress import track

from microcosm.scenes.shots import DRAW, AnyScene, AnyShot, World, caption_of, frames_of, scene_from_json

CLIP_FRAMES = 121
DATA = Path("microcosm-data")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Split:
    """Seeds from `first_seed` on; `frames` per shot: 1 at a random time, or a clip from the start."""

    first_seed: int
    shards: int
    shots_per_shard: int
    frames: int
    world: World = "objects"


SPLITS: dict[str, Split] = {
    "images": Split(1_000_000, 34, 1000, 1),
    "clips": Split(2_000_000, 10, 32, CLIP_FRAMES),
    "shorts": Split(3_000_000, 96, 64, 33),
    "starts": Split(10_000_000, 12, 1000, 1),
    "corridor-images": Split(5_000_000, 8, 1000, 1, "corridor"),
    "corridor-clips": Split(6_000_000, 4, 32, CLIP_FRAMES, "corridor"),
    "corridor-shorts": Split(7_000_000, 32, 64, 33, "corridor"),
    "drives": Split(8_000_000, 48, 24, 49, "steered"),
    "heldout": Split(9_000_000, 1, 32, CLIP_FRAMES),
}


@dataclass(frozen=True, slots=True)
class Label:
    """What is known of one stored shot: `array` and `row` say where its frames are within the shard."""

    seed: int
    array: str
    row: int
    fps: int
    scene: AnyScene
    caption: str


def frame_times(shot: AnyShot, frames: int) -> NDArray[np.float64]:
    """Seconds at which a shot is rendered: a clip at its rate, or one moment of its beginning."""
    return np.arange(frames) / shot.fps if frames > 1 else np.array([still_time(shot.seed)])


def still_time(seed: int) -> float:
    """Seconds at which a still shows its shot."""
    latest = 0.35 if seed >= SPLITS["starts"].first_seed else 2.6
    return float(latest * np.random.default_rng((seed, 1)).random() ** 1.5)


def write_shard(kind: str, number: int, folder: Path) -> None:
    """Render shard `number` of split `kind`, unless it is there."""
    path, split = folder / f"{kind}-{number:04d}.npz", SPLITS[kind]
    if path.exists():
        return
    first = split.first_seed + number * split.shots_per_shard
    arrays: dict[str, list[NDArray[np.uint8]]] = defaultdict(list)
    labels = []
    for seed in range(first, first + split.shots_per_shard):
        shot = DRAW[split.world](seed)
        name = f"{shot.size_px[0]}x{shot.size_px[1]}"
        labels.append(Label(seed, name, len(arrays[name]), shot.fps, shot.scene, caption_of(shot.scene)))
        arrays[name].append(frames_of(shot, list(frame_times(shot, split.frames))))
    path.with_suffix(".jsonl").write_text("".join(json.dumps(asdict(label)) + "\n" for label in labels))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.npz")
    np.savez(temporary, **{name: np.stack(frames) for name, frames in arrays.items()})  # type: ignore[arg-type]
    temporary.rename(path)


def shard_paths(kind: str, folder: Path) -> list[Path]:
    """The finished shards of a split, in order."""
    return sorted(folder.glob(f"{kind}-*.npz"))


def read_shard(path: Path) -> tuple[Any, list[Label]]:
    """A shard's arrays by size name (loaded when asked for), and labels."""
    return np.load(path), read_labels(path)


def read_labels(path: Path) -> list[Label]:
    """The labels of a shard."""
    rows = map(json.loads, path.with_suffix(".jsonl").read_text().splitlines())
    return [Label(**{**row, "scene": scene_from_json(row["scene"])}) for row in rows]


def read_shards(kind: str, folder: Path) -> Iterator[tuple[Any, list[Label]]]:
    """The finished shards of a split, one after the other."""
    return map(read_shard, shard_paths(kind, folder))


def spread(
    work: Callable[..., R], *lists: Iterable[Any], name: str, count: int, processes: int, **begun: Any
) -> list[R]:
    """What `work` makes of each of `count` rows of lists, in order, by processes that are `begun` so.

    Raises:
        BrokenProcessPool: one of them died or could not begin.
    """
    with ProcessPoolExecutor(min(processes, count), multiprocessing.get_context("spawn"), **begun) as pool:
        return list(track(pool.map(work, *lists), name, total=count))


def write_shards(kind: str, numbers: Sequence[int], folder: Path, processes: int) -> None:
    """Render shards of a split, several at a time.

    Raises:
        BrokenProcessPool: a rendering process died, for the third time.
    """
    for last_attempt in (False, False, True):
        try:
            jobs = (repeat(kind), numbers, repeat(folder))
            spread(write_shard, *jobs, name=kind, count=len(numbers), processes=processes)
            return
        except BrokenProcessPool:  # software rendering has crashed once in thousands of clips
            if last_attempt:
                raise


def main(
    kinds: Annotated[list[str], typer.Argument(help="Splits to render.")] = list(SPLITS),  # noqa: B006
    folder: Annotated[Path, typer.Option(help="Where the shards go.")] = DATA,
    processes: int = 2,
    shards: Annotated[int | None, typer.Option(help="Fewer shards than the split has.")] = None,
) -> None:
    """Render the data sets."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in kinds:
        write_shards(kind, range(shards or SPLITS[kind].shards), folder, processes)


if __name__ == "__main__":
    typer.run(main)
