"""Predict2: a model for stills from text, and one for clips from an image or a video.

The same numbers as diffusers' `Cosmos2TextToImagePipeline` and `Cosmos2VideoToWorldPipeline`: a flow network, sampled
in EDM's coordinates, where latents are the clean ones plus noise of up to 80 times their size. One thing is not as
diffusers has it: positions in time do not follow the frame rate unless `LoadOptions.fps_modulation` says so. NVIDIA's
configurations of the released models (cosmos-predict2) switch that off.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from cosmorama.diffusion.schedule import Schedule, karras_sigmas
from cosmorama.errors import ModelNotFoundError
from cosmorama.request import Capabilities, Defaults, FrameRule, Range, Size, Solver
from cosmorama.world.base import Inputs, ReadText
from cosmorama.world.cosmos.sampling import CosmosParts, CosmosSampling, CosmosWorld
from cosmorama.world.load.checkpoint import check_parts, load_module
from cosmorama.world.load.files import read_json
from cosmorama.world.load.options import LoadOptions
from cosmorama.world.readers.t5 import T5Reader
from cosmorama.world.vae.tiles import with_tiles
from cosmorama.world.vae.wan import WanAutoencoder

_CONDITIONING_SIGMA = 0.0001


def load_text_to_image(folder: Path, options: LoadOptions) -> CosmosWorld:
    """Load a checkpoint that makes stills from text.

    Raises:
        ModelNotFoundError: it is incomplete, or its scheduler is none that is supported.
    """
    capabilities = Capabilities(
        model=folder.name,
        family="predict2",
        modes=("text2world",),
        sizes=(Size(1360, 768), Size(768, 1360), Size(1024, 1024), Size(960, 960), Size(1280, 704), Size(704, 1280)),
        size_multiple=16,
        max_pixels=1360 * 768,
        frames=FrameRule(4, 1),
        fps=Range(1, 60),
        guidance_scale=Range(0, 10),
        steps=Range(1, 100),
        prompt_tokens=512,
        conditioning_frames=(1,),
        solvers=_SOLVERS,
        default_solver="euler",
        defaults=Defaults(width=1360, height=768, frames=1, fps=16, steps=35, guidance_scale=7.0),
    )
    return _load(folder, options, capabilities)


def load_video_to_world(folder: Path, options: LoadOptions) -> CosmosWorld:
    """Load a checkpoint that continues an image or a video.

    Raises:
        ModelNotFoundError: it is incomplete, or its scheduler is none that is supported.
    """
    capabilities = Capabilities(
        model=folder.name,
        family="predict2",
        modes=("image2world", "video2world"),
        sizes=(Size(1280, 704), Size(704, 1280), Size(960, 960), Size(832, 480), Size(480, 832)),
        size_multiple=16,
        max_pixels=1280 * 720,
        frames=FrameRule(4, 93),
        fps=Range(1, 60),
        guidance_scale=Range(0, 10),
        steps=Range(1, 100),
        prompt_tokens=512,
        conditioning_frames=(5, 1),
        solvers=_SOLVERS,
        default_solver="euler",
        defaults=Defaults(width=1280, height=704, frames=93, fps=16, steps=35, guidance_scale=7.0),
    )
    return _load(folder, options, capabilities)


_SOLVERS: tuple[Solver, ...] = ("euler", "unipc", "dpmpp_2m")


def _load(folder: Path, options: LoadOptions, capabilities: Capabilities) -> CosmosWorld:
    from diffusers.models.transformers.transformer_cosmos import CosmosTransformer3DModel

    check_parts(folder, ("transformer", "vae", "text_encoder"), "tokenizer", variant=options.variant)
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    if scheduler.get("_class_name") != "FlowMatchEulerDiscreteScheduler" or not scheduler.get("use_karras_sigmas"):
        raise ModelNotFoundError(
            f"{folder}/scheduler: only a FlowMatchEulerDiscreteScheduler with use_karras_sigmas is supported"
        )
    return CosmosWorld(
        CosmosParts(
            load_module(CosmosTransformer3DModel, folder / "transformer", options),
            WanAutoencoder.load(folder / "vae", options),
            T5Reader.load(folder, options),
            scheduler,
            with_tiles(capabilities, options),
            options.savings,
            fps_modulation=options.fps_modulation or False,
        ),
        Predict2Sampling,
    )


class Predict2Sampling(CosmosSampling):
    """One request on a Predict2 model."""

    def __init__(self, parts: CosmosParts, inputs: Inputs, read: ReadText) -> None:
        super().__init__(parts, inputs, read)
        self.schedule = predict2_schedule(self.request.steps, skip_idle_step=parts.savings.skip_idle_step)
        self._given = 0 if self.known is None else self.known.shape[2]
        self._mask = None if self.known is None else self.mask(self._given)

    def encode(self, pixels: Tensor) -> Tensor:
        """Drawn from the tokenizer's distribution, as these models were trained; before any other noise."""
        autoencoder = self.autoencoder
        assert isinstance(autoencoder, WanAutoencoder)
        # Drawn for the whole clip, so that a seed gives what it gives where the padding is encoded too.
        noise = torch.randn(self.shape, generator=self.generator, dtype=autoencoder.vae.dtype)
        length = autoencoder.latents_shape(pixels.shape[2], *pixels.shape[3:])[2]
        return autoencoder.encode(pixels, noise[:, :, :length])

    def initial(self) -> Tensor:
        """Noise `[1, C, T, h, w]` at the largest level."""
        return self.noise() * self.schedule.sigmas[0]

    @torch.inference_mode()
    def denoise(self, latents: Tensor, index: int, *, negative: bool = False) -> Tensor:
        """Estimate the clean latents; conditioning frames come back as given."""
        sigma, given = self.schedule.sigmas[index], self._given
        time = sigma / (1 + sigma)  # where the flow network has this ratio of signal to noise
        x = latents * (1 - time)
        if self.known is None:
            timesteps = torch.full((1, 1), time, device=latents.device)
        else:
            timesteps = torch.full((1, latents.shape[2]), time, device=latents.device)
            timesteps[:, :given] = _CONDITIONING_SIGMA / (1 + _CONDITIONING_SIGMA)
            x = torch.cat([self.known, x[:, :, given:]], dim=2)
        velocity = self.evaluate(
            x,
            timesteps.to(self.parts.dtype),
            negative=negative,
            mask=self._mask,
            fps=self.request.fps if self.parts.fps_modulation and self.known is not None else None,
        )
        denoised = (1 - time) * latents - time * velocity
        return denoised if self.known is None else torch.cat([self.known, denoised[:, :, given:]], dim=2)


def predict2_schedule(steps: int, *, skip_idle_step: bool = True) -> Schedule:
    """Karras's levels from 80 down to 0.002, where the clip is taken as it is.

    diffusers appends the smallest level once more: a step that evaluates the network and multiplies the result by zero.
    Without it the schedule has a step less. From a single level there is nowhere to go but to zero; diffusers returns
    the noise.
    """
    levels = karras_sigmas(steps)[:-1]
    if steps == 1:
        return Schedule((*levels, 0.0), "edm")
    return Schedule(levels if skip_idle_step else (*levels, levels[-1]), "edm")
