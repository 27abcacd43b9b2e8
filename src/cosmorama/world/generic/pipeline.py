"""Any other video pipeline of diffusers: Wan, LTX, HunyuanVideo, CogVideoX and their like, run by its own code.

Nothing is known here of how such a pipeline samples; only that it takes a prompt and a number of frames, and moves a
progress bar. It stands still at every movement of that bar, so it is advanced step by step like any other model, is
interleaved with others, and is dropped within one step. What a pipeline keeps from step to step (its scheduler above
all) is copied for every request.

Beside the models that Cosmorama samples itself, this one cannot choose a solver, limit or rescale guidance, continue a
clip or show previews, and it holds a finished clip in memory before the first frame is written.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cosmorama.diffusion.schedule import flow_schedule
from cosmorama.errors import InvalidRequestError, Problem
from cosmorama.request import Capabilities, Defaults, FrameRule, Mode, Range, ResolvedRequest, Size, Solver
from cosmorama.world.base import Inputs, ReadText, Sampling, TextEmbedding, World
from cosmorama.world.faults import not_finite
from cosmorama.world.generic.paused import PausedPipeline

MAX_FRAMES = 257
"""Offered where the pipeline's own default is less: pipelines state no limit, their training and the memory do."""
_SOLVERS: dict[str, Solver] = {"UniPC": "unipc", "DPMSolver": "dpmpp_2m"}
"""What the scheduler of a checkpoint is called here, by the beginning of its name; any other counts as Euler."""
FRAME_RATES = {
    8: ("AnimateDiff", "CogVideoX", "ConsisID", "EasyAnimate", "PIA", "TextToVideoSD"),
    15: ("Allegro",),
    16: ("AnyFlow", "ChronoEdit", "Wan"),
    30: ("HunyuanVideoFramepack", "Mochi"),
    24: ("Helios", "Hunyuan", "Kandinsky5", "LucyEdit", "MotifVideo", "SkyReelsV2"),
}
"""Frames per second that models were trained on and their pipelines have no word for, by the beginnings of their names;
the first that fits holds."""
REQUIRED = inspect.Parameter.empty


class GenericWorld(World):
    """A video pipeline of diffusers, ready to sample from.

    Attributes:
        pipeline: A `DiffusionPipeline`; never called itself, only its copies are.
    """

    def __init__(self, pipeline: Any, name: str, device: torch.device | str = "cpu") -> None:
        self.pipeline, self.device = pipeline, torch.device(device)
        self.capabilities = _capabilities(pipeline, name)

    def encode_text(self, prompt: str) -> TextEmbedding:
        """Count the tokens of a prompt: the pipeline reads it itself, and no further than its usual limit."""
        count, limit = len(self.pipeline.tokenizer(prompt).input_ids), self.capabilities.prompt_tokens
        return TextEmbedding(torch.empty(1, count, 0), tokens=count, limit=limit)

    def begin(self, inputs: Inputs, read: ReadText) -> GenericSampling:
        """Run the pipeline up to its first step.

        Raises:
            InvalidRequestError: the request asks for what the pipeline has no place for, or refuses.
        """
        if self.capabilities.prompt_tokens is not None:
            read(inputs.prompt)
            if inputs.request.guidance_scale > 1 and inputs.request.negative_prompt:
                read(inputs.request.negative_prompt)
        return GenericSampling(self, inputs)


