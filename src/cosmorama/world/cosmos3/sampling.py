"""A Cosmos3 model, and one request on it: what it conditions on, its noise, and one evaluation of the network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cosmorama.errors import InvalidRequestError, Problem
from cosmorama.request import Capabilities, ResolvedRequest
from cosmorama.resolve import robot_state
from cosmorama.world.base import Inputs, ReadText, Sampling, TextEmbedding, World
from cosmorama.world.cosmos.levels import Levels, distilled_levels, unipc_levels
from cosmorama.world.cosmos3.action import ACTION_MODES, given_actions
from cosmorama.world.cosmos3.forward import KeyValue, Layout, generate, rotary_embedding, text_memory, understand
from cosmorama.world.cosmos3.prompt import ClipFacts, chat, described, described_action, described_negative
from cosmorama.world.cosmos3.weights import TextHalf
from cosmorama.world.vae.pixels import to_pixels
from cosmorama.world.vae.wan import WanAutoencoder

FRAMES_PER_LATENT = 4
"""After the first, which stands alone."""


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
        transfer: type[Cosmos3Sampling],
    ) -> None:
        self.transformer = transformer
        self.autoencoder = autoencoder
        self.tokenizer = tokenizer
        self.config = config
        self.text_half = text_half
        self._transfer = transfer
        self.capabilities = capabilities
        self.device = self.transformer.device
        self._ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|vision_start|>")]

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
        return self._transfer if request.mode == "transfer" else Cosmos3Sampling


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
        self._world, self._request = world, request
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
        self._levels = self._place_levels()
        self.schedule = self._levels.schedule
        self.guidance_weight = request.guidance_scale
        text, negative = self._texts(inputs.prompt, request.negative_prompt)
        self._branches = {False: self._branch(text, read)}
        if self.guidance_weight != 1:
            self._branches[True] = self._branch(negative, read)

    def initial(self) -> Tensor:
        """The given latents and actions, and noise in place of the others."""
        request, action = self._request, self._action
        assert request.seed is not None
        generator = torch.Generator("cpu").manual_seed(request.seed)
        device = self._world.device
        clip = self._keep_given(torch.randn(self._shape, generator=generator).to(device))
        if action is None or self._domain is None:
            return clip
        width = self._world.transformer.config.action_dim
        actions = torch.randn(self._rows, width, generator=generator)
        if request.mode == "forward_dynamics":
            actions = given_actions(action, width)
        actions = self._keep_state(actions, self._domain.width)
        return torch.cat([clip.reshape(1, -1), actions.to(device).reshape(1, -1)], dim=1)

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
        """Frames in chunks, uint8 `[t, height, width, 3]`."""
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

    def _place_levels(self) -> Levels:
        config, request = self._world.config, self._request
        return unipc_levels(config.scheduler, request.steps, flow_shift=request.flow_shift, native=config.native_levels)

    def _branch(self, text: str, read: ReadText) -> Branch:
        world = self._world
        kind = "transfer" if self._request.mode == "transfer" else self._clip.kind
        states = read(chat(world.tokenizer, text, kind, system_prompt=world.config.system_prompt)).states
        return Branch(text_memory(world.transformer, states), states.shape[1], self._layout(states.shape[1]))

    def _layout(self, text_length: int, before: int = 0) -> Layout:
        """Positions of the generated tokens: time goes on after the text, rows and columns start at 0.

        Args:
            text_length: In tokens.
            before: How many clean clips of the same size come before, at the same positions.
        """
        config = self._world.transformer.config
        _, _, frames, height, width = self._shape
        patch = config.latent_patch_size
        rows, columns = -(-height // patch), -(-width // patch)
        offset = text_length + config.unified_3d_mrope_temporal_modality_margin
        fps = self._request.fps if config.enable_fps_modulation else None
        common = {"temporal_offset": offset, "fps": fps, "base_fps": float(config.base_fps)}
        common["reset_spatial_indices"] = config.unified_3d_mrope_reset_spatial_ids
        # Its module needs transformers, which a server of other models may be without.
        from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import get_3d_mrope_ids_vae_tokens

        positions, _ = get_3d_mrope_ids_vae_tokens(
            frames, rows, columns, temporal_compression_factor=FRAMES_PER_LATENT, **common
        )
        noisy = torch.ones(frames, rows * columns, dtype=torch.bool)
        noisy[self._kept] = False
        noisy = torch.cat([torch.zeros(before * noisy.numel(), 1, dtype=torch.bool), noisy.reshape(-1, 1)])
        positions = positions.repeat(1, before + 1)
        if self._action is not None:
            # An action lies between two frames: the first one with the second frame.
            of_actions, _ = get_3d_mrope_ids_vae_tokens(
                self._rows,
                1,
                1,
                temporal_compression_factor=1,
                base_temporal_compression_factor=FRAMES_PER_LATENT,
                start_frame_offset=1 if self._state is None else 0,
                **common,
            )
            positions = torch.cat([positions, of_actions], dim=1)
            free = self._request.mode != "forward_dynamics"
            acting = torch.full((self._rows, 1), free)
            acting[: self._rows - self._action.steps] = False
            noisy = torch.cat([noisy, acting])
        domain = None if self._domain is None else self._domain.id
        device = self._world.device
        rotary = rotary_embedding(self._world.transformer, positions.to(device))
        return Layout(height, width, rotary, noisy.to(device), domain)

    def _keep_given(self, clip: Tensor) -> Tensor:
        if self._given is None:
            return clip
        kept = clip.clone()
        kept[:, :, self._kept] = self._given[:, :, self._kept]
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

    def __init__(self, world: Cosmos3World, inputs: Inputs, read: ReadText) -> None:
        super().__init__(world, inputs, read)
        self._generator = torch.Generator("cpu")
        self._noises: dict[int, Tensor] = {}

    def initial(self) -> Tensor:
        """Noise, and the given latents in their places."""
        assert self._request.seed is not None
        self._noises.clear()
        self._generator.manual_seed(self._request.seed)
        noise = torch.randn(self._shape, generator=self._generator)
        return self._keep_given(noise.to(self._world.device))

    def renoise(self, denoised: Tensor, index: int) -> Tensor:
        """The clean latents with fresh noise up to the next level; those given stay."""
        if index not in self._noises:  # or the step is done again
            self._noises = {index: torch.randn(self._shape, generator=self._generator)}
        sigma = self.schedule.sigmas[index + 1]
        noise = self._noises[index].to(denoised.device)
        return self._keep_given((1 - sigma) * denoised + sigma * noise)

    def _place_levels(self) -> Levels:
        config = self._world.config
        assert config.distilled is not None
        return distilled_levels(config.scheduler, config.distilled)
