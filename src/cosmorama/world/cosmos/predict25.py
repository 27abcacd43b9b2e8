"""Predict2.5: one flow model for text, image and video, reading its prompts with a vision-language model.

The same numbers as diffusers' `Cosmos2_5_PredictBasePipeline`. Conditioning frames enter clean, with a timestep close
to 0. In the sampled latents they follow their true velocity, `noise - clean`, from the noise that the request begins
with: since that is not quite all noise (sigma = 0.995), half a percent of it is still in them at the end.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from cosmorama.request import Capabilities, Defaults, FrameRule, Range, Size
from cosmorama.world.base import Inputs, ReadText
from cosmorama.world.cosmos.levels import check_unipc, unipc_levels
from cosmorama.world.cosmos.sampling import CosmosParts, CosmosSampling, CosmosWorld
from cosmorama.world.load.checkpoint import check_parts, load_module
from cosmorama.world.load.files import read_json
from cosmorama.world.load.options import LoadOptions
from cosmorama.world.readers.qwen import QwenReader
from cosmorama.world.vae.tiles import with_tiles
from cosmorama.world.vae.wan import WanAutoencoder

_CONDITIONING_TIMESTEP = 0.0001


def load(folder: Path, options: LoadOptions) -> CosmosWorld:
    """Load a checkpoint.

    Raises:
        ModelNotFoundError: it is incomplete, or its scheduler is none that is supported.
    """
    from diffusers.models.transformers.transformer_cosmos import CosmosTransformer3DModel

    check_parts(folder, ("transformer", "vae", "text_encoder"), "tokenizer", variant=options.variant)
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    check_unipc(scheduler, str(folder / "scheduler"))
    return CosmosWorld(
        CosmosParts(
            load_module(CosmosTransformer3DModel, folder / "transformer", options),
            WanAutoencoder.load(folder / "vae", options),
            QwenReader.load(folder, options),
            scheduler,
            with_tiles(_capabilities(folder.name), options),
            options.savings,
        ),
        Predict25Sampling,
    )


def _capabilities(name: str) -> Capabilities:
    return Capabilities(
        model=name,
        family="predict2.5",
        sizes=(Size(1280, 704), Size(704, 1280), Size(960, 960), Size(832, 480), Size(480, 832)),
        size_multiple=16,
        max_pixels=1280 * 720,
        frames=FrameRule(4, 93),
        fps=Range(1, 60),
        guidance_scale=Range(0, 10),
        steps=Range(1, 100),
        prompt_tokens=512,
        conditioning_frames=(5, 1),
        solvers=("unipc", "euler", "dpmpp_2m"),
        default_solver="unipc",
        defaults=Defaults(width=1280, height=704, frames=93, fps=16, steps=36, guidance_scale=7.0),
    )


class Predict25Sampling(CosmosSampling):
    """One request on a Predict2.5 model."""

    def __init__(self, parts: CosmosParts, inputs: Inputs, read: ReadText) -> None:
        super().__init__(parts, inputs, read)
        self.schedule = unipc_levels(parts.scheduler, self.request.steps).schedule
        self._given = 0 if self.known is None else self.known.shape[2]
        self._mask = self.mask(self._given)
        self._velocity: Tensor | None = None

    def initial(self) -> Tensor:
        """Noise `[1, C, T, h, w]`."""
        noise = self.noise()
        if self.known is not None:
            self._velocity = noise[:, :, : self._given] - self.known
        return noise

    @torch.inference_mode()
    def denoise(self, latents: Tensor, index: int, *, negative: bool = False) -> Tensor:
        """Estimate the clean latents; conditioning frames where their true velocity leads from where they are."""
        sigma, given = self.schedule.sigmas[index], self._given
        timesteps = torch.full((1, latents.shape[2]), sigma, device=latents.device)
        timesteps[:, :given] = _CONDITIONING_TIMESTEP
        x = latents if self.known is None else torch.cat([self.known, latents[:, :, given:]], dim=2)
        velocity = self.evaluate(x, timesteps, negative=negative, mask=self._mask)
        if self._velocity is not None:
            velocity = torch.cat([self._velocity, velocity[:, :, given:]], dim=2)
        return latents - sigma * velocity
