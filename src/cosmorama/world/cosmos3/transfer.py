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
from cosmorama.request import ControlKind
from cosmorama.world.base import Inputs, ReadText
from cosmorama.world.cosmos3.forward import generate
from cosmorama.world.cosmos3.sampling import FRAMES_PER_LATENT, Branch, Cosmos3Sampling, Cosmos3World
from cosmorama.world.vae.pixels import to_frames, to_pixels

KINDS: tuple[ControlKind, ...] = ("edge", "vis", "depth", "seg", "wsm")
"""In the order in which the model reads them."""
_CHUNK_FRAMES = 93
_STRENGTH = 1.5
"""Of guidance by controls, where the request does not say: the Cosmos3 NIM's."""


class Cosmos3TransferSampling(Cosmos3Sampling):
    """One request that follows control clips."""

    def __init__(self, world: Cosmos3World, inputs: Inputs, read: ReadText) -> None:
        request = inputs.request
        _check(inputs)
        self._clips = [inputs.controls[kind] for kind in KINDS if kind in inputs.controls]
        self._total = min(request.frames, len(self._clips[0]))
        self._overlap = request.conditioning_frames or 0
        self._strength = _STRENGTH if request.control_guidance is None else request.control_guidance
        super().__init__(world, replace(inputs, frames=None), read)
        self._first = inputs.frames
        chunk = self._clip.frames
        self._stride = chunk - self._overlap
        if self._stride < 1 < self._total:
            raise InvalidRequestError(Problem("conditioning_frames", self._overlap, f"fewer than the chunk's {chunk}"))
        chunks = 1 if self._total <= chunk else 1 - (chunk - self._total) // self._stride
        self.shares = (1 / chunks,) * chunks
        assert request.seed is not None
        self._generator = torch.Generator("cpu").manual_seed(request.seed)
        self._alone = self._branches[False].layout  # without controls
        self._number = 0
        self._ending: Tensor | None = None  # pixels of this chunk's last frames, once they are decoded

    def initial(self) -> Tensor:
        """The first chunk's noise, behind frames of the video where they are given."""
        given = self._request.first_conditioning_frames or 0
        begins = None if self._first is None or not given else to_pixels(self._first[:given], self._world.device)
        return self._start(0, begins)

    @torch.inference_mode()
    def next_chunk(self, latents: Tensor) -> Tensor:
        """Start the next chunk from the end of a finished one."""
        if self._ending is None:
            for _ in self.decode(latents, self._number):
                pass
        state = self._generator.get_state()
        try:
            first = self._start(self._number + 1, self._ending)
        except BaseException:  # as if it had not been begun: where memory ran out it is tried again
            self._generator.set_state(state)
            raise
        self._number, self._ending = self._number + 1, None
        return first

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

    @torch.inference_mode()  # while it runs, and not while its caller does: clips may be decoded in turns
    def decode(self, latents: Tensor, chunk: int = 0) -> Iterator[Tensor]:
        """The frames of a chunk that the one before has not shown, uint8 `[t, height, width, 3]`."""
        position = chunk * self._stride
        shown = position + self._overlap if chunk else 0
        latest: list[Tensor] = []
        for pixels in self._autoencoder.decode_pixels(latents):
            pixels = pixels[..., : self._request.height, : self._request.width]
            new = pixels[:, :, max(shown - position, 0) : max(self._total - position, 0)]
            position += pixels.shape[2]
            latest = [*latest, pixels][-1 - self._overlap // FRAMES_PER_LATENT - 1 :]
            if new.shape[2]:
                yield to_frames(new)
        if chunk == self._number:
            frames = torch.cat(latest, dim=2)
            self._ending = frames[:, :, frames.shape[2] - self._overlap :]

    def preview(self, latents: Tensor) -> Iterator[Tensor]:
        """The beginning of the chunk that is being sampled."""
        return self._autoencoder.decode_stream(latents, self._request.height, self._request.width)

    def _frames_at_once(self) -> int:
        """Those of a chunk."""
        wanted = self._request.chunk_frames or min(_CHUNK_FRAMES, self._total)
        return 1 if self._total == 1 else 1 - (1 - wanted) // FRAMES_PER_LATENT * FRAMES_PER_LATENT

    def _texts(self, prompt: str, negative: str) -> tuple[str, str]:
        """As they are: prompts of these clips are captions that say everything themselves."""
        return prompt, negative

    def _start(self, number: int, begins: Tensor | None) -> Tensor:
        """Noise for a chunk that begins with pixels `[1, 3, t, H, W]`, and its conditions."""
        world, length = self._world, self._clip.frames
        self._given = None
        if begins is not None and begins.shape[2]:
            whole = 1 + (min(begins.shape[2], length) - 1) // FRAMES_PER_LATENT * FRAMES_PER_LATENT
            self._given = self._autoencoder.encode(begins[:, :, :whole])
        self._kept = self._kept_frames()
        start = number * self._stride
        self._controls = [
            self._autoencoder.encode(to_pixels(_part(clip, start, length, self._total), world.device))
            for clip in self._clips
        ]
        self._branches = {
            negative: Branch(branch.memory, branch.tokens, self._layout(branch.tokens, before=len(self._controls)))
            for negative, branch in self._branches.items()
        }
        self._alone = self._layout(self._branches[False].tokens)
        noise = torch.randn(self._shape, generator=self._generator)
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
