"""A Cosmos3 model, and one request on it: what it conditions on, its noise, and one evaluation of the network.

A clip may follow control clips (edges, blur, depth, segmentation, maps of the world), chunk after chunk, or be made by
a student of a few steps (distilled).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cosmorama.errors import InvalidRequestError, Problem
from cosmorama.request import Capabilities, ResolvedRequest
from cosmorama.resolve import robot_state
from cosmorama.world.base import Inputs, ReadText, Sampling, TextEmbedding, World
from cosmorama.world.chunks import Chunks
from cosmorama.world.cosmos3.capabilities import ACTION_MODES, KINDS
from cosmorama.world.cosmos3.forward import (
    FRAMES_PER_LATENT,
    ActionRows,
    KeyValue,
    Layout,
    generate,
    given_actions,
    layout_of,
    text_memory,
    understand,
)
from cosmorama.world.cosmos3.prompt import ClipFacts, chat, described, described_action, described_negative
from cosmorama.world.levels import distilled_levels, unipc_levels
from cosmorama.world.load.offload import TextHalf
from cosmorama.world.vae.pixels import to_pixels
from cosmorama.world.vae.wan import WanAutoencoder

VISION_START = "<|vision_start|>"
_CHUNK_FRAMES = 93
_STRENGTH = 1.5
"""Of guidance by controls, where the request does not say: the Cosmos3 NIM's."""


@dataclass(frozen=True, slots=True)
class Cosmos3Config:
    """What sampling depends on besides the networks.

    Attributes:
        scheduler: Of the `UniPCMultistepScheduler`.
        native_levels: Space the levels as the pipeline's `use_native_flow_schedule` does.
        distilled: The levels that a distilled model was trained for; None: it is none.
        system_prompt: Begin the chat with the system prompt.
        release_text: Drop the weights that only text runs through once a prompt is read.
    """

    scheduler: dict[str, Any]
    native_levels: bool
    system_prompt: bool
    release_text: bool = False
    distilled: tuple[float, ...] | None = None


class Cosmos3World(World):
    """A Cosmos3 model, ready to sample from."""

    def __init__(
        self,
        transformer: Any,
        autoencoder: WanAutoencoder,
        tokenizer: Any,
        config: Cosmos3Config,
        capabilities: Capabilities,
        text_half: TextHalf,
    ) -> None:
        self.transformer, self.autoencoder, self.tokenizer = transformer, autoencoder, tokenizer
        self.config, self.capabilities, self.text_half = config, capabilities, text_half
        self.device = transformer.device
        self._ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(VISION_START)]

    @property
    def networks(self) -> tuple[torch.nn.Module, ...]:
        """The transformer, of which the half that generates is shared."""
        return (self.transformer,)

    @torch.inference_mode()
    def encode_text(self, prompt: str) -> TextEmbedding:
        """Run a text through the understanding half.

        Args:
            prompt: Chat as `prompt.chat` writes it: what the model reads depends on the clip too.

        Returns:
            Keys and values of every layer.
        """
        self.text_half.restore()
        return TextEmbedding(understand(self.transformer, self.tokens(prompt)))

    def tokens(self, chat: str) -> Tensor:
        """Token numbers `[S]` of a text."""
        ids = self.tokenizer(chat, add_special_tokens=False)["input_ids"]
        return torch.tensor([*ids, *self._ends], device=self.transformer.device)

    @torch.inference_mode()
    def begin(self, inputs: Inputs, read: ReadText) -> Cosmos3Sampling:
        """Read the prompts and encode the given frames of a request.

        Raises:
            InvalidRequestError: the inputs do not fit the mode.
        """
        sampling = self._sampling_of(inputs.request)(self, inputs, read)
        if self.config.release_text:
            self.text_half.release()
        return sampling

    def _sampling_of(self, request: ResolvedRequest) -> type[Cosmos3Sampling]:
        if self.config.distilled is not None:
            return DistilledSampling
        return Cosmos3TransferSampling if request.mode == "transfer" else Cosmos3Sampling


@dataclass(frozen=True, slots=True)
class Branch:
    """One prompt as the generated tokens see it, and how many tokens it has."""

    memory: list[KeyValue]
    tokens: int
    layout: Layout


