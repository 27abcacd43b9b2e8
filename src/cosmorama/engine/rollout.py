"""One request being sampled: its noise, its conditions, its place in the schedule. Nothing in it is shared."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from cosmorama.diffusion.guidance import Guidance
from cosmorama.diffusion.schedule import Schedule
from cosmorama.diffusion.solvers import SOLVER_STEPS, History, initial_noise
from cosmorama.engine.prepare import Frames, PreparedRequest
from cosmorama.progress import Progress
from cosmorama.world.base import TextEmbedding, World

EncodeText = Callable[[str], TextEmbedding]


class Rollout:
    """Advances one prepared request through the sampling equation, one denoising step at a time."""

    def __init__(self, world: World, prepared: PreparedRequest, encode_text: EncodeText | None = None) -> None:
        request = prepared.request
        if request.seed is None or request.solver is None:
            raise ValueError("a rollout needs a resolved request: see cosmorama.request.resolve")
        self.prepared = prepared
        self._world = world
        self._encode_text = encode_text or world.encode_text
        self._solver = SOLVER_STEPS[request.solver]
        self._guidance = Guidance(
            world.guidance_weight(request.guidance_scale), request.guidance_interval, request.guidance_rescale
        )
        self.schedule: Schedule = world.schedule(request.steps, request.solver)
        self.index = 0
        self._history = History()
        self._latents: Tensor | None = None
        self._conditioning: Tensor | None = None
        self._text: TextEmbedding | None = None
        self._negative: TextEmbedding | None = None

    @property
    def done(self) -> bool:
        """Whether the latents are clean."""
        return self._latents is not None and self.index == self.schedule.steps

    @property
    def progress(self) -> Progress:
        """Where the rollout is."""
        if self._latents is None:
            return Progress("encode")
        return Progress("denoise", self.index, self.schedule.steps)

    @property
    def latents(self) -> Tensor:
        """The latents `[1, C, T, H, W]` as they are now."""
        if self._latents is None:
            raise RuntimeError("the rollout has not started")
        return self._latents

    @torch.inference_mode()
    def advance(self) -> Progress:
        """Do the next unit of work: read the conditions and draw the noise, or take one denoising step."""
        if self._latents is None:
            self._begin()
        elif not self.done:
            self._denoise()
        return self.progress

    def decode(self) -> Iterator[Frames]:
        """The frames so far, uint8 `[t, H, W, 3]` in chunks, trimmed to exactly the number asked for."""
        request = self.prepared.request
        left = request.frames
        with torch.inference_mode():
            for chunk in self._world.decode(self.latents, request.height, request.width):
                yield np.ascontiguousarray(chunk[:left].numpy())
                left -= min(left, len(chunk))
                if left == 0:
                    return

    def _begin(self) -> None:
        request, world = self.prepared.request, self._world
        assert request.seed is not None
        self._text = self._encode_text(self.prepared.prompt)
        if self._guidance.weight != 1:
            self._negative = self._encode_text(request.negative_prompt)
        if self.prepared.frames is not None:
            self._conditioning = world.encode_frames(torch.from_numpy(self.prepared.frames))
        frames = world.capabilities.frames.next(request.frames)
        shape = world.latents_shape(frames, request.height, request.width)
        self._latents = initial_noise(shape, request.seed) * self.schedule.sigmas[0]

    def _denoise(self) -> None:
        assert self._text is not None
        denoised = self._predict(self._text)
        if self._guidance.acts_at(self.index, self.schedule.steps) and self._negative is not None:
            denoised = self._guidance.combine(denoised, self._predict(self._negative))
        self._latents, self._history = self._solver(self.latents, denoised, self.schedule, self.index, self._history)
        self.index += 1

    def _predict(self, text: TextEmbedding) -> Tensor:
        sigma = self.schedule.sigmas[self.index]
        return self._world.denoise(self.latents, sigma, text, self._conditioning, self.prepared.request.fps)
