"""Cosmos3 following control clips (edges, blur, depth, segmentation, maps of the world), chunk after chunk.

The numbers of diffusers' modular `Cosmos3OmniModularPipeline` with `control_videos`: the controls are clean clips in
front of the sampled one, at the same positions. How strongly they act is a guidance of its own, between the clip with
them and without. Each chunk after the first starts from the last frames of the one before, decoded and encoded again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from cosmorama.errors import InvalidRequestError, Problem
from cosmorama.world.base import Inputs, ReadText
from cosmorama.world.chunks import Chunks
from cosmorama.world.cosmos3.capabilities import KINDS
from cosmorama.world.cosmos3.forward import generate
from cosmorama.world.cosmos3.sampling import FRAMES_PER_LATENT, Branch, Cosmos3Sampling, Cosmos3World
from cosmorama.world.vae.pixels import to_pixels

_CHUNK_FRAMES = 93
_STRENGTH = 1.5
"""Of guidance by controls, where the request does not say: the Cosmos3 NIM's."""


class Cosmos3TransferSampling(Chunks, Cosmos3Sampling):
    """One request that follows control clips."""

    def __init__(self, world: Cosmos3World, inputs: Inputs, read: ReadText) -> None:
        request = inputs.request
        _check(inputs)
        self._clips = [inputs.controls[kind] for kind in KINDS if kind in inputs.controls]
        self._frames = min(request.frames, len(self._clips[0]))
        self._strength = _STRENGTH if request.control_guidance is None else request.control_guidance
        super().__init__(world, replace(inputs, frames=None), read)
        self._first = inputs.frames
        self.chunk(self._frames, self._clip.frames, request.conditioning_frames or 0)
        assert request.seed is not None
        self.generator = torch.Generator("cpu").manual_seed(request.seed)

    def initial(self) -> Tensor:
        """The first chunk's noise, behind frames of the video where they are given."""
        given = self._request.first_conditioning_frames or 0
        return self.start(0, None if self._first is None else to_pixels(self._first[:given], self._world.device))

    @torch.inference_mode()
    def denoise(self, latents: Tensor, index: int, *, negative: bool = False) -> Tensor:
        """Estimate the clean latents; what was given comes back as it was."""
        net, branch, sigma = self._world.transformer, self._branches[negative], self.schedule.sigmas[index]
        timestep = float(self._levels.timesteps[index])
        velocity = generate(net, branch.memory, branch.layout, latents, timestep, before=self._controls)[0].float()
        if not negative and self._strength != 1:
            alone = generate(net, branch.memory, self._alone, latents, timestep)[0].float()
            velocity = alone + self._strength * (velocity - alone)
        return self._keep_given(latents - sigma * velocity)

    def pixels(self, latents: Tensor) -> Iterator[Tensor]:
        """A chunk's pixels, piece by piece."""
        for pixels in self._autoencoder.decode_pixels(latents):
            yield pixels[..., : self._request.height, : self._request.width]

    def _frames_at_once(self) -> int:
        """Those of a chunk."""
        wanted = self._request.chunk_frames or min(_CHUNK_FRAMES, self._frames)
        return 1 if self._frames == 1 else 1 - (1 - wanted) // FRAMES_PER_LATENT * FRAMES_PER_LATENT

    def _texts(self, prompt: str, negative: str) -> tuple[str, str]:
        """As they are: prompts of these clips are captions that say everything themselves."""
        return prompt, negative

    def start(self, number: int, begins: Tensor | None) -> Tensor:
        """Noise for a chunk, and its conditions."""
        world, length = self._world, self._clip.frames
        self._given = None
        if begins is not None and begins.shape[2]:
            whole = 1 + (min(begins.shape[2], length) - 1) // FRAMES_PER_LATENT * FRAMES_PER_LATENT
            self._given = self._autoencoder.encode(begins[:, :, :whole])
        self._kept = self._kept_frames()
        start = number * self.stride
        self._controls = [
            self._autoencoder.encode(to_pixels(_part(clip, start, length, self._frames), world.device))
            for clip in self._clips
        ]
        self._branches = {
            negative: Branch(branch.memory, branch.tokens, self._layout(branch.tokens, before=len(self._controls)))
            for negative, branch in self._branches.items()
        }
        self._alone = self._layout(self._branches[False].tokens)
        noise = torch.randn(self._shape, generator=self.generator)
        return self._keep_given(noise.to(world.device))


def _part(clip: Tensor, start: int, length: int, total: int) -> Tensor:
    """What a chunk of so many frames follows of a control clip, of which `total` count."""
    whole = _longer(clip, max(total, length))
    return _longer(whole[start : min(start + length, total)], length)


def _longer(clip: Tensor, frames: int) -> Tensor:
    """A clip `[T, ...]` of at least so many frames: played backwards and forwards, or its single frame repeated."""
    while len(clip) < frames:
        missing = min(len(clip) - 1, frames - len(clip))
        if missing < 1:
            return torch.cat([clip, clip[-1:].expand(frames - len(clip), *clip.shape[1:])])
        clip = torch.cat([clip, clip.flip(0)[:missing]])
    return clip


def _check(inputs: Inputs) -> None:
    if not inputs.controls:
        raise InvalidRequestError(Problem("controls", "none", f"one or more of {', '.join(KINDS)}"))
    weights = {control.weight for control in inputs.request.controls}
    if len(weights) > 1 or 0 in weights:
        accepted = "equal weights above 0: Cosmos3 has none of single controls; control_guidance is that of all"
        raise InvalidRequestError(Problem("controls", sorted(weights), accepted))