class GenericSampling(Sampling):
    """One request on such a pipeline, which steps itself: the latents, the levels, guidance and solver are its own.

    The levels between its steps are not known: evenly spaced ones stand in the schedule.
    """

    def __init__(self, world: GenericWorld, inputs: Inputs) -> None:
        request = inputs.request
        problems = list(_problems(request, world.pipeline))
        if problems:
            raise InvalidRequestError(*problems)
        frames = world.capabilities.frames.next(request.frames)
        self._request, self._seen = request, _Seen()
        arguments = _arguments(world.pipeline, inputs, frames)
        if "callback_on_step_end" in _takes(world.pipeline):
            arguments["callback_on_step_end"] = self._seen
        self._name, self._run = _name(world.pipeline), PausedPipeline(world.pipeline, arguments)
        with self._refused():
            self.schedule = flow_schedule(self._run.begin())
        self._frames: Tensor | None = None

    def initial(self) -> Tensor:
        """Nothing yet: the latents begin inside of the pipeline."""
        return self._seen.latents

    def step(self, latents: Tensor, index: int) -> Tensor:
        """Let the pipeline take its step `index`; the latents as it has them, where it shows them.

        Raises:
            InvalidRequestError: as in the beginning: a network of one size alone refuses another one here.
        """
        with self._refused():
            self._run.step()
        return self._seen.latents

    @contextmanager
    def _refused(self) -> Iterator[None]:
        """What a pipeline has against its arguments is said of the request."""
        try:
            yield
        except ValueError as error:
            value = f"{self._request.width}x{self._request.height}, {self._request.frames} frames"
            raise InvalidRequestError(Problem("request", value, f"what {self._name} takes: {error}")) from error

    def finish(self) -> Any:
        """Let the pipeline come to its end: the clip `[T, height, width, 3]` in 0..1."""
        return self._run.finish()[0][0]

    def decode(self, latents: Tensor, chunk: int = 0) -> Iterator[Tensor]:
        """Let the pipeline finish, then give its clip: uint8 `[T, height, width, 3]`."""
        if self._frames is None:
            clip = self.finish()
            if not np.isfinite(clip).all():
                raise not_finite("the decoded frames", self._request)
            self._frames = torch.from_numpy((clip * 255).round().clip(0, 255).astype("uint8"))
        yield from self._frames.split(16)


