"""Microcosm with a U-Net: a still, then windows of five latent frames, each from the end of the one before.

The network never sees more than a window, so a clip of any length costs the same per frame, and training needs short
clips only. The first latent frame of a window is one frame standing still, as the first of every clip is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cosmorama.diffusion.solvers import initial_noise
from cosmorama.request import Capabilities
from cosmorama.world.base import Inputs, ReadText, Sampling
from cosmorama.world.microcosm.autoencoder import FRAMES_PER_LATENT, VideoAutoencoder
from cosmorama.world.microcosm.sampling import FlowConfig, FlowWorld, beside, blended
from cosmorama.world.microcosm.text_encoder import TextEncoder
from cosmorama.world.microcosm.unet import VideoUNet

WINDOW = 5
"""Latent frames that are made at once."""
GIVEN = 2
"""Latent frames that a window goes on from, where there are so many."""


@dataclass(frozen=True, slots=True)
class Go:
    """What is made at once: latent frames `start` to `stop`, those before `made` being there already."""

    start: int
    made: int
    stop: int

    @property
    def cost(self) -> int:
        """Latent frames that the network sees."""
        return self.stop - self.start


def plan(given: int, frames: int) -> tuple[Go, ...]:
    """How a clip of `frames` latent frames is made from the first `given` of them, of which 0 are text alone."""
    goes, made = [], given
    if not made:
        goes, made = [Go(0, 0, 1)], 1
    while made < frames:
        # The last window is moved back rather than cut, so that it is as long as those of the training.
        start = max(0, min(made - GIVEN, frames - WINDOW))
        stop = min(start + WINDOW, frames)
        goes.append(Go(start, made, stop))
        made = stop
    return tuple(goes)


class WindowedWorld(FlowWorld):
    """A world model whose network is a U-Net, ready to sample from."""

    autoencoder: VideoAutoencoder
    half: bool
    """Whether the network computes in bfloat16: on processors with AMX, where that is several times as fast."""

    def __init__(
        self,
        net: VideoUNet,
        autoencoder: VideoAutoencoder,
        text_encoder: TextEncoder,
        config: FlowConfig,
        capabilities: Capabilities,
    ) -> None:
        super().__init__(autoencoder, text_encoder, config, capabilities)
        self.net = net
        # As it was trained; without these instructions bfloat16 is slower than float32.
        self.half = bool(torch.cpu.get_capabilities().get("amx_bf16", False))

    def begin_clip(self, inputs: Inputs, read: ReadText) -> WindowedSampling:
        """Read the prompts and encode the conditioning frames of a request."""
        return WindowedSampling(self, inputs, read)


class WindowedSampling(Sampling):
    """One request on such a model. Latents are those of the whole clip, of which every go samples a part."""

    def __init__(self, world: WindowedWorld, inputs: Inputs, read: ReadText) -> None:
        self._world, self._request = world, inputs.request
        self._texts = world.read(inputs, read)
        self._given = None if inputs.frames is None else world.encode_frames(inputs.frames)
        frames = world.capabilities.frames.next(inputs.request.frames)
        self._shape = world.autoencoder.latents_shape(frames, inputs.request.height, inputs.request.width)
        self._goes = plan(0 if self._given is None else self._given.shape[2], self._shape[2])
        self._number = 0
        total = sum(go.cost for go in self._goes)  # every latent frame that the network sees takes as long
        self.shares = tuple(go.cost / total for go in self._goes)
        self._go_on_from(self._given)

    def initial(self) -> Tensor:
        """Noise `[1, C, T, h, w]`; of a clip from text that of its first frame."""
        return self._noise()

    def next_chunk(self, latents: Tensor) -> Tensor:
        """Noise for the whole clip, whose first frames are made."""
        self._go_on_from(latents[:, :, : self._goes[self._number].stop])
        self._number += 1
        return self._noise()

    def _go_on_from(self, clean: Tensor | None) -> None:
        """Levels and guidance differ with whether there is something to go on from."""
        onward = clean is not None
        self._clean = clean
        self.schedule = self._world.schedule(self._request, onward=onward)
        self.guidance_weight = self._world.guidance_weight(self._request.guidance_scale, onward=onward)

    def _noise(self) -> Tensor:
        assert self._request.seed is not None
        frames = 1 if self._clean is None else self._shape[2]
        return initial_noise((*self._shape[:2], frames, *self._shape[3:]), self._request.seed)

    @torch.inference_mode()
    def denoise(self, latents: Tensor, index: int, *, negative: bool = False) -> Tensor:
        """Estimate the clean latents; what is made comes back as it is, and what is to come as the last frame."""
        go, vae, level = self._goes[self._number], self._world.autoencoder, self.schedule.sigmas[index]
        window, known, held = latents[:, :, go.made : go.stop], None, None
        if self._clean is not None:
            known = self._clean[:, :, go.start : go.made]
            if go.start:
                known = torch.cat([vae.hold(known[:, :, :1]), known[:, :, 1:]], dim=2)
            held = vae.hold(known)
            window = torch.cat([known, window], dim=2)
        frames = torch.arange(window.shape[2])
        given = (frames < go.made - go.start)[None]
        text = self._texts[negative]
        assert text.mask is not None
        with torch.autocast("cpu", torch.bfloat16, enabled=self._world.half):
            output = self._world.net(
                window,
                torch.where(given, 0.0, level),
                text.states,
                text.mask,
                beside=beside(window, known),
                given=given,
                seconds=frames[None] * (FRAMES_PER_LATENT / self._request.fps),
            )
        made = blended(output.float(), held)[:, :, go.made - go.start :]
        if self._clean is None or held is None:
            return made
        rest = held.expand(-1, -1, latents.shape[2] - go.stop, -1, -1)
        return torch.cat([self._clean[:, :, : go.made], made, rest], dim=2)

    @torch.inference_mode()  # while it runs, and not while its caller does: clips may be decoded in turns
    def decode(self, latents: Tensor, chunk: int = 0) -> Iterator[Tensor]:
        """Frames of the whole clip once the last part is made, uint8 `[t, height, width, 3]`."""
        if chunk + 1 == len(self._goes):
            yield from self.preview(latents)

    @torch.inference_mode()
    def preview(self, latents: Tensor) -> Iterator[Tensor]:
        """Frames of what is made so far."""
        yield from self._world.autoencoder.decode_stream(latents, self._request.height, self._request.width)
