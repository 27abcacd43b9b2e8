"""The Predict2.5-style family: one flow model for text, image and video, conditioned by leading clean latent frames.

The denoiser is a Cosmos transformer. Conditioning frames enter as clean latents in the first latent
frames of the sequence, marked in a mask channel and by a timestep of their own; the other frames carry noise at level
sigma, `x = (1 - sigma) * x0 + sigma * noise`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from cosmorama.diffusion.schedule import Schedule, flow_schedule, karras_flow_schedule
from cosmorama.diffusion.solvers import initial_noise
from cosmorama.request import Capabilities, GenerationRequest, Size
from cosmorama.text.gist import corridor_in, gist, on_the_move, understood
from cosmorama.text.language import canonical_caption
from cosmorama.text.reader import NamedObject, written_out
from cosmorama.world.base import Inputs, ReadText, Relayed, Sampling, TextEmbedding, World
from cosmorama.world.cosmos.forward import Positions, TextContext, cosmos_forward, positions_of, projected, text_context
from cosmorama.world.microcosm.autoencoder import VideoAutoencoder, averaged_down
from cosmorama.world.microcosm.drive_net import DriveNet
from cosmorama.world.microcosm.driving import DRIVE, CorridorSampling, StillSampling, steered
from cosmorama.world.microcosm.finder import Finder
from cosmorama.world.microcosm.layout import Layout, names, recolored
from cosmorama.world.microcosm.mover import Mover
from cosmorama.world.microcosm.moving import MovedSampling, followed, wanted
from cosmorama.world.microcosm.still_refiner import Recognised, StillRefiner
from cosmorama.world.microcosm.transformer import CosmosTransformer
from cosmorama.world.vae.tiles import Autoencoder

Prediction = Literal["sample", "velocity", "blend"]
GuidanceMap = tuple[tuple[float, float], ...]

_FEW_WORDS = "this model knows a few words only"
_STILLS, _SURE_STEPS = 3, 12
"""How often a still from text is sampled at most until it shows what its prompt names, and from how many steps on: with
fewer it is for want of steps."""
_ANOTHER = 0.4
"""How much of what was left to do another still is."""
_DETERMINED = 4
"""Latent frames after given ones that `noise_onward` is for; over as many more the noise grows to its full strength."""


@runtime_checkable
class SmallAutoencoder(Protocol):
    """A video tokenizer that sees the world at an eighth of the output size; see `VideoAutoencoder`."""

    def hold(self, latents: Tensor) -> Tensor:
        """The last frame of latents `[1, C, T, h, w]` standing still: `[1, C, 1, h, w]`."""
        ...

    def small_stream(self, latents: Tensor, height: int, width: int) -> Iterator[Tensor]:
        """Latents `[1, C, T, h, w]` of a clip of that output size to frames `[t, 3, h, w]`, sides an eighth of it."""
        ...

    def enlarge(self, frames: Tensor) -> Tensor:
        """These to uint8 `[t, 8 h, 8 w, 3]`."""
        ...

    def encode_small(self, frames: Tensor) -> Tensor:
        """A clip `[1, 3, 1 + 8 k, height, width]` of that size to latents."""
        ...


class TextEncoder(Protocol):
    """Prompts to states `[B, S, D]` and a mask `[B, S]` of the real tokens."""

    def unread(self, prompt: str) -> str | None:
        """What of a prompt is not read, in a sentence; None: little or nothing."""
        ...

    def __call__(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Encode a batch of prompts."""
        ...