class Cosmos3Sampling(Sampling):
    """One request.

    Latents are `[1, C, T, h, w]`; with actions one row `[1, n]`, the numbers of the clip, then those of the actions. A
    robot's state is a clean action before the others, at the time of the first frame.
    """

    def __init__(self, world: Cosmos3World, inputs: Inputs, read: ReadText) -> None:
        request = inputs.request
        assert request.seed is not None
        self._world, self._request = world, request
        self.generator = torch.Generator("cpu").manual_seed(request.seed)
        frames = self._frames_at_once()
        self._autoencoder = world.autoencoder.tiled(request.vae_tiling or 0)
        self._shape = self._autoencoder.latents_shape(frames, request.height, request.width)
        self._clip = ClipFacts(request.width, request.height, frames, request.fps)
        self._domain = self._action = self._state = None
        if request.mode in ACTION_MODES:
            self._action = request.action
            assert self._action is not None
            wanted = self._action.domain
            self._domain = next(domain for domain in world.capabilities.action_domains if domain.id == wanted)
            if world.capabilities.action_only:
                self._state = _as_trained(torch.tensor(robot_state(self._action)))
        self._given = self._encode_given(inputs.frames)
        self._kept = self._kept_frames()
        config, steps, shift = world.config, request.steps, request.flow_shift
        if config.distilled is None:
            self._levels = unipc_levels(config.scheduler, steps, flow_shift=shift, native=config.native_levels)
        else:
            self._levels = distilled_levels(config.scheduler, config.distilled)
        self.schedule, self.guidance_weight = self._levels.schedule, request.guidance_scale
        text, negative = self._texts(inputs.prompt, request.negative_prompt)
        self._branches = {False: self._branch(text, read)}
        if self.guidance_weight != 1:
            self._branches[True] = self._branch(negative, read)

    def initial(self) -> Tensor:
        """The given latents and actions, and noise in place of the others."""
        clip = self._noise()
        if self._action is None or self._domain is None:
            return clip
        width = self._world.transformer.config.action_dim
        actions = torch.randn(self._rows, width, generator=self.generator)
        if self._request.mode == "forward_dynamics":
            actions = given_actions(self._action, width)
        actions = self._keep_state(actions, self._domain.width)
        return torch.cat([clip.reshape(1, -1), actions.to(clip.device).reshape(1, -1)], dim=1)

    @torch.inference_mode()
    def denoise(self, latents: Tensor, index: int, *, negative: bool = False) -> Tensor:
        """Estimate the clean latents; what was given comes back as it was."""
        branch = self._branches[negative]
        sigma, timestep = self.schedule.sigmas[index], float(self._levels.timesteps[index])
        clip, actions = self._unpack(latents)
        velocity, drift = generate(self._world.transformer, branch.memory, branch.layout, clip, timestep, actions)
        clip = self._keep_given(clip - sigma * velocity.float())
        if actions is None or drift is None or self._domain is None:
            return clip
        if self._request.mode != "forward_dynamics":
            actions = self._keep_state(actions - sigma * drift.float(), self._domain.width)
        return torch.cat([clip.reshape(1, -1), actions.reshape(1, -1)], dim=1)

    @torch.inference_mode()  # while it runs, and not while its caller does: clips may be decoded in turns
    def decode(self, latents: Tensor, chunk: int = 0) -> Iterator[Tensor]:
        clip, _ = self._unpack(latents)
        yield from self._autoencoder.decode_stream(clip, self._request.height, self._request.width)

    def actions(self, latents: Tensor) -> Tensor | None:
        """The predicted actions `[steps, numbers]`; None where they were given or there are none."""
        _, actions = self._unpack(latents)
        if actions is None or self._domain is None or self._request.mode == "forward_dynamics":
            return None
        actions = actions[:, : self._domain.width]
        return actions if self._state is None else _as_trained(actions[1:])

    def _frames_at_once(self) -> int:
        """The request's frames, and as many more as the model needs."""
        return self._world.capabilities.frames.next(self._request.frames)

    def _texts(self, prompt: str, negative: str) -> tuple[str, str]:
        """The prompts with what they say about the clip."""
        if self._action is not None:
            droid = self._state is not None
            return described_action(prompt, self._clip, self._action.view, droid=droid), negative
        return described(prompt, self._clip), described_negative(negative, self._clip)

    def _encode_given(self, frames: Tensor | None) -> Tensor | None:
        request, length = self._request, self._clip.frames
        if frames is None:
            if self._action is not None:
                field = "video" if request.mode == "inverse_dynamics" else "image"
                raise InvalidRequestError(Problem(field, None, f"given for {request.mode}"))
            return None
        if request.mode == "inverse_dynamics" and len(frames) != length:
            raise InvalidRequestError(Problem("video", f"{len(frames)} frames", f"{length}: action.steps + 1"))
        if request.conditioning_indexes is not None:
            frames = frames[:length]
        elif request.mode != "inverse_dynamics" and len(frames) >= length:
            raise InvalidRequestError(Problem("frames", request.frames, f"more than the {len(frames)} given"))
        latents = (len(frames) - 1) // FRAMES_PER_LATENT + 1
        # The encoder is causal: the first latents do not depend on later frames.
        return self._autoencoder.encode(to_pixels(frames, self._world.device))[:, :, :latents]

    def _branch(self, text: str, read: ReadText) -> Branch:
        world = self._world
        kind = "transfer" if self._request.mode == "transfer" else self._clip.kind
        states = read(chat(world.tokenizer, text, kind, system_prompt=world.config.system_prompt)).states
        return Branch(text_memory(world.transformer, states), states.shape[1], self._layout(states.shape[1]))

    def _layout(self, text_length: int, before: int = 0) -> Layout:
        rows = None
        if self._action is not None and self._domain is not None:
            noisy = 0 if self._request.mode == "forward_dynamics" else self._action.steps
            rows = ActionRows(self._domain.id, self._rows, noisy, from_first=self._state is not None)
        fps = self._request.fps
        return layout_of(
            self._world.transformer, self._shape, fps, text_length, self._kept, before=before, actions=rows
        )

    def _noise(self) -> Tensor:
        """Standard normal noise, with the given latents in their places."""
        return self._keep_given(torch.randn(self._shape, generator=self.generator).to(self._world.device))

    def _keep_given(self, clip: Tensor) -> Tensor:
        if self._given is None:
            return clip
        kept = clip.clone()
        for frame in self._kept:  # one by one: a list of them would have to travel to the device at every step
            kept[:, :, frame] = self._given[:, :, frame]
        return kept

    def _kept_frames(self) -> list[int]:
        """The latent frames that are given: the first ones, or those that the request names."""
        if self._given is None:
            return []
        return list(self._request.conditioning_indexes or range(self._given.shape[2]))

    def _unpack(self, latents: Tensor) -> tuple[Tensor, Tensor | None]:
        if self._action is None:
            return latents, None
        split = torch.Size(self._shape).numel()
        return latents[:, :split].view(self._shape), latents[0, split:].view(self._rows, -1)

    @property
    def _rows(self) -> int:
        """Of numbers: the actions, and the state before them."""
        return (self._action.steps if self._action else 0) + (self._state is not None)

    def _keep_state(self, actions: Tensor, width: int) -> Tensor:
        actions[:, width:] = 0
        if self._state is not None:
            actions[0, :width] = self._state
        return actions


