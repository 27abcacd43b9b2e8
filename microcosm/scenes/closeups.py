"""Shots rendered at both sizes, for the decoder: eight small frames, and one of them at the size the model serves.

`python -m microcosm.scenes.closeups` writes shards of `SHARD` shots to `closeups-<number>.npz` (resumable): `small`
uint8 [N, 8, 88, 160, 3], `large` uint8 [N, 704, 1280, 3] and `which` [N], the index of the large frame among the small
ones. Everything follows from the seeds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import typer
from rich.progress import track

from cosmorama.world.microcosm.autoencoder import FRAMES_PER_LATENT, OUTPUT_SCALE
from microcosm.scenes.dataset import DATA
from microcosm.scenes.shots import AnyShot
from microcosm.scenes.simulate import SIZES, Frames, Shot, draw_shot, render

FIRST_SEED = 4_000_000
FIRST_HELD_OUT_SEED = 9_500_000
SHARD = 20
LATEST_START_S = 1.6  # most of the motion is over after two seconds
S = TypeVar("S", bound=AnyShot)


@dataclass(frozen=True, slots=True)
class Closeup:
    """A shot at both sizes.

    Attributes:
        small: uint8 [8, h, w, 3], consecutive frames at 24 fps.
        large: uint8 [8 h, 8 w, 3], one of them eight times as large.
        which: Its index among the small frames.
    """

    small: Frames
    large: Frames
    which: int


def wide_shots(first_seed: int, draw: Callable[[int], S]) -> Iterator[S]:
    """The 16:9 shots at 24 fps from `first_seed` on, of the world that `draw` draws from."""
    shots = map(draw, count(first_seed))
    return (shot for shot in shots if shot.size_px == SIZES[0] and shot.fps == 24)


def draw_closeup(shot: Shot) -> Closeup:
    """The close-up of a shot; where it lies in time follows from its seed."""
    rng = np.random.default_rng((shot.seed, 3))
    times = LATEST_START_S * rng.random() + np.arange(FRAMES_PER_LATENT) / shot.fps
    which = int(rng.integers(FRAMES_PER_LATENT))
    return Closeup(render(shot, list(times)), render(shot, [times[which]], scale=OUTPUT_SCALE)[0], which)


def read_closeups(folder: Path) -> list[Closeup]:
    """All rendered close-ups, in the order of their seeds."""
    found = []
    for path in sorted(folder.glob("closeups-*.npz")):
        with np.load(path) as arrays:
            rows = zip(arrays["small"], arrays["large"], arrays["which"], strict=True)
            found += [Closeup(small, large, int(which)) for small, large, which in rows]
    return found


def main(
    folder: Annotated[Path, typer.Option(help="Where the shards go.")] = DATA,
    shards: Annotated[int, typer.Option(help=f"Shards of {SHARD} shots.")] = 10,
) -> None:
    """Render the close-ups that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    shots = wide_shots(FIRST_SEED, draw_shot)
    for number in track(range(shards), "close-ups"):
        chosen = [next(shots) for _ in range(SHARD)]
        path = folder / f"closeups-{number:04d}.npz"
        if path.exists():
            continue
        made = [draw_closeup(shot) for shot in chosen]
        temporary = path.with_name(f".{path.name}.{os.getpid()}.npz")
        np.savez(
            temporary,
            small=np.stack([one.small for one in made]),
            large=np.stack([one.large for one in made]),
            which=np.array([one.which for one in made]),
        )
        temporary.rename(path)


if __name__ == "__main__":
    typer.run(main)
