"""One request being sampled: its noise, its conditions, its place in the schedule. Nothing in it is shared.

A clip longer than the model makes at once is sampled in windows: each further one continues from the last frames of the
one before, as a request with that clip would, with noise from a seed of its own that follows from the request's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from cosmorama import __version__
from cosmorama.diffusion.guidance import Guidance
from cosmorama.diffusion.reuse import Memory, estimate
from cosmorama.diffusion.solvers import SOLVER_STEPS, History
from cosmorama.engine.prepare import Frames, PreparedRequest
from cosmorama.progress import Progress
from cosmorama.request import Capabilities, Output, ResolvedRequest, repeatable
from cosmorama.world.base import (
    Acting,
    Adaptable,
    Chunked,
    Inputs,
    Previewing,
    ReadText,
    Renoising,
    Sampling,
    Stepper,
    World,
)
from cosmorama.world.faults import all_finite, not_finite


class Rollout:
    """Advances one prepared request through the sampling equation, one denoising step at a time."""

    def __init__(self, world: World, prepared: PreparedRequest, read: ReadText | None = None) -> None:
        request = prepared.request
        if request.seed is None or request.solver is None:
            raise ValueError("a rollout needs a resolved request: see cosmorama.request.resolve")
        self.prepared = prepared
        self._world = world
        self._read = read or world.encode_text
        self._planned = window_frames(request.frames, world.capabilities)
        self._windows: list[Window] = []

    def parameters(self, output: Output | None = None) -> dict[str, str]:
        """What the clip is made with, as text, for its file: what it takes to ask for it again, but no media.

        Args:
            output: How the file is written; None: as the request says.
        """
        request = self.prepared.request if output is None else replace(self.prepared.request, output=output)
        given = {
            "software": f"cosmorama {__version__}",
            "request": json.dumps(repeatable(request, self.prepared.prompt), ensure_ascii=False, sort_keys=True),
            "model": self._world.capabilities.model,
            "mode": request.mode,
            "prompt": self.prepared.prompt,
            "negative_prompt": request.negative_prompt,
            "seed": request.seed,
            "steps": request.steps,
            "guidance_scale": request.guidance_scale,
            "solver": request.solver,
            "width": request.width,
            "height": request.height,
            "frames": request.frames,
            "fps": request.fps,
            "flow_shift": request.flow_shift,
            "reuse": request.reuse or None,
            "conditioning_frames": request.conditioning_frames or None,
            "adapters": ", ".join(f"{adapter.name}:{adapter.scale:g}" for adapter in request.adapters) or None,
            "controls": ", ".join(f"{control.kind}:{control.weight:g}" for control in request.controls) or None,
        }
        return {
            name: f"{value:g}" if isinstance(value, float) else str(value)
            for name, value in given.items()
            if value is not None
        }

    @property
    def done(self) -> bool:
        """Whether the latents of all windows are clean."""
        return self.clean == len(self._planned)

    @property
    def clean(self) -> int:
        """How many windows are sampled to the end and can be decoded."""
        return sum(window.done for window in self._windows)

    @property
    def windows(self) -> int:
        """How many windows the clip is sampled in."""
        return len(self._planned)

    @property
    def index(self) -> int:
        """Denoising steps taken, in all windows."""
        return sum(window.index for window in self._windows)

    @property
    def evaluations(self) -> int:
        """How often the network was asked so far; a model that steps itself is not counted."""
        return sum(window.evaluations for window in self._windows)

    @property
    def progress(self) -> Progress:
        """Where the rollout is; the total is that of all windows from the first step on."""
        if not self._windows:
            return Progress("encode")
        # Only the first window may be made in several goes: the others continue from frames.
        to_come = len(self._planned) - len(self._windows)
        total = sum(window.steps for window in self._windows) + to_come * self._windows[0].levels
        share = sum(window.share for window in self._windows) / len(self._planned)
        return Progress("denoise", self.index, total, share)

    @property
    def latents(self) -> Tensor:
        """The latents of the newest window as they are now, in the family's own shape."""
        if not self._windows:
            raise RuntimeError("the rollout has not started")
        return self._windows[-1].latents

    @torch.inference_mode()
    def advance(self) -> Progress:
        """Do the next unit of work: begin a window (read the conditions, draw the noise), or take a denoising step."""
        if isinstance(self._world, Adaptable):
            self._world.select(self.prepared.request.adapters)
        if not self.done:
            if len(self._windows) == self.clean:
                self._windows.append(self._next_window())
            else:
                self._windows[-1].step()
        return self.progress

    def decode(self, start: int = 0) -> Iterator[Frames]:
        """The frames of the windows sampled so far, from window `start` on: uint8 `[t, H, W, 3]` in chunks.

        Every frame comes once: the frames that a window continues from are shown by the window before.
        """
        for window in self._windows[start:]:
            yield from window.frames()

    @property
    def actions(self) -> tuple[tuple[float, ...], ...] | None:
        """The actions `[steps][numbers]` that were predicted, where the request asks for them."""
        return self._windows[-1].actions if self._windows else None

    def preview(self) -> Frames | None:
        """One frame of the clean clip as it is estimated now, uint8 `[H, W, 3]`; None before the first step."""
        return self._windows[-1].preview() if self._windows else None

    def _next_window(self) -> Window:
        request, number = self.prepared.request, len(self._windows)
        frames = self._planned[number]
        kept = _overlap(self._world.capabilities) if number + 1 < len(self._planned) else 0
        if number == 0:
            inputs = replace(self.prepared.inputs, request=replace(request, frames=frames))
            return Window(self._world.begin(inputs, self._read), inputs.request, kept=kept)
        given = self._windows[-1].ending
        following = replace(
            request,
            frames=frames,
            seed=_seed_of(request, number),
            image=None,
            video=None,
            task="video2world",
            conditioning_frames=len(given),
        )
        inputs = Inputs(request=following, prompt=self.prepared.prompt, frames=torch.from_numpy(given))
        return Window(self._world.begin(inputs, self._read), following, repeated=len(given), kept=kept)


