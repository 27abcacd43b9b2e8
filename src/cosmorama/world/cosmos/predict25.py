"""Predict2.5, one flow model for text, image and video; and Transfer2.5, which is Predict2.5 with ControlNets.

The same numbers as diffusers' `Cosmos2_5_PredictBasePipeline`. Conditioning frames enter clean, with a timestep close
to 0. In the sampled latents they follow their true velocity, `noise - clean`, from the noise that the request begins
with: since that is not quite all noise (sigma = 0.995), half a percent of it is still in them at the end.

A clip of Transfer2.5 follows control clips (edges, depth, segmentation, a blurred picture) in its structure, with the
numbers of `Cosmos2_5_TransferPipeline`. It is made in chunks of 93 frames; each after the first starts from the last
frame of the one before, decoded and encoded again. A shorter last chunk is sampled whole, its control repeating its
last frame, and cut. Of `CosmosControlNetModel` what depends on the request alone is taken out of the steps: the
control's own tokens, positions, and the keys and values of the text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from cosmorama.errors import InvalidRequestError, Problem
from cosmorama.world.base import Inputs, ReadText
from cosmorama.world.chunks import Chunks
from cosmorama.world.cosmos.forward import Positions, TextContext, block_forward, positions_of
from cosmorama.world.cosmos.sampling import CosmosSampling, CosmosWorld
from cosmorama.world.kernels.gpu import block_of
from cosmorama.world.levels import unipc_levels
from cosmorama.world.ranks.shares import share_of
from cosmorama.world.vae.pixels import to_pixels
from cosmorama.world.vae.wan import WanAutoencoder

_OVERLAP = 1
"""Frames that a chunk repeats of the one before."""


class Predict25Sampling(CosmosSampling):
    """One request on a Predict2.5 model.

    Attributes:
        conditioning_timestep: What the network reads as the timestep of the conditioning frames.
    """

    conditioning_timestep = 0.0001

    def __init__(self, world: CosmosWorld, inputs: Inputs, read: ReadText) -> None:
        super().__init__(world, inputs, read)
        request = self.request
        self.schedule = unipc_levels(world.scheduler, request.steps, flow_shift=request.flow_shift).schedule

    def initial(self) -> Tensor:
        return self.go_on_from(self.known, self.noise())

    def go_on_from(self, known: Tensor | None, noise: Tensor) -> Tensor:
        """Let noise `[1, C, T, h, w]` lead to a clip that begins with clean latents `[1, C, K, h, w]`, if any."""
        self.known = known
        self._mask = self.mask(self.given)
        self._velocity = None if known is None else noise[:, :, : self.given] - known
        return noise

    @torch.inference_mode()
    def denoise(self, latents: Tensor, index: int, *, negative: bool = False) -> Tensor:
        """Estimate the clean latents; conditioning frames where their true velocity leads from where they are."""
        sigma, given = self.schedule.sigmas[index], self.given
        timesteps = torch.full((1, latents.shape[2]), sigma, device=latents.device)
        timesteps[:, :given] = self.conditioning_timestep
        x = latents if self.known is None else torch.cat([self.known, latents[:, :, given:]], dim=2)
        velocity = self.evaluate(x, timesteps, negative=negative, mask=self._mask)
        if self._velocity is not None:
            velocity = torch.cat([self._velocity, velocity[:, :, given:]], dim=2)
        return latents - sigma * velocity


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


@dataclass(frozen=True, slots=True)
class ControlTokens:
    """A control clip as the first block takes it in: `[B, T, N, hidden]`, and where those tokens are."""

    tokens: Tensor
    positions: Positions


def control_tokens(model: nn.Module, control: Tensor, condition_mask: Tensor) -> ControlTokens:
    """Bring the latents of a control clip `[B, C, T, H, W]` into a `CosmosControlNetModel`; given frames are masked."""
    net: Any = model
    batch, channels, frames, height, width = control.shape
    room = net.config.in_channels - 2 - channels  # the mask and the padding mask come last
    x = torch.cat([control, control.new_zeros(batch, room, frames, height, width), condition_mask], dim=1)
    x = torch.cat([x, x.new_zeros(batch, 1, frames, height, width)], dim=1)
    tokens = net.control_blocks[0].before_proj(net.patch_embed(x).flatten(2, 3))
    return ControlTokens(tokens, positions_of(net, x, None))


def control_residuals(
    model: nn.Module,
    control: ControlTokens,
    latents: Tensor,
    timesteps: Tensor,
    text: TextContext,
    condition_mask: Tensor,
) -> list[Tensor]:
    """Evaluate a `CosmosControlNetModel` beside what is being sampled; arguments are those of `cosmos_forward`.

    Returns:
        One tensor `[B, T, N, hidden]` per block, not weighted; where processes share the tokens, of this one's.
    """
    net: Any = model
    batch, _, frames, height, width = latents.shape
    padding = latents.new_zeros(batch, 1, frames, height, width)
    base = net.patch_embed_base(torch.cat([latents, condition_mask.to(latents.dtype), padding], dim=1)).flatten(2, 3)
    temb, embedded = (part.view(batch, frames, 1, -1) for part in net.time_embed(base, timesteps.flatten()))
    share = share_of(net, base.shape[2])
    tokens, positions = control.tokens + base, control.positions.taken(share, frames)
    if share is not None:
        tokens = share.take(tokens, 2)
    residuals = []
    forward = block_of(net, block_forward) if share is None else block_forward
    for index, block in enumerate(net.control_blocks):
        tokens = forward(block, tokens, text.block(index), embedded, temb, positions, share)
        residuals.append(block.after_proj(tokens))
    return residuals
