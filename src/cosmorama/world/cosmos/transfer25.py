"""Transfer2.5: a clip that follows control clips (edges, depth, segmentation, a blurred picture) in its structure.

The same numbers as diffusers' `Cosmos2_5_TransferPipeline`. A clip is made in chunks of 93 frames; each after the first
starts from the last frame of the one before, decoded and encoded again. A shorter last chunk is sampled whole, its
control repeating its last frame, and cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from cosmorama.errors import InvalidRequestError, Problem
from cosmorama.world.base import Inputs, ReadText
from cosmorama.world.chunks import Chunks
from cosmorama.world.cosmos.control import ControlTokens, control_residuals, control_tokens
from cosmorama.world.cosmos.predict25 import Predict25Sampling
from cosmorama.world.cosmos.sampling import CosmosWorld
from cosmorama.world.cosmos.text import TextContext
from cosmorama.world.vae.pixels import to_pixels
from cosmorama.world.vae.wan import WanAutoencoder

_OVERLAP = 1
"""Frames that a chunk repeats of the one before."""


class TransferSampling(Chunks, Predict25Sampling):
    """One request on a Transfer2.5 model: Predict2.5 with ControlNets, chunk after chunk."""

    conditioning_timestep = 0.1

    def __init__(self, world: CosmosWorld, inputs: Inputs, read: ReadText) -> None:
        self._weights = _weights(world, inputs)
        super().__init__(world, replace(inputs, frames=None), read)
        self._clips = inputs.controls
        total = min(self.request.frames, *(len(clip) for clip in inputs.controls.values()))
        self.chunk(total, world.chunk_frames, _OVERLAP)
        self._controls: dict[str, ControlTokens] = {}  # of this chunk, by kind

    def frames_at_once(self) -> int:
        """Those of a chunk; a shorter one is sampled whole."""
        return self.world.chunk_frames

    def initial(self) -> Tensor:
        """The first chunk's noise `[1, C, T, h, w]`."""
        return self.start(0, None)

    def start(self, number: int, begins: Tensor | None) -> Tensor:
        """Noise for a chunk, and its conditions; everything is drawn in diffusers' order, needed or not."""
        noise, unsure = self.noise(), self.noise()
        self.go_on_from(None if begins is None else self._wan.encode(begins, unsure[:, :, :1]), noise)
        mask = self._mask.to(self.world.dtype)
        self._controls = {
            kind: control_tokens(self.world.controlnets[kind], self._encoded(clip, number), mask)
            for kind, clip in self._clips.items()
        }
        return noise

    def pixels(self, latents: Tensor) -> Iterator[Tensor]:
        """A chunk's pixels, piece by piece."""
        return self._wan.decode_pixels(latents)

    def residuals(self, x: Tensor, timesteps: Tensor, texts: list[TextContext]) -> dict[int, Tensor]:
        """What the controls add, each by its weight."""
        world = self.world
        by_network = dict(zip(world.networks[1:], texts, strict=True))
        blocks = range(0, len(world.transformer.transformer_blocks), world.transformer.config.controlnet_block_every_n)
        total: dict[int, Tensor] = {}
        for kind, control in self._controls.items():
            net = world.controlnets[kind]
            residuals = control_residuals(net, control, x, timesteps, by_network[net], self._mask)
            for block, residual in zip(blocks, residuals, strict=False):
                weighted = residual * self._weights[kind]
                total[block] = total[block] + weighted if block in total else weighted
        return total

    @property
    def _wan(self) -> WanAutoencoder:
        assert isinstance(self.autoencoder, WanAutoencoder)
        return self.autoencoder

    def _encoded(self, clip: Tensor, number: int) -> Tensor:
        """A chunk of a control clip as latents, its last frame repeated where it is too short."""
        start, length = number * self.stride, self.world.chunk_frames
        part = clip[: self.request.frames][start : start + length]
        part = torch.cat([part, part[-1:].expand(length - len(part), -1, -1, -1)])
        return self._wan.encode(to_pixels(part, self.world.device), self.noise()).to(self.world.dtype)


def _weights(world: CosmosWorld, inputs: Inputs) -> dict[str, float]:
    """How strongly each control acts; weights that sum to more than 1 are scaled to sum to 1.

    Raises:
        InvalidRequestError: there are no controls, or two for one network.
    """
    if not inputs.controls:
        accepted = f"one or more of {', '.join(world.controlnets)}"
        raise InvalidRequestError(Problem("controls", "none", accepted))
    nets = [world.controlnets[kind] for kind in inputs.controls]
    if len(set(nets)) < len(nets):
        given = ", ".join(inputs.controls)
        raise InvalidRequestError(Problem("controls", given, "one control: this checkpoint has one control network"))
    weights: dict[str, float] = {control.kind: control.weight for control in inputs.request.controls}
    total = max(1.0, sum(weights.values()))
    return {kind: weights[kind] / total for kind in inputs.controls}