class Window:
    """One clip that the model makes at once.

    Attributes:
        latents: As they are now.
        index: Denoising steps taken.
        evaluations: How often the network was asked.
    """

    def __init__(self, sampling: Sampling, request: ResolvedRequest, *, repeated: int = 0, kept: int = 0) -> None:
        """Begin.

        Args:
            sampling: What is sampled.
            request: Of this window alone.
            repeated: First frames that are those it continues from, and are not shown again.
            kept: Last frames that another window continues from.
        """
        assert request.solver is not None
        self.latents = sampling.initial()
        self.index = 0
        self.evaluations = 0
        self._sampling = sampling
        self._request = request
        self._repeated, self._kept = repeated, kept
        self._solver = SOLVER_STEPS[request.solver]
        self._history = History()
        self._memory = Memory()
        self._denoised: Tensor | None = None
        self._ending: Frames | None = None
        self._chunk = 0
        self._finite: list[tuple[int, Tensor]] = []

    @property
    def levels(self) -> int:
        """Denoising steps from noise to a clean clip."""
        return self._sampling.schedule.steps

    @property
    def steps(self) -> int:
        """Denoising steps in all."""
        return self.levels * len(self._shares)

    @property
    def share(self) -> float:
        """The part of the work that is done, 0 to 1."""
        chunk, step = divmod(self.index, self.levels)
        return 1.0 if self.done else sum(self._shares[:chunk]) + self._shares[chunk] * step / self.levels

    @property
    def _shares(self) -> tuple[float, ...]:
        return self._sampling.shares if isinstance(self._sampling, Chunked) else (1.0,)

    @property
    def done(self) -> bool:
        """Whether the latents are clean."""
        return self.index == self.steps

    def step(self) -> None:
        """Take a denoising step."""
        if isinstance(self._sampling, Stepper):
            self.latents = self._sampling.step(self.latents, self.index)
        else:
            self._denoise(self._sampling)
        self.index += 1
        self._check_finite()

    def _check_finite(self) -> None:
        """Look whether latents went wrong: those of the step before, so that a GPU has its next step while it is asked.

        Raises:
            NotFiniteError: they are NaN or infinite.
        """
        self._finite.append((self.index, all_finite(self.latents)))
        while self._finite and (self.done or self._finite[0][0] < self.index):
            step, finite = self._finite.pop(0)
            if not finite:
                what = f"the latents after step {step} of {self.steps}"
                if step == 1:
                    what += " (the first: the prompt, the given frames or the weights are to blame)"
                raise not_finite(what, self._request)

    @torch.inference_mode()  # while it runs, and not while its caller does: clips may be decoded in turns
    def frames(self) -> Iterator[Frames]:
        """Its frames without those that it continues from, in chunks, trimmed to exactly the number asked for."""
        position = 0
        ending: list[Frames] = []
        for chunk in self._sampling.decode(self.latents):
            frames = np.ascontiguousarray(chunk[: self._request.frames - position].numpy())
            new = frames[max(self._repeated - position, 0) :]
            position += len(frames)
            if self._request.frames - position < self._kept:
                ending.append(frames)
            if len(new):
                yield new
            if position == self._request.frames:
                break
        if self._kept:
            self._ending = np.concatenate(ending)[-self._kept :]

    @property
    def ending(self) -> Frames:
        """The frames that the next window continues from; decoded now unless that was done before."""
        if self._ending is None:
            for _ in self.frames():
                pass
        assert self._ending is not None
        return self._ending

    @property
    def actions(self) -> tuple[tuple[float, ...], ...] | None:
        """The actions `[steps][numbers]` that were predicted, where the request asks for them."""
        predicted = self._sampling.actions(self.latents) if isinstance(self._sampling, Acting) else None
        return None if predicted is None else tuple(map(tuple, predicted.tolist()))

    def preview(self) -> Frames | None:
        """One frame of the clean clip as it is estimated now, uint8 `[H, W, 3]`; None before the first step.

        Only the beginning of the clip is decoded: the frame is the last of the second chunk, so that it shows more than
        the picture that a clip may start from.
        """
        if self._denoised is None:
            return None
        sampling = self._sampling
        with torch.inference_mode():
            shown = sampling.preview if isinstance(sampling, Previewing) else sampling.decode
            *_, chunk = islice(shown(self._denoised), 2)
            return np.ascontiguousarray(chunk[-1].numpy())

    def _denoise(self, sampling: Sampling) -> None:
        index = self.index % self.levels
        if self.index // self.levels > self._chunk and isinstance(sampling, Chunked):
            self.latents, self._history, self._memory = sampling.next_chunk(self.latents), History(), Memory()
            self._chunk += 1  # not again, should the evaluation fail and be repeated
        schedule = sampling.schedule  # which may be another one for another chunk

        def evaluate(negative: bool) -> Tensor:
            self.evaluations += 1
            return sampling.denoise(self.latents, index, negative=negative)

        guidance = Guidance.of(sampling.guidance_weight, self._request)
        self._denoised, self._memory = estimate(
            evaluate, guidance, schedule, index, self._request.reuse or 0.0, self._memory
        )
        if isinstance(sampling, Renoising):
            self.latents = sampling.renoise(self._denoised, index)
            return
        self.latents, self._history = self._solver(self.latents, self._denoised, schedule, index, self._history)


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


def _seed_of(request: ResolvedRequest, window: int) -> int:
    """The seed of a window after the first, well mixed, so that neighbouring seeds do not share windows."""
    assert request.seed is not None
    return int(np.random.SeedSequence((request.seed, window)).generate_state(1)[0])
