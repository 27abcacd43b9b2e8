"""Draws clips the way the server does (its own request defaults, prompt upsampling, schedule, solver and guidance), by
single-threaded processes, one per core: on so small a model they do nearly twice the work of one with two threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from cosmorama.engine.prepare import PreparedRequest, Preparer
from cosmorama.engine.rollout import Rollout
from cosmorama.request import Defaults, GenerationRequest
from cosmorama.resolve import resolve
from cosmorama.world.base import Relayed
from cosmorama.world.microcosm.autoencoder import OUTPUT_SCALE, VideoAutoencoder
from cosmorama.world.microcosm.driving import DriveSampling
from cosmorama.world.microcosm.loader import load_microcosm
from cosmorama.world.microcosm.moving import MovedSampling
from cosmorama.world.microcosm.sampling import CosmosFlowSampling, CosmosFlowWorld
from microcosm.scenes.dataset import spread
from microcosm.scenes.simulate import Frames
from microcosm.training.autoencoder import to_uint8


@dataclass(frozen=True, slots=True)
class Job:
    """One clip to draw.

    Attributes:
        prompt: What it shows.
        frames: Its length.
        seed: Of the noise.
        given: First frames, uint8 [1 or 9, h, w, 3] at one eighth of the output size; None for text alone.
        steps: Denoising steps.
    """

    prompt: str
    frames: int
    seed: int
    given: Frames | None = field(default=None, repr=False)
    steps: int = Defaults().steps


def finished(world: CosmosFlowWorld, prepared: PreparedRequest) -> Rollout:
    """A request, sampled to the end."""
    rollout = Rollout(world, prepared)
    while not rollout.done:
        rollout.advance()
    return rollout


def draw(world: CosmosFlowWorld, job: Job) -> Frames:
    """One clip at one eighth of the output size, uint8 [frames, h, w, 3]."""
    request = GenerationRequest(prompt=job.prompt, frames=job.frames, seed=job.seed, steps=job.steps)
    resolved = resolve(request, world.capabilities)
    if job.given is None:
        prepared = Preparer()(resolved, world.capabilities)
    else:
        # Frames of a request with an image or video; its prompt is taken as it is.
        large = job.given.repeat(OUTPUT_SCALE, axis=1).repeat(OUTPUT_SCALE, axis=2)
        prepared = PreparedRequest(resolved, job.prompt, large)
    rollout = finished(world, prepared)
    assert isinstance(world.autoencoder, VideoAutoencoder)
    with torch.inference_mode():
        sampling = rollout.sampling.inner if isinstance(rollout.sampling, Relayed) else rollout.sampling
        if isinstance(sampling, DriveSampling | MovedSampling):
            chunks = rollout.chunks[-len(sampling.shares) :]  # a still from text stands before them
            pieces = iter(torch.cat([sampling.first, *chunks], dim=2)[0].transpose(0, 1)[None])
        elif isinstance(sampling, CosmosFlowSampling):
            pieces = sampling.shown(rollout.latents)
        else:
            pieces = world.autoencoder.small_stream(rollout.latents, resolved.height, resolved.width)
        small = torch.cat(list(pieces))
    return np.ascontiguousarray(to_uint8(small.transpose(0, 1)[None, :, : job.frames])[0])


def draw_all(weights: Path, jobs: Sequence[Job], name: str, processes: int = 2) -> list[Frames]:
    """The clips of all jobs, in order."""
    begun = {"initializer": _start, "initargs": (weights,)}
    return spread(_draw_here, jobs, name=name, count=len(jobs), processes=processes, **begun)


_loaded: list[CosmosFlowWorld] = []  # of this worker process


def _start(weights: Path) -> None:
    torch.set_num_threads(1)
    _loaded.append(load_microcosm(weights))


def _draw_here(job: Job) -> Frames:
    return draw(_loaded[0], job)
