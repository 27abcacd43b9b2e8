"""One request being sampled: its noise, its conditions, its place in the schedule. Nothing in it is shared."""

from __future__ import annotations

import json
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
from cosmorama.request import Output, repeatable
from cosmorama.world.base import ReadText, Sampling, World
from cosmorama.world.faults import all_finite, not_finite
from cosmorama.world.windows import Windows


class Rollout:
    """Advances one prepared request through the sampling equation, one denoising step at a time.

    Attributes:
        index: Denoising steps taken, in all chunks.
        evaluations: How often the network was asked so far; a model that steps itself is not counted.
    """

    def __init__(self, world: World, prepared: PreparedRequest, read: ReadText | None = None) -> None:
        request = prepared.request
        if request.seed is None or request.solver is None:
            raise ValueError("a rollout needs a resolved request: see cosmorama.request.resolve")
        self.prepared = prepared
        self.index = 0
        self.evaluations = 0
        self._world = world
        self._read = read or world.encode_text
        self._solver = SOLVER_STEPS[request.solver]
        self._sampling: Sampling | None = None
        self._before: list[Tensor] = []  # clean latents of the chunks before this one
        self._frames: dict[int, int] = {}  # of each chunk that was decoded
        self._latents = torch.empty(0)  # of this chunk
        self._step = 0
        self._history, self._memory = History(), Memory()
        self._denoised: Tensor | None = None
        self._finite: list[tuple[int, Tensor]] = []

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
        """Whether the latents of all chunks are clean."""
        return self._sampling is not None and self.clean == len(self._sampling.shares)

    @property
    def clean(self) -> int:
        """How many chunks are sampled to the end and can be decoded."""
        return len(self._before) + (self._sampling is not None and self._step == self._sampling.schedule.steps)

    @property
    def progress(self) -> Progress:
        """Where the rollout is; the total is that of all chunks from the first step on."""
        if self._sampling is None:
            return Progress("encode")
        return Progress("denoise", self.index, self._steps(self._sampling), self._share(self._sampling))

    @property
    def chunks(self) -> list[Tensor]:
        """The clean latents of all chunks that are sampled to the end, in order."""
        return [*self._before, self._latents][: self.clean]

    @property
    def latents(self) -> Tensor:
        """The latents of the newest chunk as they are now, in the family's own shape."""
        if self._sampling is None:
            raise RuntimeError("the rollout has not started")
        return self._latents

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was fitted, replaced, converted, ignored or done twice of the request."""
        notes = () if self._sampling is None else self._sampling.notes
        return (*self.prepared.request.warnings, *self.prepared.warnings, *notes)

    @property
    def sampling(self) -> Sampling:
        """What the model keeps of this request, once it has begun."""
        if self._sampling is None:
            raise RuntimeError("the rollout has not started")
        return self._sampling

    @torch.inference_mode()
    def advance(self) -> Progress:
        """Do the next unit of work: begin (read the conditions, draw the noise), or take a denoising step."""
        self._world.select(self.prepared.request.adapters)
        if self._sampling is None:
            self._sampling, self._latents = self._begun()
        elif not self.done:
            self._advance(self._sampling)
        return self.progress

    def decode(self, start: int = 0) -> Iterator[Frames]:
        """The frames of the chunks sampled so far, from chunk `start` on: uint8 `[t, H, W, 3]`, piece by piece."""
        left = self.prepared.request.frames - self.frames_before(start)
        if self._world.capabilities.action_only:
            left = min(left, 1)
        for chunk, latents in list(enumerate(self.chunks))[start:]:
            assert self._sampling is not None
            self._frames[chunk] = left
            for frames in self._sampling.decode(latents, chunk):
                yield np.ascontiguousarray(frames[:left].numpy())
                left -= len(frames)
                if left <= 0:
                    return
            self._frames[chunk] -= left

    def frames_before(self, chunk: int) -> int:
        """How many frames the chunks before `chunk` have, which are decoded."""
        return sum(self._frames[number] for number in range(chunk))

    @property
    def actions(self) -> tuple[tuple[float, ...], ...] | None:
        """The actions `[steps][numbers]` that were predicted, where the request asks for them."""
        predicted = None if self._sampling is None else self._sampling.actions(self._latents)
        return None if predicted is None else tuple(map(tuple, predicted.tolist()))

    def preview(self) -> Frames | None:
        """One frame of the clean clip as it is estimated now, uint8 `[H, W, 3]`; None before the first step.

        Only the beginning of the chunk is decoded: the frame is the last of the second piece, so that it shows more
        than the picture that a clip may start from.
        """
        if self._sampling is None or self._denoised is None:
            return None
        with torch.inference_mode():
            *_, piece = islice(self._sampling.preview(self._denoised), 2)
            return np.ascontiguousarray(piece[-1].numpy())

    def _begun(self) -> tuple[Sampling, Tensor]:
        inputs, capabilities = self.prepared.inputs, self._world.capabilities
        if inputs.request.action is None and inputs.request.frames > capabilities.frames.maximum:
            sampling: Sampling = Windows(self._world, inputs, self._read)
        else:
            sampling = self._world.begin(inputs, self._read)
        return sampling, sampling.initial()

    def _advance(self, sampling: Sampling) -> None:
        if self.clean > len(self._before):
            following = sampling.next_chunk(self._latents)
            self._before.append(self._latents)
            self._latents, self._step = following, 0  # not again, should the evaluation fail and be repeated
            self._history, self._memory, self._denoised = History(), Memory(), None
        stepped = sampling.step(self._latents, self._step)
        self._latents = self._denoise(sampling) if stepped is None else stepped
        if sampling.draws:
            self._denoised = stepped
        self._step += 1
        self.index += 1
        self._check_finite(sampling)

    def _denoise(self, sampling: Sampling) -> Tensor:
        request, schedule = self.prepared.request, sampling.schedule

        def evaluate(negative: bool) -> Tensor:
            self.evaluations += 1
            return sampling.denoise(self._latents, self._step, negative=negative)

        guidance = Guidance.of(sampling.guidance_weight, request)
        self._denoised, self._memory = estimate(
            evaluate, guidance, schedule, self._step, request.reuse or 0.0, self._memory
        )
        renoised = sampling.renoise(self._denoised, self._step)
        if renoised is not None:
            return renoised
        latents, self._history = self._solver(self._latents, self._denoised, schedule, self._step, self._history)
        return latents

    def _check_finite(self, sampling: Sampling) -> None:
        """Look whether latents went wrong: those of the step before, so that a GPU has its next step while it is asked.

        Raises:
            NotFiniteError: they are NaN or infinite.
        """
        self._finite.append((self.index, all_finite(self._latents)))
        while self._finite and (self.clean > len(self._before) or self._finite[0][0] < self.index):
            step, finite = self._finite.pop(0)
            if not finite:
                what = f"the latents after step {step} of {self._steps(sampling)}"
                if step == 1:
                    what += " (the first: the prompt, the given frames or the weights are to blame)"
                raise not_finite(what, self.prepared.request)

    def _steps(self, sampling: Sampling) -> int:
        return self.index - self._step + sampling.schedule.steps * (len(sampling.shares) - len(self._before))

    def _share(self, sampling: Sampling) -> float:
        """The part of the work that is done, 0 to 1."""
        if self.done:
            return 1.0
        shares, chunk = sampling.shares, len(self._before)
        return sum(shares[:chunk]) + shares[chunk] * self._step / sampling.schedule.steps
