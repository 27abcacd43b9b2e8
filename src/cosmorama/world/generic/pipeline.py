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
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cosmorama.diffusion.schedule import flow_schedule
from cosmorama.errors import CosmoramaError, InvalidRequestError, ModelNotFoundError, Problem
from cosmorama.request import Capabilities, Defaults, FrameRule, Mode, Range, ResolvedRequest, Size, Solver
from cosmorama.world.base import Inputs, ReadText, Sampling, World
from cosmorama.world.faults import breaks_the_process, not_finite
from cosmorama.world.generic.paused import PausedPipeline
from cosmorama.world.kernels.attention import choose_attention
from cosmorama.world.load.checkpoint import build, check_variant, load_tokenizer, missing_of_module, told_of
from cosmorama.world.load.config import read_scheduler
from cosmorama.world.load.files import PIPELINE, first_line, parts_named, read_json, some
from cosmorama.world.load.options import LoadOptions

MAX_FRAMES = 257
"""Offered where the pipeline's own default is less: pipelines state no limit, their training and the memory do."""
_TRIED_PATCHES = 8
"""A side of the clip that is made when a pipeline is loaded, in patches of its network."""
_SOLVERS: dict[str, Solver] = {"UniPC": "unipc", "DPMSolver": "dpmpp_2m"}
"""What the scheduler of a checkpoint is called here, by the beginning of its name; any other counts as Euler."""
_NEEDED = {"prompt", "num_frames", "output_type", "generator"}
_REQUIRED = inspect.Parameter.empty


def load(folder: Path, options: LoadOptions, name: str) -> GenericWorld:
    """Load the pipeline of a checkpoint in diffusers' layout.

    Raises:
        ModelNotFoundError: it is no video pipeline of the installed diffusers, or its parts cannot be read.
    """
    _check(folder, name)
    if options.quantize != "none":
        raise ModelNotFoundError(f"quantize is {options.quantize!r}, but {name} runs by its own code, as it is")
    pipeline = _built(folder, options)
    if options.attention != "auto":
        choose_attention(torch.nn.Module(), options.attention)  # whether it can be
        _denoiser(pipeline).set_attention_backend(options.attention)
    if options.offload == "release":
        raise ModelNotFoundError(f"offload is 'release', but {name} is no Cosmos3: none, model or layer")
    if options.offload == "none":
        pipeline.to(options.device)
    elif torch.device(options.device).type == "cpu":
        raise ModelNotFoundError(f"offload is {options.offload!r}, but {name} runs on the CPU, where it is anyway")
    elif options.offload == "model":
        pipeline.enable_model_cpu_offload(device=options.device)
    else:
        pipeline.enable_group_offload(torch.device(options.device), offload_type="leaf_level", use_stream=True)
    world = GenericWorld(pipeline, folder.resolve().name, options.device)
    _try(world, folder)
    return world


def _built(folder: Path, options: LoadOptions) -> Any:
    """The pipeline, its networks loaded here: diffusers makes up the weights that a text encoder's files lack."""
    index = read_json(folder / PIPELINE)
    parts = {
        part: (folder / part, _class(index[part], part))
        for part in parts_named(index, [found.name for found in folder.iterdir() if found.is_dir()])
    }
    networks = {part: where for part, where in parts.items() if issubclass(where[1], torch.nn.Module)}
    missing = [part for part, entry in index.items() if isinstance(entry, list) and any(entry) and part not in parts]
    missing += [file for part in networks for file in missing_of_module(folder, part, options.variant)]
    if missing:
        raise ModelNotFoundError(f"{folder} is not a complete checkpoint: missing {some(missing)}")
    check_variant(folder, tuple(networks), options.variant)
    # One type for all: what one network gives to the next is not converted by every pipeline.
    dtype = options.dtype or torch.float32
    given = {part: build(kind, place, dtype, options.variant) for part, (place, kind) in networks.items()}
    for part in parts.keys() - networks.keys():
        place, other = parts[part]
        given[part] = _other_part(other, place, given.get(part.replace("tokenizer", "text_encoder")))
    kind = getattr(diffusers, str(index["_class_name"]))
    _check_flow(kind, given.get("scheduler"), folder)
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        if name in index and name not in given:
            given[name] = None if isinstance(index[name], list) else index[name]
        needed = parameter.default is _REQUIRED and name not in ("self", "args", "kwargs", *kind._optional_components)
        if needed and given.get(name) is None:
            raise ModelNotFoundError(f"{folder / PIPELINE} names no {name}, which {kind.__name__} needs")
    with told_of(folder):
        return kind(**{name: given[name] for name in inspect.signature(kind.__init__).parameters if name in given})