@dataclass(frozen=True, slots=True)
class FlowConfig:
    """How this checkpoint was trained, as far as sampling depends on it.

    Attributes:
        prediction: What the network outputs: the clean sample, the velocity `noise - x0`, or a blend: one channel more,
            which says how much of the last conditioning frame stays, less 1; the others are what is added to that. A
            network that blends also reads the conditioning frames as they are, see `beside`.
        timestep_scale: The network reads `sigma * timestep_scale`.
        flow_shift: Shift of the sampling schedule towards noise (arXiv 2403.03206).
        flow_shift_onward: The same for what goes on from given frames; None: no other.
        guidance: Points (request's scale, weight) of a rising, piecewise linear map to the weight in
            `uncond + weight * (cond - uncond)`.
        guidance_onward: The same for what goes on from given frames, which say most of what is to be seen.
        noise_onward: How strong the first noise is of the frames just after given ones, 0 to 1. Less leaves less to
            chance: they come nearer to what most likely follows, and those of different seeds nearer to each other.
            What is further off is less determined, and the noise there as strong as it was in training.
        conditioning_timestep: What the network reads as the timestep of conditioning frames.
        still_first: A clip from text is made in two goes: its first frame alone, then the rest from that.
    """

    prediction: Prediction = "velocity"
    timestep_scale: float = 1.0
    flow_shift: float = 5.0
    flow_shift_onward: float | None = None
    guidance: GuidanceMap = ((1.0, 2.0), (10.0, 11.0))
    guidance_onward: GuidanceMap | None = None
    noise_onward: float = 1.0
    conditioning_timestep: float = 0.0
    still_first: bool = False


class FlowWorld(World):
    """What the worlds of this family have in common, whatever their network.

    Attributes:
        driver: What drives through the corridor, and what finds out where that begins, if the checkpoint has them.
        still_refiner: What draws sampled stills again, if it has that.
        mover: What moves their objects, and those of given pictures, so that a clip is drawn.
    """

    driver: tuple[DriveNet, Finder] | None = None
    still_refiner: StillRefiner | None = None
    mover: Mover | None = None

    def __init__(
        self,
        autoencoder: Autoencoder,
        text_encoder: TextEncoder,
        config: FlowConfig,
        capabilities: Capabilities,
    ) -> None:
        self.autoencoder = autoencoder
        self.config = config
        self._text_encoder = text_encoder
        self.capabilities = capabilities

    @torch.inference_mode()
    def encode_text(self, prompt: str) -> TextEmbedding:
        """Read one prompt; of free words what this world has pictures for, written out as its captions are."""
        known = gist(prompt)
        states, mask = self._text_encoder([written_out(known) if known else prompt])
        if known is not None:
            note: str | None = f"the prompt was read as {known!r}: {_FEW_WORDS}"
        else:
            note = self._text_encoder.unread(prompt)
            if note is None and prompt.strip() and understood(prompt) is None:
                note = f"the prompt was not read as a scene, its words were taken one by one: {_FEW_WORDS}"
        return TextEmbedding(states, mask, note=note)

    @torch.inference_mode()
    def encode_frames(self, frames: Tensor) -> Tensor:
        """Conditioning frames, uint8 `[T, H, W, 3]`, to clean latents `[1, C, K, h, w]`."""
        return self.autoencoder.encode(as_input(frames))

    def begin(self, inputs: Inputs, read: ReadText) -> Sampling:
        """Read the prompts and encode the conditioning frames of a request."""
        if inputs.request.mode != "forward_dynamics":
            return self.begin_clip(inputs, read)
        assert self.driver is not None
        return steered(self.driver, self.autoencoder, inputs, read)

    def begin_clip(self, inputs: Inputs, read: ReadText) -> Sampling:
        """The same for a request without actions."""
        raise NotImplementedError

    def guidance_weight(self, scale: float, *, onward: bool = False) -> float:
        """Piecewise linear through the checkpoint's own points, held constant outside them.

        Args:
            scale: The request's.
            onward: Whether the clip goes on from given frames.
        """
        points = (self.config.guidance_onward if onward else None) or self.config.guidance
        if scale <= points[0][0]:
            return points[0][1]
        for (x0, y0), (x1, y1) in pairwise(points):
            if scale <= x1:
                return y0 + (y1 - y0) * (scale - x0) / (x1 - x0)
        return points[-1][1]

    def schedule(self, request: GenerationRequest, *, onward: bool) -> Schedule:
        """Noise levels of a request, `onward` from given frames or not."""
        if request.solver == "edm_euler":
            return _schedule(request.steps, None)
        shift = (self.config.flow_shift_onward if onward else None) or self.config.flow_shift
        return _schedule(request.steps, request.flow_shift or shift)

    def read(self, inputs: Inputs, read: ReadText) -> dict[bool, TextEmbedding]:
        """A request's prompt (False), and its negative prompt (True) where there is guidance."""
        texts = {False: read(inputs.prompt)}
        scale = inputs.request.guidance_scale
        if any(self.guidance_weight(scale, onward=onward) != 1 for onward in (False, True)):
            texts[True] = read(inputs.request.negative_prompt)
        return texts


