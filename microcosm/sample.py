"""A plain Euler sampler that draws batches of clips, to look at checkpoints apart from the server's engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import CosmosTransformer3DModel
from numpy.typing import NDArray
from torch import Tensor

from cosmorama.world.cosmos_forward import cosmos_forward
from cosmorama.world.microcosm.autoencoder import VideoAutoencoder
from cosmorama.world.microcosm.loader import load_component
from cosmorama.world.microcosm.text_encoder import TextEncoder


@dataclass(frozen=True, slots=True)
class Model:
    """The three networks of a weights folder, and its `world.json`."""

    net: Any
    text_encoder: TextEncoder
    vae: VideoAutoencoder
    facts: dict[str, Any]

    @classmethod
    def load(cls, folder: Path) -> Model:
        """Load a weights folder in float32."""
        net, text_encoder, vae = (
            load_component(kind, folder / part)
            for kind, part in (
                (CosmosTransformer3DModel, "transformer"),
                (TextEncoder, "text_encoder"),
                (VideoAutoencoder, "vae"),
            )
        )
        return cls(net, text_encoder, vae, json.loads((folder / "world.json").read_text()))

    @torch.inference_mode()
    def sample(
        self,
        prompts: Sequence[str],
        latent_size: tuple[int, int, int],
        *,
        given: Tensor | None = None,
        fps: float = 24.0,
        steps: int = 35,
        weight: float = 2.5,
        seed: int = 0,
        negative: str = "",
    ) -> Tensor:
        """Euler's method on dx/dt = (x - x_0) / t with guided x_0 = uncond + weight (cond - uncond).

        Args:
            prompts: One per clip.
            latent_size: (T, H, W) of the latents.
            given: Clean latents [B, C, k, H, W] of the first frames, or None.
            fps: Frame rate.
            steps: Number of Euler steps.
            weight: Guidance weight; 1 evaluates the prompt alone.
            seed: Of the initial noise.
            negative: What the unconditional evaluation reads.

        Returns:
            Latents [B, C, T, H, W].
        """
        count, channels = len(prompts), self.vae.config.channels
        x = torch.randn(count, channels, *latent_size, generator=torch.Generator().manual_seed(seed))
        known = 0 if given is None else given.shape[2]
        mask = torch.zeros(count, 1, *latent_size)
        mask[:, :, :known] = 1
        texts = [self.text_encoder(list(prompts))]
        if weight != 1:
            texts.append(self.text_encoder([negative] * count))
        levels = torch.linspace(1, 0, steps + 1)
        levels = self.facts["flow_shift"] * levels / (1 + (self.facts["flow_shift"] - 1) * levels)
        for t, t_next in pairwise(levels):
            timesteps = torch.full((count, latent_size[0]), float(t) * self.facts["timestep_scale"])
            timesteps[:, :known] = 0
            if given is not None:
                x[:, :, :known] = given
            clean = [
                cosmos_forward(self.net, x, timesteps, text, text_mask=keep, condition_mask=mask, fps=fps)
                for text, keep in texts
            ]
            guided = clean[0] if weight == 1 else clean[1] + weight * (clean[0] - clean[1])
            x = x + (t_next - t) * (x - guided) / t
        if given is not None:
            x[:, :, :known] = given
        return x

    @torch.inference_mode()
    def frames(self, latents: Tensor, width: int, height: int) -> NDArray[np.uint8]:
        """Decode latents [B, C, T, H, W] to small frames uint8 [B, 1 + 8 (T - 1), height, width, 3]."""
        small = torch.cat([self.vae.decode_small(one[None], height, width) for one in latents])[:, :, 7:]
        return to_uint8(small)


def to_uint8(frames: Tensor) -> NDArray[np.uint8]:
    """Float [B, 3, T, h, w] in [-1, 1] to uint8 [B, T, h, w, 3]."""
    pixels: NDArray[np.uint8] = (frames * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1).numpy()
    return pixels
