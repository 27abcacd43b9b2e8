"""What the Predict families have in common: a Cosmos transformer, a text reader, a video tokenizer, and one request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from cosmorama.errors import InvalidRequestError, Problem
from cosmorama.request import Capabilities
from cosmorama.world.base import Inputs, ReadText, Sampling, TextEmbedding, World
from cosmorama.world.cosmos.forward import Positions, cosmos_forward, positions_of
from cosmorama.world.cosmos.text import TextContext, projected, text_context
from cosmorama.world.savings import ALL_SAVINGS, Savings
from cosmorama.world.vae.pixels import to_pixels
from cosmorama.world.vae.tiles import TilingAutoencoder


@dataclass(frozen=True, slots=True)
class CosmosParts:
    """A loaded checkpoint.

    Attributes:
        scheduler: What its `scheduler_config.json` holds.
        fps_modulation: Whether positions in time follow the frame rate, where that is not the family's own to say.
    """

    transformer: nn.Module
    autoencoder: TilingAutoencoder
    read_text: Callable[[str], TextEmbedding]
    scheduler: dict[str, Any]
    capabilities: Capabilities
    savings: Savings = ALL_SAVINGS
    fps_modulation: bool = False

    @property
    def device(self) -> torch.device:
        """Where the transformer is."""
        # diffusers' own answer: that of where it runs, also while its weights wait elsewhere.
        device: torch.device = getattr(self.transformer, "device")  # noqa: B009 - nn.Module's is untyped
        return device

    @property
    def dtype(self) -> torch.dtype:
        """In which the transformer computes."""
        # Not that of all its parameters: learned positions stay in float32.
        weight: Tensor = getattr(self.transformer, "patch_embed").proj.weight  # noqa: B009 - nn.Module's is untyped
        return weight.dtype


class CosmosWorld(World):
    """A world model of one of these families, ready to sample from."""

    def __init__(self, parts: CosmosParts, family: type[CosmosSampling]) -> None:
        self.parts, self._family = parts, family
        self.capabilities, self.device = parts.capabilities, parts.device

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The transformer."""
        return (self.parts.transformer,)

    @torch.inference_mode()
    def encode_text(self, prompt: str) -> TextEmbedding:
        """Read one prompt, up to what the transformer's blocks read of it.

        Predict2.5's encoder gives states 100352 wide; projected, a prompt is a hundredth of that to remember.
        """
        text = self.parts.read_text(prompt)
        states = text.states.to(self.parts.device, self.parts.dtype)
        return replace(text, states=projected(self.parts.transformer, states))

    @torch.inference_mode()
    def begin(self, inputs: Inputs, read: ReadText) -> CosmosSampling:
        """Read the prompts and encode the conditioning frames of a request.

        Raises:
            InvalidRequestError: the clip is larger than the model has positions for.
        """
        return self._family(self.parts, inputs, read)