class CosmosFlowWorld(FlowWorld):
    """A world model of this family with a transformer, ready to sample from."""

    def __init__(
        self,
        transformer: CosmosTransformer,
        autoencoder: Autoencoder,
        text_encoder: TextEncoder,
        config: FlowConfig,
        capabilities: Capabilities,
    ) -> None:
        super().__init__(autoencoder, text_encoder, config, capabilities)
        self.transformer = transformer

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The transformer."""
        return (self.transformer,)

    def begin_clip(self, inputs: Inputs, read: ReadText) -> Sampling:
        """See `FlowWorld`."""
        request = inputs.request
        if inputs.frames is not None:
            moved = self._from_given(inputs, read) if request.frames > 1 else None
            return moved or CosmosFlowSampling(self, inputs, read)
        if not self.config.still_first:
            return CosmosFlowSampling(self, inputs, read)
        still = CosmosFlowSampling(self, replace(inputs, request=replace(request, frames=1)), read)
        wide = Size(request.width, request.height) in DRIVE.sizes
        if self.driver and wide and corridor_in(inputs.prompt):
            return CorridorSampling(still, self.driver, self.autoencoder, inputs, read)
        return still if request.frames == 1 else StillFirstSampling(self, still, inputs, read)

    @torch.inference_mode()
    def _from_given(self, inputs: Inputs, read: ReadText) -> MovedSampling | None:
        """What goes on from given frames of which all is known."""
        if self.still_refiner is None or self.mover is None or inputs.frames is None:
            return None
        if inputs.request.frames <= len(inputs.frames):  # nothing is to follow
            return None
        given = averaged_down(as_input(inputs.frames))[0].transpose(0, 1)
        found = followed(self.still_refiner, given, inputs.prompt, read(inputs.prompt).states[:, 0])
        return None if found is None else self.moved(*found, given, inputs, read, sampled=False)

    def moved(
        self, scene: Recognised, looks: Layout, known: Tensor, inputs: Inputs, read: ReadText, *, sampled: bool
    ) -> MovedSampling:
        """See `MovedSampling`."""
        assert self.mover is not None
        assert self.still_refiner is not None
        assert isinstance(self.autoencoder, VideoAutoencoder)
        networks, text = (self.mover, self.still_refiner), read(inputs.prompt).states[:, 0]
        return MovedSampling(
            networks, scene, looks, known, inputs.prompt, text, inputs.request, self.autoencoder, sampled=sampled
        )


class CosmosFlowSampling(StillSampling):
    """One request on a model of this family.

    Attributes:
        scene: What a still from text shows, once it was refined, if that is known.
    """

    def __init__(self, world: CosmosFlowWorld, inputs: Inputs, read: ReadText) -> None:
        self._world, self._request = world, inputs.request
        self._prompt, self._read = inputs.prompt, read
        self._texts, self._from_text = world.read(inputs, read), inputs.frames is None
        self._others = 0  # stills before this one
        self._held: Tensor | None = None
        self._wanted = self._drawn_of = wanted(inputs.prompt)
        self.scene: Recognised | None = None
        self._positions: Positions | None = None
        self.go_on_from(None if inputs.frames is None else world.encode_frames(inputs.frames))
        self._contexts: dict[bool, TextContext] = {}
        colors = [thing.color for thing in self._wanted if thing.color]
        if self._may_miss and len(set(colors)) < len(colors):  # no scene has two of one color
            self._tell_otherwise()

    def initial(self) -> Tensor:
        """Noise `[1, C, T, h, w]`."""
        return self._noise(self._request.frames)

    def _noise(self, frames: int) -> Tensor:
        assert self._request.seed is not None
        shape = self._shape(frames)
        noise = initial_noise((1 + self._others, *shape[1:]), self._request.seed)[-1:] * self.schedule.sigmas[0]
        return noise if self._known is None else noise * self._strengths(noise.shape[2])

    def renoise(self, denoised: Tensor, index: int) -> Tensor | None:
        """Nothing is. After the last step of a still it is known whether there has to be another."""
        if self._may_miss and self._request.frames == 1 and index == self.schedule.steps - 1:
            self.refined(denoised)
            stills = 1 + self._others + self.misses
            self.shares = (1 / stills,) * stills
        return None

    @property
    def _may_miss(self) -> bool:
        """Whether it can be known that the still does not show what its prompt names, and there may be another."""
        known = self._wanted and self._from_text and self._world.still_refiner is not None
        return bool(known) and self._request.steps >= _SURE_STEPS and self._others + 1 < _STILLS

    @property
    def misses(self) -> bool:
        """Whether the still that was refined last does not show the objects that its prompt names, and another may."""
        return self._may_miss and (self.scene is None or not names(self.scene.layout, self._wanted))

    @property
    def notes(self) -> tuple[str, ...]:
        """See `Sampling`."""
        again = "once" if self._others == 1 else "twice"
        return (f"the still was sampled {again} more: it did not show what the prompt names",) if self._others else ()

    def next_chunk(self, latents: Tensor) -> Tensor:
        """Noise for another still, told of the objects in other words. A clip moves them as its prompt says."""
        self._others += 1
        self._tell_otherwise()
        return self.initial()

    def _tell_otherwise(self) -> None:
        """Have the objects drawn as they are seen most often; see `on_the_move`."""
        if (scene := on_the_move(self._prompt)) is not None:
            self._texts[False] = self._read(canonical_caption(scene))
            self._contexts.pop(False, None)
            self._drawn_of = tuple(NamedObject(thing.shape, thing.color) for thing in scene.objects)

    def _strengths(self, frames: int) -> Tensor:
        """How strong the first noise of each latent frame is, `[T, 1, 1]`, of what goes on from given frames."""
        assert self._known is not None
        least, near = self._world.config.noise_onward, _DETERMINED
        distance = torch.arange(1, frames + 1) - self._known.shape[2]
        return (least + (1 - least) * ((distance - near) / near).clamp(0, 1)).view(-1, 1, 1)

    def _shape(self, frames: int) -> tuple[int, ...]:
        request, world = self._request, self._world
        return world.autoencoder.latents_shape(world.capabilities.frames.next(frames), request.height, request.width)

    @torch.inference_mode()
    def go_on_from(self, known: Tensor | None) -> None:
        """Go on from clean latents `[1, C, K, h, w]`, or from text alone."""
        world, onward = self._world, known is not None
        self.schedule = world.schedule(self._request, onward=onward)
        self.guidance_weight = world.guidance_weight(self._request.guidance_scale, onward=onward)
        self._known, self._positions = known, None
        if known is not None and world.config.prediction == "blend":
            autoencoder = self._world.autoencoder
            assert isinstance(autoencoder, SmallAutoencoder)
            self._held = autoencoder.hold(known)

    @torch.inference_mode()
    def denoise(self, latents: Tensor, index: int, *, negative: bool = False) -> Tensor:
        """Estimate the clean latents `[1, C, T, h, w]`; the conditioning frames come back exactly as given."""
        config, sigma, conditioning = self._world.config, self.schedule.sigmas[index], self._known
        batch, _, frames, height, width = latents.shape
        timesteps = torch.full((batch, frames), sigma * config.timestep_scale)
        mask = torch.zeros(batch, 1, frames, height, width)
        known = 0
        if conditioning is not None:
            known = conditioning.shape[2]
            mask[:, :, :known] = 1
            timesteps[:, :known] = config.conditioning_timestep
            latents = torch.cat([conditioning, latents[:, :, known:]], dim=2)
        if self._positions is None:
            self._positions = positions_of(self._world.transformer, latents, self._request.fps)
        if config.prediction == "blend":
            latents = torch.cat([latents, beside(latents, conditioning)], dim=1)
        output = cosmos_forward(
            self._world.transformer,
            latents,
            timesteps,
            self._context(negative),
            condition_mask=mask,
            positions=self._positions,
        )
        if config.prediction == "blend":
            denoised = blended(output, self._held)
        else:
            denoised = latents - sigma * output if config.prediction == "velocity" else output
        if conditioning is None:
            return denoised
        return torch.cat([conditioning, denoised[:, :, known:]], dim=2)

    def _context(self, negative: bool) -> TextContext:
        """What the network's blocks read of a prompt, the same at every step."""
        if negative not in self._contexts:
            text, net = self._texts[negative], self._world.transformer
            self._contexts[negative] = text_context(net, projected(net, text.states), mask=text.mask)
        return self._contexts[negative]

    @torch.inference_mode()
    def refined(self, latents: Tensor) -> Tensor:
        """Clean latents `[1, C, T, h, w]` as they are shown: a still from text is drawn again if that can be."""
        refiner, autoencoder = self._world.still_refiner, self._world.autoencoder
        if refiner is None or not self._from_text or latents.shape[2] > 1:
            return latents
        assert isinstance(autoencoder, SmallAutoencoder)
        still = next(autoencoder.small_stream(latents, self._request.height, self._request.width))
        text = self._texts[False].states[:, 0]
        self.scene = refiner.recognised(still, text, self._drawn_of)
        if self.scene is not None and names(self.scene.layout, self._drawn_of):
            for had, other in zip(self._drawn_of, self._wanted, strict=True):
                if had.color and other.color and had.color != other.color:  # two of one color, which are in no scene
                    layout = recolored(self.scene.layout, had.color, other.color)
                    self.scene = Recognised(refiner.draw(self.scene.still, layout, text).clamp(-1, 1), layout)
        return latents if self.scene is None else autoencoder.encode_small(self.scene.still[:, :, None])

    @torch.inference_mode()
    def shown(self, latents: Tensor) -> Iterator[Tensor]:
        """Small frames of clean latents, `[t, 3, h, w]`: as the autoencoder has them, or a still drawn again."""
        latents, autoencoder, request = self.refined(latents), self._world.autoencoder, self._request
        assert isinstance(autoencoder, SmallAutoencoder)
        if self.scene is not None and latents.shape[2] == 1:
            yield self.scene.still
        else:
            yield from autoencoder.small_stream(latents, request.height, request.width)

    @torch.inference_mode()  # while it runs, and not while its caller does: clips may be decoded in turns
    def decode(self, latents: Tensor, chunk: int = 0) -> Iterator[Tensor]:
        """Frames in chunks, uint8 `[t, height, width, 3]`."""
        height, width, autoencoder = self._request.height, self._request.width, self._world.autoencoder
        assert isinstance(autoencoder, SmallAutoencoder)
        if chunk + 1 < len(self.shares):  # there is a better one
            return
        for frames in self.shown(latents):
            yield autoencoder.enlarge(frames)[:, :height, :width]

    @torch.inference_mode()  # while it runs, and not while its caller does: clips may be decoded in turns
    def preview(self, latents: Tensor) -> Iterator[Tensor]:
        """What is being sampled, as it is."""
        yield from self._world.autoencoder.decode_stream(latents, self._request.height, self._request.width)


