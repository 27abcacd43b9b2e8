"""Scenes and wordings that no training split contains, to measure on."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice, repeat

import numpy as np
from rich.progress import track

from cosmorama.text.scene_language import Scene, canonical_caption
from microcosm.captions import random_caption
from microcosm.closeups import wide_shots
from microcosm.dataset import SPLITS
from microcosm.simulate import Frames, Shot, render

_WORDING_SEED = 9_000_000  # training captions follow from other streams


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A held-out 16:9 shot at 24 fps and a wording of it.

    Attributes:
        shot: Its seed is in no training split.
        prompt: The canonical caption, or another wording.
        canonical: Which of the two.
    """

    shot: Shot
    prompt: str
    canonical: bool

    @property
    def scene(self) -> Scene:
        """What happens in it."""
        return self.shot.scene

    def frames(self, count: int) -> Frames:
        """The real clip from the start of the action, uint8 [count, 88, 160, 3]."""
        return render(self.shot, list(np.arange(count) / self.shot.fps))

    def frame(self, index: int) -> Frames:
        """One frame of it, uint8 [88, 160, 3]."""
        frame: Frames = render(self.shot, [index / self.shot.fps])[0]
        return frame


def held_out(count: int, keep: Callable[[Scene], bool] = lambda scene: True, *, skip: int = 0) -> list[HeldOut]:
    """The first held-out shots after `skip` whose scene `keep` takes; every second one in other words."""
    fitting = (shot for shot in wide_shots(SPLITS["heldout"].first_seed) if keep(shot.scene))
    return [
        HeldOut(shot, canonical_caption(shot.scene) if index % 2 == 0 else other_wording(shot), index % 2 == 0)
        for index, shot in enumerate(islice(fitting, skip, skip + count))
    ]


def real_clips(held: Sequence[HeldOut], count: int, processes: int) -> list[Frames]:
    """The real clips of all, uint8 [count, 88, 160, 3] each, drawn by processes of their own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(held)), context) as pool:
        jobs = pool.map(HeldOut.frames, held, repeat(count))
        return list(track(jobs, "real clips", total=len(held)))


def other_wording(shot: Shot) -> str:
    """A wording other than the canonical one, that names the floor (terse captions may leave it out)."""
    rng = np.random.default_rng((_WORDING_SEED, shot.seed))
    while True:
        caption = random_caption(shot.scene, rng)
        if " on " in caption and caption != canonical_caption(shot.scene):
            return caption


def deranged(scenes: Sequence[Scene], seed: int = 1) -> list[Scene]:
    """The scenes in another order, none in its own place: what chance would get right."""
    order = np.random.default_rng(seed).permutation(len(scenes))
    shifted = np.empty_like(order)
    shifted[order] = np.roll(order, 1)
    return [scenes[index] for index in shifted]
