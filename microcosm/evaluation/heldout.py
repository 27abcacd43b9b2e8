"""Scenes and wordings that no training split contains, to measure on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, repeat
from typing import Any, Generic, TypeVar

import numpy as np

from cosmorama.text.language import Corridor, Scene
from microcosm.scenes.captions import random_caption
from microcosm.scenes.closeups import wide_shots
from microcosm.scenes.corridor import draw_drive
from microcosm.scenes.dataset import SPLITS, spread
from microcosm.scenes.shots import AnyShot, caption_of, frames_of
from microcosm.scenes.simulate import Frames, draw_shot

S = TypeVar("S", Scene, Corridor)

_FIRST_SEED = SPLITS["heldout"].first_seed
_WORDING_SEED = 9_000_000  # training captions follow from other streams


@dataclass(frozen=True)
class HeldOut(Generic[S]):
    """A held-out 16:9 shot at 24 fps and a wording of it.

    Attributes:
        shot: Its seed is in no training split.
        scene: What happens in it.
        prompt: The canonical caption, or another wording.
        canonical: Which of the two.
    """

    shot: AnyShot
    scene: S
    prompt: str
    canonical: bool

    def frames(self, count: int) -> Frames:
        """The real clip from the start of the action, uint8 [count, 88, 160, 3]."""
        return frames_of(self.shot, list(np.arange(count) / self.shot.fps))

    def frame(self, index: int) -> Frames:
        """One frame of it, uint8 [88, 160, 3]."""
        frame: Frames = frames_of(self.shot, [index / self.shot.fps])[0]
        return frame


def held_out(count: int, keep: Callable[[Scene], bool] = lambda scene: True, *, skip: int = 0) -> list[HeldOut[Scene]]:
    """The first held-out shots after `skip` whose scene `keep` takes; every second one in other words."""
    fitting = ((shot, shot.scene) for shot in wide_shots(_FIRST_SEED, draw_shot) if keep(shot.scene))
    return _worded(islice(fitting, skip, skip + count))


def held_out_drives(count: int, *, skip: int = 0) -> list[HeldOut[Corridor]]:
    """The first held-out drives after `skip`; every second one in other words."""
    drives = ((drive, drive.scene) for drive in wide_shots(_FIRST_SEED, draw_drive))
    return _worded(islice(drives, skip, skip + count))


def _worded(shots: Iterator[tuple[AnyShot, S]]) -> list[HeldOut[S]]:
    return [
        HeldOut(shot, scene, caption_of(scene) if index % 2 == 0 else other_wording(shot), index % 2 == 0)
        for index, (shot, scene) in enumerate(shots)
    ]


def real_clips(held: Sequence[HeldOut[Any]], count: int, processes: int) -> list[Frames]:
    """The real clips of all, uint8 [count, 88, 160, 3] each, drawn by processes of their own."""
    return spread(HeldOut.frames, held, repeat(count), name="real clips", count=len(held), processes=processes)


def other_wording(shot: AnyShot) -> str:
    """A wording other than the canonical one, that names the floor (terse captions may leave it out)."""
    rng = np.random.default_rng((_WORDING_SEED, shot.seed))
    while True:
        caption = random_caption(shot.scene, rng)
        if " on " in caption and caption != caption_of(shot.scene):
            return caption


def deranged(scenes: Sequence[S], seed: int = 1) -> list[S]:
    """The scenes in another order, none in its own place: what chance would get right."""
    order = np.random.default_rng(seed).permutation(len(scenes))
    shifted = np.empty_like(order)
    shifted[order] = np.roll(order, 1)
    return [scenes[index] for index in shifted]