class CosmosSampling(Sampling):
    """One request on a Cosmos model.

    Attributes:
        schedule: Its noise levels.
        autoencoder: The model's, working in such tiles as the request asks for.
        guidance_weight: 1 + the guidance scale; these models add the difference to the conditional prediction. At a
            scale of 1 or less there is no guidance, and the weight is 1.
        known: Latents `[1, C, K, h, w]` of the conditioning frames, or None.
    """

    def __init__(self, parts: CosmosParts, inputs: Inputs, read: ReadText) -> None:
        request = inputs.request
        assert request.seed is not None
        self.request, self.parts = request, parts
        self.autoencoder = parts.autoencoder.tiled(request.vae_tiling or 0)
        self.generator = torch.Generator("cpu").manual_seed(request.seed)
        scale = request.guidance_scale
        self.guidance_weight = 1 + scale if scale > 1 else 1.0
        self._frames = parts.capabilities.frames.next(request.frames)
        self.shape = self.autoencoder.latents_shape(self._frames, request.height, request.width)
        self._check_size()
        self._texts = {False: read(inputs.prompt)}
        if self.guidance_weight != 1:
            self._texts[True] = read(request.negative_prompt)
        self._contexts: dict[bool, TextContext] = {}
        self._positions: Positions | None = None
        self.known = None if inputs.frames is None else self._encode(inputs.frames)

    @torch.inference_mode()  # while it runs, and not while its caller does: clips may be decoded in turns
    def decode(self, latents: Tensor, chunk: int = 0) -> Iterator[Tensor]:
        """Latents to frames, in order and in chunks: uint8 `[t, height, width, 3]`."""
        yield from self.autoencoder.decode_stream(self.unscaled(latents), self.request.height, self.request.width)

    def unscaled(self, latents: Tensor) -> Tensor:
        """Latents as the tokenizer has them, where the family samples at another scale."""
        return latents

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels `[1, 3, T, H, W]` in -1..1 to latents at the tokenizer's scale."""
        return self.autoencoder.encode(pixels)

    def noise(self) -> Tensor:
        """Standard normal noise `[1, C, T, h, w]`, the next of this request's."""
        return torch.randn(self.shape, generator=self.generator, dtype=torch.float32).to(self.parts.device)

    def mask(self, frames: int) -> Tensor:
        """The mask channel `[1, 1, T, h, w]` with the first `frames` latent frames marked."""
        mask = torch.zeros(1, 1, *self.shape[2:], device=self.parts.device)
        mask[:, :, :frames] = 1
        return mask

    def evaluate(
        self,
        latents: Tensor,
        timesteps: Tensor,
        *,
        negative: bool,
        mask: Tensor | None = None,
        fps: float | None = None,
    ) -> Tensor:
        """What the network predicts, float32: latents `[1, C, T, h, w]`, timesteps `[1, T]` or `[1, 1]`."""
        parts = self.parts
        x = latents.to(parts.dtype)
        positions = self._positions
        if positions is None and parts.savings.cache_positions:
            positions = self._positions = positions_of(parts.transformer, x, fps)
        return cosmos_forward(
            parts.transformer,
            x,
            timesteps,
            self._context(negative),
            condition_mask=mask,
            fps=fps,
            positions=positions,
            adaln_per_frame=parts.savings.adaln_per_frame,
        ).float()

    def _context(self, negative: bool) -> TextContext:
        context = self._contexts.get(negative)
        if context is None:
            text = self._texts[negative]
            states = text.states.to(self.parts.device, self.parts.dtype)
            context = text_context(self.parts.transformer, states, mask=text.mask, repeats=text.repeats)
            if self.parts.savings.cache_cross_attention:
                self._contexts[negative] = context
        return context

    def _encode(self, frames: Tensor) -> Tensor:
        """The first latent frames of a clip that begins with these: the tokenizer is causal."""
        pixels = to_pixels(frames, self.parts.device)
        given = self.autoencoder.latents_shape(len(frames), *frames.shape[1:3])[2]
        if not self.parts.savings.encode_only_given_frames:
            padding = pixels[:, :, -1:].expand(-1, -1, self._frames - len(frames), -1, -1)
            pixels = torch.cat([pixels, padding], dim=2)
        return self.encode(pixels)[:, :, :given]

    def _check_size(self) -> None:
        config: Any = getattr(self.parts.transformer, "config")  # noqa: B009 - nn.Module's is untyped
        request, (_, _, frames, height, width) = self.request, self.shape
        if height > config.max_size[1] or width > config.max_size[2]:
            sides = (request.width * config.max_size[2] // width, request.height * config.max_size[1] // height)
            size = f"{request.width}x{request.height}"
            raise InvalidRequestError(Problem("size", size, f"at most {sides[0]} wide and {sides[1]} high"))
        if frames > config.max_size[0]:
            raise InvalidRequestError(Problem("frames", request.frames, f"at most {config.max_size[0]} latent frames"))
