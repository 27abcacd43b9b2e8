"""Loading a pipeline of diffusers that runs by its own code, and finding out whether it makes clips."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from transformers import PreTrainedTokenizerBase

from cosmorama.errors import ModelNotFoundError
from cosmorama.request import ResolvedRequest
from cosmorama.world.base import Inputs
from cosmorama.world.faults import breaks_the_process
from cosmorama.world.generic.paused import raised_in
from cosmorama.world.generic.pipeline import REQUIRED, GenericSampling, GenericWorld, denoiser_of
from cosmorama.world.kernels.attention import choose_attention
from cosmorama.world.load.checkpoint import build, load_tokenizer, told_of
from cosmorama.world.load.config import read_scheduler
from cosmorama.world.load.files import PIPELINE, check_variant, missing_of_part, parts_named
from cosmorama.world.load.options import LoadOptions
from cosmorama.world.load.read import first_line, read_json, some

_TRIED_PATCHES = 8
"""A side of the clip that is made when a pipeline is loaded, in patches of its network."""
_PACKAGES = {"ftfy": "ftfy", "BeautifulSoup": "beautifulsoup4", "cv2": "opencv-python-headless"}
"""What diffusers' pipelines import where it is found and use anyway, for some requests only, and what it is called."""
_NEEDED = {"prompt", "num_frames", "output_type", "generator"}


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
        denoiser_of(pipeline).set_attention_backend(options.attention)
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
    _try(world, folder, name)
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
    missing += [file for part in networks for file in missing_of_part(folder, part, options.variant)]
    if missing:
        raise ModelNotFoundError(f"{folder} is not a complete checkpoint: missing {some(missing)}")
    check_variant(folder, networks, options.variant)
    # One type for all: what one network gives to the next is not converted by every pipeline.
    dtype = options.dtype or torch.float32
    given = {part: build(kind, place, dtype, options.variant) for part, (place, kind) in networks.items()}
    for part in parts.keys() - networks.keys():
        place, other = parts[part]
        given[part] = _other_part(other, place, given.get(part.replace("tokenizer", "text_encoder")))
    kind = getattr(diffusers, str(index["_class_name"]))
    check_packages(kind)
    _check_flow(kind, given.get("scheduler"), folder)
    if isinstance(given.get("vae"), diffusers.AutoencoderKLAllegro):
        given["vae"].enable_tiling()  # the only way in which it decodes
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        if name in index and name not in given:
            given[name] = None if isinstance(index[name], list) else index[name]
            if isinstance(parameter.default, bool) and not isinstance(given[name], bool):
                raise ModelNotFoundError(f"{folder / PIPELINE}: {name} is {given[name]!r}; it must be true or false")
        is_part = parameter.default is REQUIRED or name in kind._optional_components
        if is_part and not isinstance(index.get(name), list | None):
            raise ModelNotFoundError(
                f"{folder / PIPELINE}: {name} is {index[name]!r}; it must be a list of a library and a class"
            )
        needed = parameter.default is REQUIRED and name not in ("self", "args", "kwargs", *kind._optional_components)
        if needed and given.get(name) is None:
            raise ModelNotFoundError(f"{folder / PIPELINE} names no {name}, which {kind.__name__} needs")
    if all(given.get(name) is None for name in ("transformer", "unet", "transformer_2")):
        raise ModelNotFoundError(f"{folder / PIPELINE} names no transformer, which {kind.__name__} needs")
    with told_of(folder):
        return kind(**{name: given[name] for name in inspect.signature(kind.__init__).parameters if name in given})


def check_packages(kind: type) -> None:
    """Refuse a pipeline without a package that it uses, be it only for some prompts.

    Raises:
        ModelNotFoundError: says how to install it.
    """
    for module in {inspect.getmodule(base) for base in kind.__mro__ if base.__module__.startswith("diffusers.pip")}:
        for name, package in _PACKAGES.items():
            if re.search(rf"\b{name}[.(]", inspect.getsource(module or kind)) and not hasattr(module, name):
                raise ModelNotFoundError(f"{kind.__name__} needs {package}: pip install {package}")


def _check_flow(kind: Any, scheduler: Any, folder: Path) -> None:
    """Refuse a scheduler of noise that is added where a pipeline's network was trained to predict a flow."""
    asked = str(inspect.signature(kind.__init__).parameters.get("scheduler"))
    if scheduler is None or "FlowMatch" not in asked or "Flow" in (name := type(scheduler).__name__):
        return
    if scheduler.config.get("prediction_type") != "flow_prediction" or not scheduler.config.get("use_flow_sigmas"):
        raise ModelNotFoundError(
            f"{folder / 'scheduler'}: {name} does not sample flows, and {kind.__name__} does: "
            "it must have use_flow_sigmas and predict a flow, or be a FlowMatchEulerDiscreteScheduler"
        )


def _other_part(kind: Any, place: Path, reader: Any = None) -> Any:
    """What a pipeline has beside networks: a tokenizer, a scheduler, what prepares pictures."""
    if issubclass(kind, PreTrainedTokenizerBase):
        return load_tokenizer(place, kind, reader=reader)
    with told_of(place):
        if issubclass(kind, SchedulerMixin):
            return kind.from_config(read_scheduler(place))
        return kind.from_pretrained(place, local_files_only=True, trust_remote_code=False)


def _class(entry: Any, part: str) -> type:
    """The class of a part, by its entry in the index: a library's name and the class's."""
    library, name = (*entry, None, None)[:2]
    module = {"diffusers": diffusers, "transformers": transformers}.get(library)
    module = module or getattr(diffusers.pipelines, str(library), None)
    kind = getattr(module, str(name), None)
    if not isinstance(kind, type):
        raise ModelNotFoundError(f"{PIPELINE} asks for {name!r} of {library!r} as {part}, which is not installed")
    return kind


def _try(world: GenericWorld, folder: Path, name: str) -> None:
    """Make a small clip: whether the parts of a pipeline fit each other is known to its own code alone.

    Raises:
        ModelNotFoundError: says what fails.
    """
    own = world.capabilities
    side = -(-_TRIED_PATCHES * (own.size_multiple or 16) // 32) * 32  # which LTX2 takes as well
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
        clip = GenericSampling(world, Inputs(request=request, prompt="a ball", frames=image)).finish()
    except NameError as error:  # diffusers imports some packages only where they are found, and uses them anyway
        raise ModelNotFoundError(
            f"{type(world.pipeline).__name__} needs {error.name}: pip install {error.name}"
        ) from error
    except (MemoryError, torch.OutOfMemoryError):
        return  # nothing is known
    except Exception as error:  # whatever the pipeline, the libraries and torch have against it
        if breaks_the_process(error):
            raise
        cause = error.__cause__ or error
        where = raised_in(cause)
        if isinstance(cause, ValueError) and where.startswith("diffusers."):
            return  # it takes no clip of this size
        asks = isinstance(cause, TypeError) and where.startswith(("diffusers.pipelines.", "cosmorama."))
        why = (
            f"{type(world.pipeline).__name__} asks for more than a prompt"
            if asks
            else "its parts do not fit each other"
        )
        raise ModelNotFoundError(f"{folder} cannot be loaded: {why}: {first_line(cause)}") from error
    if len(clip) < request.frames or clip.shape[1:3] != (side, side):
        raise ModelNotFoundError(
            f"{folder} cannot be loaded: its parts do not fit each other: of {request.frames} frames of {side}x{side} "
            f"it made {len(clip)} of {clip.shape[2]}x{clip.shape[1]}"
        )


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