def _check_flow(kind: Any, scheduler: Any, folder: Path) -> None:
    """Refuse a scheduler of noise that is added where a pipeline's network was trained to predict a flow."""
    asked = str(inspect.signature(kind.__init__).parameters.get("scheduler"))
    if scheduler is None or "FlowMatch" not in asked or "Flow" in (name := type(scheduler).__name__):
        return
    if scheduler.config.get("prediction_type") != "flow_prediction" and not scheduler.config.get("use_flow_sigmas"):
        raise ModelNotFoundError(
            f"{folder / 'scheduler'}: {name} does not sample flows, and {kind.__name__} does: "
            "it must have use_flow_sigmas, or be a FlowMatchEulerDiscreteScheduler"
        )


def _other_part(kind: Any, place: Path, reader: Any = None) -> Any:
    """What a pipeline has beside networks: a tokenizer, a scheduler, what prepares pictures."""
    if issubclass(kind, PreTrainedTokenizerBase):
        return load_tokenizer(place, kind, reader=reader)
    with told_of(place):
        if issubclass(kind, SchedulerMixin):
            return kind.from_config(read_scheduler(place))
        return kind.from_pretrained(place, local_files_only=True)


def _class(entry: Any, part: str) -> type:
    """The class of a part, by its entry in the index: a library's name and the class's."""
    library, name = (*entry, None, None)[:2]
    module = {"diffusers": diffusers, "transformers": transformers}.get(library)
    module = module or getattr(diffusers.pipelines, str(library), None)
    kind = getattr(module, str(name), None)
    if not isinstance(kind, type):
        raise ModelNotFoundError(f"{PIPELINE} asks for {name!r} of {library!r} as {part}, which is not installed")
    return kind


def _try(world: GenericWorld, folder: Path) -> None:
    """Make a small clip: whether the parts of a pipeline fit each other is known to its own code alone.

    Raises:
        ModelNotFoundError: says what fails.
    """
    own = world.capabilities
    side = _TRIED_PATCHES * (own.size_multiple or 16)
    request = ResolvedRequest(
        prompt="a ball",
        seed=0,
        steps=2,
        width=side,
        height=side,
        frames=own.frames.multiple + 1,
        fps=own.defaults.fps,
        guidance_scale=own.defaults.guidance_scale,
    )
    image = None if "text2world" in own.modes else torch.zeros(1, side, side, 3, dtype=torch.uint8)
    try:
        GenericSampling(world, Inputs(request=request, prompt="a ball", frames=image)).finish()
    except NameError as error:  # diffusers imports some packages only where they are found, and uses them anyway
        raise ModelNotFoundError(f"{_name(world.pipeline)} needs {error.name}: pip install {error.name}") from error
    except (MemoryError, torch.OutOfMemoryError, CosmoramaError, ValueError):
        pass  # it has something against this clip, not against the checkpoint
    except (RuntimeError, AttributeError, LookupError, TypeError) as error:
        if breaks_the_process(error):
            raise
        raise ModelNotFoundError(
            f"{folder} cannot be loaded: its parts do not fit each other: {first_line(error)}"
        ) from error


class GenericWorld(World):
    """A video pipeline of diffusers, ready to sample from.

    Attributes:
        pipeline: A `DiffusionPipeline`; never called itself, only its copies are.
    """

    def __init__(self, pipeline: Any, name: str, device: torch.device | str = "cpu") -> None:
        self.pipeline, self.device = pipeline, torch.device(device)
        self.capabilities = _capabilities(pipeline, name)

    def begin(self, inputs: Inputs, read: ReadText) -> GenericSampling:
        """Run the pipeline up to its first step.

        Raises:
            InvalidRequestError: the request asks for what the pipeline has no place for, or refuses.
        """
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
        self._run = PausedPipeline(world.pipeline, arguments)
        try:
            self.schedule = flow_schedule(self._run.begin())
        except ValueError as error:  # before its first step a pipeline looks at its arguments
            value, name = f"{request.width}x{request.height}, {frames} frames", _name(world.pipeline)
            raise InvalidRequestError(Problem("request", value, f"what {name} takes: {error}")) from None
        self._frames: Tensor | None = None

    def initial(self) -> Tensor:
        """Nothing yet: the latents begin inside of the pipeline."""
        return self._seen.latents

    def step(self, latents: Tensor, index: int) -> Tensor:
        """Let the pipeline take its step `index`; the latents as it has them, where it shows them."""
        self._run.step()
        return self._seen.latents

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


