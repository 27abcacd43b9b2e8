"""The Predict2.5-style family: one flow model for text, image and video, conditioned by leading clean latent frames.

The denoiser is diffusers' `CosmosTransformer3DModel`. Conditioning frames enter as clean latents in the first latent
frames of the sequence, marked in a mask channel and by a timestep of their own; the other frames carry noise at level
sigma, `x = (1 - sigma) * x0 + sigma * noise`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

import torch
from diffusers.models.transformers.transformer_cosmos import CosmosTransformer3DModel
from torch import Tensor

from cosmorama.diffusion.schedule import Schedule, flow_schedule, karras_flow_schedule
from cosmorama.request import Capabilities, Solver
from cosmorama.world.base import TextEmbedding
from cosmorama.world.cosmos_forward import cosmos_forward

Prediction = Literal["sample", "velocity"]


class Autoencoder(Protocol):
    """A causal video tokenizer: the first latent frame is the first frame alone."""

    def latents_shape(self, frames: int, height: int, width: int) -> tuple[int, ...]:
        """Shape `[1, C, T, h, w]` of the latents of a clip of frames in pixels."""
        ...

    def encode(self, frames: Tensor) -> Tensor:
        """Frames `[1, 3, T, H, W]` in -1..1 to latents."""
        ...

    def decode_stream(self, latents: Tensor, height: int, width: int) -> Iterator[Tensor]:
        """Latents to uint8 frames `[t, H, W, 3]`, in order."""
        ...


class TextEncoder(Protocol):
    """Prompts to states `[B, S, D]` and a mask `[B, S]` of the real tokens."""

    def __call__(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Encode a batch of prompts."""
        ...


@dataclass(frozen=True, slots=True)
class FlowConfig:
    """How this checkpoint was trained, as far as sampling depends on it.

    Attributes:
        prediction: What the network outputs: the clean sample, or the velocity `noise - x0`.
        timestep_scale: The network reads `sigma * timestep_scale`.
        flow_shift: Shift of the sampling schedule towards noise (arXiv 2403.03206).
        guidance: Points (request's scale, weight) of a rising, piecewise linear map to the weight in
            `uncond + weight * (cond - uncond)`.
        conditioning_timestep: What the network reads as the timestep of conditioning frames.
    """

    prediction: Prediction = "velocity"
    timestep_scale: float = 1.0
    flow_shift: float = 5.0
    guidance: tuple[tuple[float, float], ...] = ((1.0, 2.0), (10.0, 11.0))
    conditioning_timestep: float = 0.0


class CosmosFlowWorld:
    """A world model of this family, ready to sample from."""

    def __init__(
        self,
        transformer: CosmosTransformer3DModel,
        autoencoder: Autoencoder,
        text_encoder: TextEncoder,
        config: FlowConfig,
        capabilities: Capabilities,
    ) -> None:
        self._transformer = transformer
        self._autoencoder = autoencoder
        self._text_encoder = text_encoder
        self._config = config
        self._capabilities = capabilities

    @property
    def capabilities(self) -> Capabilities:
        """What requests this model takes."""
        return self._capabilities

    def latents_shape(self, frames: int, height: int, width: int) -> tuple[int, ...]:
        """Shape `[1, C, T, h, w]` of the latents of a clip."""
        return self._autoencoder.latents_shape(frames, height, width)

    def schedule(self, steps: int, solver: Solver) -> Schedule:
        """Shifted, evenly spaced flow times; Karras's levels for `edm_euler`."""
        if solver == "edm_euler":
            return karras_flow_schedule(steps)
        return flow_schedule(steps, shift=self._config.flow_shift)

    def guidance_weight(self, scale: float) -> float:
        """Piecewise linear through the checkpoint's own points, held constant outside them."""
        points = self._config.guidance
        if scale <= points[0][0]:
            return points[0][1]
        for (x0, y0), (x1, y1) in pairwise(points):
            if scale <= x1:
                return y0 + (y1 - y0) * (scale - x0) / (x1 - x0)
        return points[-1][1]

    @torch.inference_mode()
    def encode_text(self, prompt: str) -> TextEmbedding:
        """Read one prompt."""
        states, mask = self._text_encoder([prompt])
        return TextEmbedding(states, mask)

    @torch.inference_mode()
    def encode_frames(self, frames: Tensor) -> Tensor:
        """Conditioning frames, uint8 `[T, H, W, 3]`, to clean latents `[1, C, K, h, w]`."""
        pixels = frames.permute(3, 0, 1, 2)[None].to(torch.float32) / 127.5 - 1
        return self._autoencoder.encode(pixels)

    @torch.inference_mode()
    def denoise(
        self, latents: Tensor, sigma: float, text: TextEmbedding, conditioning: Tensor | None, fps: float
    ) -> Tensor:
        """Estimate the clean latents `[1, C, T, h, w]`; the conditioning frames come back exactly as given."""
        batch, _, frames, height, width = latents.shape
        timesteps = torch.full((batch, frames), sigma * self._config.timestep_scale)
        mask = torch.zeros(batch, 1, frames, height, width)
        known = 0
        if conditioning is not None:
            known = conditioning.shape[2]
            mask[:, :, :known] = 1
            timesteps[:, :known] = self._config.conditioning_timestep
            latents = torch.cat([conditioning, latents[:, :, known:]], dim=2)
        output = cosmos_forward(
            self._transformer,
            latents,
            timesteps,
            text.states,
            text_mask=text.mask,
            condition_mask=mask,
            fps=fps,
        )
        denoised = output if self._config.prediction == "sample" else latents - sigma * output
        if conditioning is None:
            return denoised
        return torch.cat([conditioning, denoised[:, :, known:]], dim=2)

    def decode(self, latents: Tensor, height: int, width: int) -> Iterator[Tensor]:
        """Frames in chunks, uint8 `[t, height, width, 3]`."""
        with torch.inference_mode():
            yield from self._autoencoder.decode_stream(latents, height, width)