class _Seen:
    """What a pipeline tells at the end of every step. It knows nothing of the sampling, so that can be dropped."""

    def __init__(self) -> None:
        self.latents = torch.empty(0)

    def __call__(self, pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """diffusers' `callback_on_step_end`; changes nothing."""
        self.latents = tensors.get("latents", self.latents)
        return tensors


def _takes(pipeline: Any) -> dict[str, Any]:
    """The names of a pipeline's arguments, and their defaults; `REQUIRED` where there is none."""
    parameters = inspect.signature(type(pipeline).__call__).parameters
    return {name: parameter.default for name, parameter in parameters.items()}


def _name(pipeline: Any) -> str:
    return type(pipeline).__name__


def _capabilities(pipeline: Any, name: str) -> Capabilities:
    """What a pipeline takes; what its call has no word for is not offered, lest it be passed over."""
    takes = _takes(pipeline)
    temporal, spatial = _compression(pipeline, "temporal") or 4, _compression(pipeline, "spatial") or 8
    height = takes.get("height") or getattr(pipeline, "default_height", None) or _sample(pipeline, "height", spatial)
    width = takes.get("width") or getattr(pipeline, "default_width", None) or _sample(pipeline, "width", spatial)
    width, height = width or 832, height or 480
    frames = takes.get("num_frames") or _sample(pipeline, "frames", temporal if "Allegro" in _name(pipeline) else 1)
    guided = "guidance_scale" in takes
    return Capabilities(
        model=name,
        family=f"generic:{_name(pipeline)}",
        modes=_modes(pipeline, takes),
        sizes=(Size(width, height),),
        size_multiple=spatial * _patch(pipeline),
        max_pixels=max(width * height, 1280 * 736),
        frames=FrameRule(temporal, max(frames or 0, MAX_FRAMES)),
        fps=Range(1, 60),
        guidance_scale=Range(1, 20 if guided else 1),
        steps=Range(1, 100),
        prompt_tokens=takes.get("max_sequence_length") if getattr(pipeline, "tokenizer", None) else None,
        # Where guidance is in the weights (distilled), the one by a negative prompt is another one, and off.
        negative_prompts="negative_prompt" in takes and takes.get("true_cfg_scale") != 1,
        conditioning_frames=(1,),
        reuse=None,
        solvers=(_solver(pipeline),),
        default_solver=_solver(pipeline),
        defaults=Defaults(
            width=width,
            height=height,
            frames=frames or 49,
            fps=_frame_rate(pipeline, takes),
            steps=takes.get("num_inference_steps") or 50,
            guidance_scale=(takes["guidance_scale"] or 5.0) if guided else 1.0,
            negative_prompt=takes.get("negative_prompt") or "",
        ),
    )


def _frame_rate(pipeline: Any, takes: dict[str, Any]) -> float:
    """The frames per second that a pipeline makes where nothing else is asked for."""
    if stated := takes.get("frame_rate") or takes.get("fps"):
        return float(stated)
    config = getattr(pipeline, "config", {})
    if config.get("expand_timesteps"):  # Wan 2.2 of 5B, whose autoencoder is another one, too
        return 24
    if getattr(getattr(denoiser_of(pipeline), "config", None), "patch_size_t", None) and "CogVideoX" in _name(pipeline):
        return 16  # version 1.5
    return next((rate for rate, names in FRAME_RATES.items() if _name(pipeline).startswith(names)), 16)


def _modes(pipeline: Any, takes: dict[str, Any]) -> tuple[Mode, ...]:
    if "image" not in takes:
        return ("text2world",)
    # Some give the picture a default, and fail without it all the same.
    required = takes["image"] is REQUIRED or "ImageToVideo" in _name(pipeline)
    return ("image2world",) if required else ("text2world", "image2world")


def _compression(pipeline: Any, axis: str) -> int | None:
    """How much the autoencoder compresses, under any of the names that pipelines have for it."""
    names = (f"vae_scale_factor_{axis}", f"vae_{axis}_compression_ratio", f"vae_{axis}_scale_factor")
    return next((int(value) for name in names if (value := getattr(pipeline, name, None))), None)


def denoiser_of(pipeline: Any) -> Any:
    return getattr(pipeline, "transformer", None) or getattr(pipeline, "unet", None)


def _patch(pipeline: Any) -> int:
    patch = getattr(getattr(denoiser_of(pipeline), "config", None), "patch_size", 1)
    return int(patch[-1] if isinstance(patch, (tuple, list)) else patch or 1)


def _sample(pipeline: Any, side: str, zoom: int) -> int | None:
    """A size that is stated in latent pixels, or frames, as CogVideoX's."""
    latent = getattr(getattr(denoiser_of(pipeline), "config", None), f"sample_{side}", None)
    return None if latent is None else int(latent) * zoom


def _solver(pipeline: Any) -> Solver:
    scheduler = type(getattr(pipeline, "scheduler", None)).__name__
    return next((solver for prefix, solver in _SOLVERS.items() if scheduler.startswith(prefix)), "euler")


def _problems(request: ResolvedRequest, pipeline: Any) -> Iterator[Problem]:
    accepted = f"no other value than the default with {_name(pipeline)}, which samples by itself"
    if request.guidance_interval != (0.0, 1.0):
        yield Problem("guidance_interval", request.guidance_interval, accepted)
    if request.guidance_rescale and "guidance_rescale" not in _takes(pipeline):
        yield Problem("guidance_rescale", request.guidance_rescale, accepted)


def _arguments(pipeline: Any, inputs: Inputs, frames: int) -> dict[str, Any]:
    """The request in the pipeline's words, as many of them as it takes."""
    request = inputs.request
    assert request.seed is not None
    words: dict[str, Any] = {
        "prompt": inputs.prompt,
        "negative_prompt": request.negative_prompt,
        "height": request.height,
        "width": request.width,
        "num_frames": frames,
        "frame_rate": request.fps,
        "fps": request.fps,
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance_scale,
        "guidance_rescale": request.guidance_rescale,
        # From the CPU, so that a seed means the same on every device.
        "generator": torch.Generator("cpu").manual_seed(request.seed),
        "output_type": "np",
        "return_dict": False,
    }
    if inputs.frames is not None:
        words["image"] = Image.fromarray(inputs.frames[0].cpu().numpy())
    takes = _takes(pipeline)
    return {name: value for name, value in words.items() if name in takes}