def _check(folder: Path, name: object) -> None:
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, DiffusionPipeline)):
        # A list here names a file of code in the checkpoint; that is not run.
        raise ModelNotFoundError(
            f"{folder / PIPELINE} asks for {name!r}, which is no pipeline of the installed diffusers"
        )
    missing = sorted(_NEEDED - inspect.signature(kind.__call__).parameters.keys())
    if missing:
        raise ModelNotFoundError(
            f"{folder / PIPELINE}: {name} is no video pipeline: it does not take {', '.join(missing)}"
        )


def _takes(pipeline: Any) -> dict[str, Any]:
    """The names of a pipeline's arguments, and their defaults; `_REQUIRED` where there is none."""
    parameters = inspect.signature(type(pipeline).__call__).parameters
    return {name: parameter.default for name, parameter in parameters.items()}


def _name(pipeline: Any) -> str:
    return type(pipeline).__name__


def _capabilities(pipeline: Any, name: str) -> Capabilities:
    takes = _takes(pipeline)
    temporal, spatial = _compression(pipeline, "temporal") or 4, _compression(pipeline, "spatial") or 8
    height = takes.get("height") or _sample(pipeline, "sample_height", spatial) or 480
    width = takes.get("width") or _sample(pipeline, "sample_width", spatial) or 832
    return Capabilities(
        model=name,
        family=f"generic:{_name(pipeline)}",
        modes=_modes(pipeline, takes),
        sizes=(Size(width, height),),
        size_multiple=spatial * _patch(pipeline),
        max_pixels=max(width * height, 1280 * 736),
        frames=FrameRule(temporal, max(takes.get("num_frames") or 0, MAX_FRAMES)),
        fps=Range(1, 60),
        guidance_scale=Range(1, 20),
        steps=Range(1, 100),
        conditioning_frames=(1,),
        reuse=None,
        solvers=(_solver(pipeline),),
        default_solver=_solver(pipeline),
        defaults=Defaults(
            width=width,
            height=height,
            frames=takes.get("num_frames") or 49,
            fps=takes.get("frame_rate") or 16,
            steps=takes.get("num_inference_steps") or 50,
            guidance_scale=takes.get("guidance_scale") or 5.0,
        ),
    )


def _modes(pipeline: Any, takes: dict[str, Any]) -> tuple[Mode, ...]:
    if "image" not in takes:
        return ("text2world",)
    # Some give the picture a default, and fail without it all the same.
    required = takes["image"] is _REQUIRED or "ImageToVideo" in _name(pipeline)
    return ("image2world",) if required else ("text2world", "image2world")


def _compression(pipeline: Any, axis: str) -> int | None:
    """How much the autoencoder compresses, under any of the names that pipelines have for it."""
    names = (f"vae_scale_factor_{axis}", f"vae_{axis}_compression_ratio", f"vae_{axis}_scale_factor")
    return next((int(value) for name in names if (value := getattr(pipeline, name, None))), None)


def _denoiser(pipeline: Any) -> Any:
    return getattr(pipeline, "transformer", None) or getattr(pipeline, "unet", None)


def _patch(pipeline: Any) -> int:
    patch = getattr(getattr(_denoiser(pipeline), "config", None), "patch_size", 1)
    return int(patch[-1] if isinstance(patch, (tuple, list)) else patch or 1)


def _sample(pipeline: Any, name: str, spatial: int) -> int | None:
    """A size that is stated in latent pixels, as CogVideoX's."""
    latent = getattr(getattr(_denoiser(pipeline), "config", None), name, None)
    return None if latent is None else int(latent) * spatial


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
