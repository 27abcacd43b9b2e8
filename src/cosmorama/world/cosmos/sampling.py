"""What these families have in common: a Cosmos transformer, a text encoder, a video tokenizer (VAE), one request."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cosmorama.request import Capabilities
from cosmorama.world.base import Inputs, ReadText, Sampling, TextEmbedding, World
from cosmorama.world.cosmos.forward import (
    Positions,
    TextContext,
    cosmos_forward,
    positions_of,
    projected,
    text_context,
    text_width,
)
from cosmorama.world.vae.pixels import to_pixels
from cosmorama.world.vae.tiles import TilingAutoencoder

CHUNK_FRAMES = 93


class CosmosWorld(World):
    """A world model of one of these families, ready to sample from.

    Attributes:
        scheduler: What its `scheduler_config.json` holds.
        controlnets: By the kind of control they take; one for any kind is there under every kind.
        fps_modulation: Whether positions in time follow the frame rate, where that is not the family's own to say.
        dtype: In which the transformer computes.
        chunk_frames: Frames of a chunk, 4k + 1, of clips that are made in several.
    """

    def __init__(
        self,
        transformer: Any,
        autoencoder: TilingAutoencoder,
        read_text: Callable[[str], TextEmbedding],
        scheduler: dict[str, Any],
        capabilities: Capabilities,
        sampling: type[CosmosSampling],
        *,
        controlnets: Mapping[str, nn.Module] | None = None,
        fps_modulation: bool = False,
        chunk_frames: int = CHUNK_FRAMES,
    ) -> None:
        self.transformer, self.autoencoder, self.read_text = transformer, autoencoder, read_text
        self.scheduler, self.capabilities = scheduler, capabilities
        self.controlnets: dict[str, nn.Module] = dict(controlnets or {})
        self.fps_modulation = fps_modulation
        self.chunk_frames = chunk_frames
        # diffusers' own answer: that of where it runs, also while its weights wait elsewhere.
        self.device = transformer.device
        # Not that of all its parameters: learned positions stay in float32.
        self.dtype: torch.dtype = transformer.patch_embed.proj.weight.dtype
        self._sampling = sampling

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The transformer, then every ControlNet once. All of them read prompts."""
        return self.transformer, *dict.fromkeys(self.controlnets.values())

    @torch.inference_mode()
    def encode_text(self, prompt: str) -> TextEmbedding:
        """Read one prompt, up to what the networks' blocks read of it: states as each projects them, side by side.

        Predict2.5's encoder gives states 100352 wide; projected, a prompt is a hundredth of that to remember.
        """
        text = self.read_text(prompt)
        states = text.states.to(self.device, self.dtype)
        return replace(text, states=torch.cat([projected(network, states) for network in self.networks], dim=-1))

    @torch.inference_mode()
    def begin(self, inputs: Inputs, read: ReadText) -> CosmosSampling:
        """Read the prompts, and encode the conditioning frames of a request.

        Raises:
            InvalidRequestError: its controls cannot act.
        """
        return self._sampling(self, inputs, read)


class CosmosSampling(Sampling):
    """One request on a Cosmos model.

    Attributes:
        autoencoder: The model's, working in such tiles as the request asks for.
        guidance_weight: 1 + the guidance scale; these models add the difference to the conditional prediction. At a
            scale of 1 or less there is no guidance, and the weight is 1.
        frames: How many are made at once.
        shape: Of their latents, `[1, C, T, h, w]`.
        known: Latents `[1, C, K, h, w]` of the conditioning frames, or None.
    """

    def __init__(self, world: CosmosWorld, inputs: Inputs, read: ReadText) -> None:
        request = inputs.request
        assert request.seed is not None
        self.request, self.world = request, world
        self.autoencoder = world.autoencoder.tiled(request.vae_tiling or 0)
        self.generator = torch.Generator("cpu").manual_seed(request.seed)
        scale = request.guidance_scale
        self.guidance_weight = 1 + scale if scale > 1 else 1.0
        self.frames = self.frames_at_once()
        self.shape = self.autoencoder.latents_shape(self.frames, request.height, request.width)
        self._texts = {False: read(inputs.prompt)}
        if self.guidance_weight != 1:
            self._texts[True] = read(request.negative_prompt)
        self._contexts: dict[bool, list[TextContext]] = {}
        self._positions: Positions | None = None
        # Of a clip that begins with these the first latents: the tokenizer is causal.
        self.known = None if inputs.frames is None else self.encode(to_pixels(inputs.frames, world.device))

    @property
    def given(self) -> int:
        """Latent frames that are given."""
        return 0 if self.known is None else self.known.shape[2]

    def initial(self) -> Tensor:
        return self.noise() * self.schedule.sigmas[0]

    def frames_at_once(self) -> int:
        """The request's frames, and as many more as the model needs."""
        return self.world.capabilities.frames.next(self.request.frames)

    @torch.inference_mode()  # while it runs, and not while its caller does: clips may be decoded in turns
    def decode(self, latents: Tensor, chunk: int = 0) -> Iterator[Tensor]:
        yield from self.autoencoder.decode_stream(self.unscaled(latents), self.request.height, self.request.width)

    def unscaled(self, latents: Tensor) -> Tensor:
        """Latents as the tokenizer has them, where the family samples at another scale."""
        return latents

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels `[1, 3, T, H, W]` in -1..1 to latents at the tokenizer's scale."""
        return self.autoencoder.encode(pixels)

    def noise(self) -> Tensor:
        """Standard normal noise `[1, C, T, h, w]`, the next of this request's."""
        return torch.randn(self.shape, generator=self.generator, dtype=torch.float32).to(self.world.device)

    def mask(self, frames: int) -> Tensor:
        """The mask channel `[1, 1, T, h, w]` with the first `frames` latent frames marked."""
        mask = torch.zeros(1, 1, *self.shape[2:], device=self.world.device)
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
        net, x = self.world.transformer, latents.to(self.world.dtype)
        if self._positions is None:
            self._positions = positions_of(net, x, fps)
        text, *others = self._context(negative)
        residuals = self.residuals(x, timesteps, others)
        return cosmos_forward(
            net, x, timesteps, text, condition_mask=mask, positions=self._positions, residuals=residuals
        ).float()

    def residuals(self, x: Tensor, timesteps: Tensor, texts: list[TextContext]) -> dict[int, Tensor] | None:
        """What ControlNets add behind the transformer's blocks, by the blocks' indices; `texts` as each reads them."""
        return None

    def _context(self, negative: bool) -> list[TextContext]:
        """A prompt as each of the world's networks reads it."""
        if negative not in self._contexts:
            text, networks = self._texts[negative], self.world.networks
            states = text.states.to(self.world.device, self.world.dtype).split([*map(text_width, networks)], dim=-1)
            self._contexts[negative] = [
                text_context(network, part, mask=text.mask, repeats=text.repeats)
                for network, part in zip(networks, states, strict=True)
            ]
        return self._contexts[negative]