def _as_trained(joints: Tensor) -> Tensor:
    """Joints and gripper `[..., 8]`, whose last number is how far it is open: robots say how far it is closed."""
    joints = joints.clone()
    joints[..., -1] = 1 - joints[..., -1]
    return joints


class DistilledSampling(Cosmos3Sampling):
    """One request on a distilled (few-step) model: every step goes to the clean clip and back with fresh noise.

    The numbers of `Cosmos3DistilledModularPipeline`: a stochastic `FlowMatchEulerDiscreteScheduler` at the levels that
    the student was trained for. Guidance is in its weights.
    """

    _noises: tuple[int, Tensor] | None = None

    def renoise(self, denoised: Tensor, index: int) -> Tensor:
        """The clean latents with fresh noise up to the next level; those given stay."""
        if self._noises is None or self._noises[0] != index:  # or the step is done again
            self._noises = index, torch.randn(self._shape, generator=self.generator)
        sigma = self.schedule.sigmas[index + 1]
        return self._keep_given((1 - sigma) * denoised + sigma * self._noises[1].to(denoised.device))


class Cosmos3TransferSampling(Chunks, Cosmos3Sampling):
    """One request that follows control clips.

    The numbers of diffusers' modular `Cosmos3OmniModularPipeline` with `control_videos`: the controls are clean clips
    in front of the sampled one, at the same positions. How strongly they act is a guidance of its own, between the clip
    with them and without. Each chunk after the first starts from the last frames of the one before.
    """

    def __init__(self, world: Cosmos3World, inputs: Inputs, read: ReadText) -> None:
        request = inputs.request
        _check(inputs)
        self._clips = [inputs.controls[kind] for kind in KINDS if kind in inputs.controls]
        self._frames = min(request.frames, len(self._clips[0]))
        self._strength = _STRENGTH if request.control_guidance is None else request.control_guidance
        super().__init__(world, replace(inputs, frames=None), read)
        self._first = inputs.frames
        self.chunk(self._frames, self._clip.frames, request.conditioning_frames or 0)

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
        for pixels in self._autoencoder.decode_pixels(latents):
            yield pixels[..., : self._request.height, : self._request.width]

    def _frames_at_once(self) -> int:
        wanted = self._request.chunk_frames or min(_CHUNK_FRAMES, self._frames)
        return 1 if self._frames == 1 else 1 - (1 - wanted) // FRAMES_PER_LATENT * FRAMES_PER_LATENT

    def _texts(self, prompt: str, negative: str) -> tuple[str, str]:
        """As they are: prompts of these clips are captions that say everything themselves."""
        return prompt, negative

    def start(self, number: int, begins: Tensor | None) -> Tensor:
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
        return self._noise()


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
