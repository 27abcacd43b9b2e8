"""A clip longer than the model makes at once, in windows (autoregressive rollout).

Each further window continues from the last frames of the one before, as a request with that clip would, with noise from
a seed of its own that follows from the request's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cosmorama.request import Capabilities
from cosmorama.world.base import Inputs, ReadText, Relayed, Sampling, World


@dataclass(slots=True)
class _Window:
    """One clip that the model makes at once.

    Attributes:
        sampling: Of the window alone.
        frames: How many it has.
        repeated: The first of them that are those it continues from, and are not shown again.
        kept: The last of them that the next one continues from; 0 of the last window.
        ending: Those frames, uint8 `[kept, H, W, 3]`, once they are decoded.
    """

    sampling: Sampling
    frames: int
    repeated: int
    kept: int
    ending: Tensor | None = None


class Windows(Relayed):
    """One request for such a clip. A window may be made in chunks itself."""

    def __init__(self, world: World, inputs: Inputs, read: ReadText) -> None:
        self._world, self._inputs, self._read = world, inputs, read
        self._planned = window_frames(inputs.request.frames, world.capabilities)
        self._windows: list[_Window] = []
        self._chunks: list[tuple[_Window, int]] = []  # begun: which window's, and its number there
        self._first = self._begin(None)

    def initial(self) -> Tensor:
        return self._first

    def next_chunk(self, latents: Tensor) -> Tensor:
        """Go on within the window, or to the next one."""
        window, chunk = self._chunks[-1]
        if chunk + 1 == len(window.sampling.shares):
            return self._begin(self._ending(window, latents))
        first = window.sampling.next_chunk(latents)
        self._chunks.append((window, chunk + 1))
        self._follow()
        return first

    @torch.inference_mode()  # while it runs, and not while its caller does: clips may be decoded in turns
    def decode(self, latents: Tensor, chunk: int = 0) -> Iterator[Tensor]:
        """Frames of a chunk's window without those that it continues from, exactly as many as were asked for."""
        window, number = self._chunks[chunk]
        position, latest = 0, torch.empty(0)
        for made in window.sampling.decode(latents, number):
            frames = made[: window.frames - position]
            new = frames[max(window.repeated - position, 0) :]
            position += len(frames)
            if window.kept:
                latest = torch.cat([latest.to(frames), frames])[-window.kept :] if len(latest) else frames
            if len(new):
                yield new
            if position == window.frames:
                break
        if position and window.kept:
            window.ending = latest[-window.kept :]

    def _ending(self, window: _Window, latents: Tensor) -> Tensor:
        """The frames that the next window continues from; decoded now unless that was done before."""
        if window.ending is None:
            for _ in self.decode(latents, len(self._chunks) - 1):
                pass
        assert window.ending is not None
        return window.ending

    def _begin(self, given: Tensor | None) -> Tensor:
        """Begin the next window: its latents at the first level."""
        number, frames = len(self._windows), self._planned[len(self._windows)]
        inputs = replace(self._inputs, request=replace(self._inputs.request, frames=frames))
        if given is not None:
            seed = _seed_of(self._inputs, number)
            request = replace(inputs.request, seed=seed, image=None, video=None, task="video2world")
            request = replace(request, conditioning_frames=len(given))
            inputs = Inputs(request=request, prompt=inputs.prompt, frames=given)
        sampling = self._world.begin(inputs, self._read)
        first = sampling.initial()
        kept = _overlap(self._world.capabilities) if number + 1 < len(self._planned) else 0
        self._windows.append(_Window(sampling, frames, 0 if given is None else len(given), kept))
        self._chunks.append((self._windows[-1], 0))
        self.inner = sampling
        self._follow()
        return first

    def _follow(self) -> None:
        """What is the current window's is the clip's: of those to come one chunk each is known."""
        self.schedule, self.guidance_weight = self.inner.schedule, self.inner.guidance_weight
        parts = [share for window in self._windows for share in window.sampling.shares]
        parts += [1.0] * (len(self._planned) - len(self._windows))
        self.shares = tuple(part / len(self._planned) for part in parts)


def window_frames(frames: int, capabilities: Capabilities) -> tuple[int, ...]:
    """Frames of each window of a clip of `frames`; all but the first begin with those they continue from."""
    most = capabilities.frames.maximum
    if frames <= most:
        return (frames,)
    rest, overlap = frames - most, _overlap(capabilities)
    further = math.ceil(rest / (most - overlap))
    return (most, *(min(most, rest - i * (most - overlap) + overlap) for i in range(further)))


def _overlap(capabilities: Capabilities) -> int:
    """Frames that a window continues from: the most that the model takes."""
    return max(capabilities.conditioning_frames)


def _seed_of(inputs: Inputs, window: int) -> int:
    """The seed of a window after the first, well mixed, so that neighbouring seeds do not share windows."""
    assert inputs.request.seed is not None
    return int(np.random.SeedSequence((inputs.request.seed, window)).generate_state(1)[0])