class StillFirstSampling(Relayed):
    """Text to a clip: the first frame as a still, which takes a fraction of the time, then the clip from that.

    Where all of the still is known, its objects are moved and each frame is drawn; else the clip is sampled from it.
    """

    def __init__(self, world: CosmosFlowWorld, still: CosmosFlowSampling, inputs: Inputs, read: ReadText) -> None:
        self._world, self._inputs, self._read = world, inputs, read
        self.inner = self._still = still
        self.schedule, self.guidance_weight = still.schedule, still.guidance_weight
        request = inputs.request
        count = world.autoencoder.latents_shape(request.frames, request.height, request.width)[2]
        # Where all frames are drawn, that takes about as long as the still; else that has one latent frame of all.
        still_share = 0.5 if world.mover is not None and wanted(inputs.prompt) else 1 / (1 + count)
        self.shares = still_share, 1 - still_share

    @property
    def notes(self) -> tuple[str, ...]:
        """See `Sampling`."""
        return self._still.notes

    def renoise(self, denoised: Tensor, index: int) -> Tensor | None:
        """Nothing is."""
        return None

    @torch.inference_mode()
    def next_chunk(self, latents: Tensor) -> Tensor:
        """Where the whole clip begins, which goes on from the still as it would from a given image; or another still,
        if this one does not show what the prompt names.
        """
        latents, scene = self._still.refined(latents), self._still.scene
        if self._still.misses:
            *done, left = self.shares
            self.shares = *done, left * _ANOTHER, left * (1 - _ANOTHER)
            return self._still.next_chunk(latents)
        if scene is not None and self._world.mover is not None:
            inputs, read = self._inputs, self._read
            self.inner = self._world.moved(scene, scene.layout, scene.still, inputs, read, sampled=True)
        else:
            clip = CosmosFlowSampling(self._world, self._inputs, self._read)
            clip.go_on_from(latents)
            self.inner = clip
        self.schedule, self.guidance_weight = self.inner.schedule, self.inner.guidance_weight
        return self.inner.initial()

    def decode(self, latents: Tensor, chunk: int = 0) -> Iterator[Tensor]:
        """Frames of the clip, which the still is the first of."""
        return self.inner.decode(latents) if chunk + 1 == len(self.shares) else iter(())


def as_input(frames: Tensor) -> Tensor:
    """Frames, uint8 `[T, H, W, 3]`, as the autoencoder reads them, `[1, 3, T, H, W]` in [-1, 1]."""
    return frames.permute(3, 0, 1, 2)[None].to(torch.float32) / 127.5 - 1


def beside(latents: Tensor, known: Tensor | None) -> Tensor:
    """What a network that blends reads beside latents `[B, C, T, h, w]`, in as many channels again.

    The conditioning frames `[B, C, K, h, w]`, and for every later frame the last of them; zeros without any.

    Read apart from the noise, what is faint in them (how things move) can weigh as much as what is strong.
    """
    if known is None:
        return torch.zeros_like(latents)
    later = latents.shape[2] - known.shape[2]
    return torch.cat([known, known[:, :, -1:].expand(-1, -1, later, -1, -1)], dim=2)


def blended(output: Tensor, held: Tensor | None) -> Tensor:
    """The clean sample `[B, C, T, h, w]` from a network's `C + 1` channels and the last conditioning frame.

    The last channel decides, cell by cell, how much of the frame stays, 0 being all of it: what stands still needs no
    copying through the network, and where something moves on, its old picture goes in one number.
    """
    added, stays = output[:, :-1], output[:, -1:]
    return added if held is None else torch.addcmul(added, held, 1 + stays)


@lru_cache(maxsize=64)
def _schedule(steps: int, shift: float | None) -> Schedule:
    """Shifted, evenly spaced flow times; without a shift Karras's levels."""
    return karras_flow_schedule(steps) if shift is None else flow_schedule(steps, shift=shift)
