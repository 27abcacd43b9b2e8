"""Which world models there are, and how a name or a folder becomes one."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from os.path import isdir, isfile, islink
from pathlib import Path
from typing import TYPE_CHECKING, Unpack, cast, get_args

from cosmorama.errors import ModelNotFoundError
from cosmorama.world.cosmos.capabilities import CAPABILITIES
from cosmorama.world.load.files import INDEXES, PIPELINE, check_whole, has_weights, is_distilled, parts_of, weight_files
from cosmorama.world.load.hub import cached_bytes, from_hub
from cosmorama.world.load.options import Choices, DType
from cosmorama.world.load.read import read_json
from cosmorama.world.load.sources import Source, closest, source_of

if TYPE_CHECKING:
    import torch

    from cosmorama.world.base import World
    from cosmorama.world.load.options import LoadOptions


log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model that comes with the package."""

    name: str
    folder: Path
    description: str


MICROCOSM = KnownModel(
    "microcosm",
    Path(__file__).parent / "microcosm" / "weights",
    "miniature world model of simulated physics scenes, trained from scratch; runs on two CPU cores",
)


def stored_bytes(name_or_path: str, variant: str | None = None, cache: Path | None = None) -> int:
    """Bytes of the files that are a model's weights, about the least that it takes in memory; 0: they are not here."""
    folder = MICROCOSM.folder if name_or_path == MICROCOSM.name else Path(name_or_path)
    try:
        if not isdir(folder):
            source = source_of(name_or_path)
            return 0 if source is None else cached_bytes(source, cache)
        parts = [part for part in parts_of(folder) if has_weights(part, variant)]
        return sum(file.stat().st_size for part in parts for file in weight_files(part, variant)[0])
    except ModelNotFoundError:  # said when it is loaded
        return 0


def load_world(
    name_or_path: str,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    controls: tuple[str, ...] = (),
    cache: Path | None = None,
    download: bool = True,
    **choices: Unpack[Choices],
) -> World:
    """Load a world model.

    Args:
        name_or_path: A known model's name, the folder of a checkpoint, or what `load.sources` knows of the Hugging
            Face hub: a short name, or `owner/name`, perhaps with a revision: `owner/name@revision`. Folders are laid
            out as diffusers saves pipelines, or like Microcosm's.
        dtype: Of the weights, for example `bfloat16`; None keeps them as they are stored. Microcosm's are float32.
        device: Where the model runs; None is CUDA where there is some, else the CPU. Microcosm runs on the CPU.
        controls: Of a Transfer2.5 on the hub: kinds of control whose ControlNets are loaded; none: all.
        cache: Folder in which checkpoints from the hub are kept; None is the hub library's own.
        download: False takes checkpoints from the hub only from there.
        choices: See `LoadOptions`. Microcosm takes none; other pipelines of diffusers are not quantized or compiled.

    Raises:
        NotEnoughMemoryError: the weights cannot fit.
        ModelNotFoundError: neither a known name nor a checkpoint of a family that is served, or an incomplete one;
            names what is missing. Or one whose weights cannot be quantized.
    """
    variant = choices.get("variant")
    folder = _folder_of(name_or_path, cache, download=download, variant=variant, controls=controls)
    if (folder / "world.json").exists():
        missing = [part for part in _MICROCOSM_LAYOUT if not (folder / part).exists()]
        if missing:
            raise ModelNotFoundError(f"{folder} is not a complete checkpoint: missing {', '.join(missing)}")
        from cosmorama.world.load.checkpoint import told_of
        from cosmorama.world.load.options import ON_CPU
        from cosmorama.world.microcosm.loader import load_microcosm

        asked = {"dtype": str(dtype or "float32").removeprefix("torch."), **choices}
        usual = {**asdict(ON_CPU), "dtype": "float32"}
        if unused := [f"{name} {value}" for name, value in asked.items() if value not in (None, usual[name])]:
            log.warning("%s runs on the CPU, in float32, whole: %s not used", name_or_path, ", ".join(unused))
        with told_of(folder):
            return load_microcosm(folder)
    load = _loader_of(folder, variant)
    import torch

    from cosmorama.world.load.checkpoint import told_of
    from cosmorama.world.load.fit import check_weights_fit
    from cosmorama.world.load.options import LoadOptions
    from cosmorama.world.load.quantize import check_quantize

    options = LoadOptions(_device(device), _dtype(dtype), **choices)
    if options.device == torch.device("cpu") and device is None:
        log.warning(_ON_A_CPU, folder.name, torch.__version__)
    check_quantize(options.quantize, options.dtype, options.device)
    for setting, value, instead in (("compile", "blocks", "kernels or none"), ("quantize", "float8", "take int8")):
        if options.offload == "layer" and getattr(options, setting) == value:
            raise ModelNotFoundError(
                f"COSMORAMA_{setting.upper()}={value} does not go with COSMORAMA_OFFLOAD=layer: {instead}"
            )
    check_weights_fit(folder, options)
    with told_of(folder):
        return load(folder, options)


_A_GPU = "for one install its driver, and torch from the plain index (pip install torch)"
_ON_A_CPU = (
    "%s WILL RUN ON THE CPU: torch %s sees no GPU. A clip of a Cosmos model takes hours or days there; "
    f"{_A_GPU}. To have it so without this line: COSMORAMA_DEVICE=cpu, in Python device='cpu'"
)
_MICROCOSM_LAYOUT = ("world.json", "transformer/config.json", "vae/config.json", "text_encoder/config.json")
_DISTILLED = "Cosmos3DistilledModularPipeline"
_LOADERS = {"cosmos": set(CAPABILITIES), "cosmos3": {"Cosmos3OmniPipeline", _DISTILLED}}
"""The rooms of the pipelines that are sampled here."""
_WITHOUT_BLOCKS = {"Cosmos3OmniModularPipeline": "Cosmos3OmniPipeline"}
"""Modular pipelines of diffusers whose parts are those of a plain one."""


def _folder_of(
    name: str, cache: Path | None, *, download: bool, variant: str | None, controls: tuple[str, ...]
) -> Path:
    found = find(name)
    if isinstance(found, Path):
        if controls:
            raise ModelNotFoundError(f"controls is {controls}, but the folder {name!r} has its ControlNets in it")
        return found
    if found.address != name:
        log.info("%s is %s", name, found.address)
    _check_packages(name)  # before it is downloaded
    return from_hub(found, cache, download=download, variant=variant, controls=controls)


def find(name: str) -> Path | Source:
    """The folder of a checkpoint that a name stands for, or what it means on the hub, where nobody is asked yet.

    Raises:
        ModelNotFoundError: it is neither, or the folder holds no model.
    """
    folder = MICROCOSM.folder if name == MICROCOSM.name else Path(name).expanduser()
    if isdir(folder):  # no error where the name is longer than names can be
        if not (folder / "world.json").exists():
            _pipeline_of(folder)
        return folder
    if isfile(folder):
        raise ModelNotFoundError(f"{name!r} is a file: give the folder of a checkpoint, with a {PIPELINE} in it")
    if islink(folder):
        raise ModelNotFoundError(f"{name!r} is a link to a folder that is not there: {folder.readlink()}")
    source = source_of(name)
    if source is None:
        names = closest(name) or [MICROCOSM.name]
        raise ModelNotFoundError(
            f"there is no model {name[:200]!r}: give a checkpoint folder, owner/name on the Hugging Face hub, or a "
            f"name that cosmorama models lists, for example {', '.join(names)}"
        )
    return source


def _what_it_is(folder: Path) -> str:
    """What is said of a folder that is no pipeline."""
    files = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()][:10_000]
    pickles = sorted(file for file in files if file.endswith((".pt", ".pth", ".ckpt", ".distcp")))
    if (folder / "config.json").is_file():
        kind = read_json(folder / "config.json").get("_class_name", "a network")
        return f"{folder} is one part of a pipeline ({kind}), not a pipeline: missing {PIPELINE}"
    if (folder / "snapshots").is_dir() and folder.name.startswith("models--"):
        return f"{folder} is the hub's cache of {folder.name[8:].replace('--', '/')}: give that name instead"
    if inside := sorted(file.parent for name in INDEXES for file in folder.glob(f"*/{name}")):
        return f"{folder} is not a complete checkpoint: missing {PIPELINE}, but {inside[0]} has one: give that folder"
    if singles := sorted(folder.glob("*.safetensors")):
        return f"{folder} holds {singles[0].name} alone: a folder in diffusers' layout is needed, with a {PIPELINE}"
    if pickles:
        return (
            f"{folder} holds {pickles[0]}, a pickle as NVIDIA's own code writes it, and no {PIPELINE}: take the model "
            "as diffusers has it (cosmorama models list)"
        )
    return f"{folder} is not a complete checkpoint: missing {PIPELINE}, or for one like Microcosm's: missing world.json"


def _pipeline_of(folder: Path) -> str:
    """The pipeline that a checkpoint names; where it was distilled to a few steps, only its modular index says so."""
    index, modular = (folder / name for name in INDEXES)
    if modular.is_file() and is_distilled(read_json(modular)):
        return _DISTILLED
    if not index.is_file() and not modular.is_file():
        raise ModelNotFoundError(_what_it_is(folder))
    index = index if index.is_file() else modular
    pipeline = read_json(index).get("_class_name")
    if pipeline is None:
        raise ModelNotFoundError(f"{index} cannot be read: it names no pipeline in _class_name")
    return _WITHOUT_BLOCKS.get(str(pipeline), str(pipeline))


def _loader_of(folder: Path, variant: str | None) -> Callable[[Path, LoadOptions], World]:
    pipeline = _pipeline_of(folder)
    check_whole(folder, variant)  # before anything large is imported
    _check_packages(pipeline)
    room = next((room for room, pipelines in _LOADERS.items() if pipeline in pipelines), None)
    module = importlib.import_module(f"cosmorama.world.{room}.families" if room else "cosmorama.world.generic.load")
    load: Callable[[Path, LoadOptions, str], World] = module.load
    return lambda folder, options: load(folder, options, pipeline)


def _check_packages(what: str) -> None:
    """Refuse a model without the packages that every pipeline of diffusers is loaded with.

    Raises:
        ModelNotFoundError: says how to install them.
    """
    for package in ("accelerate", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise ModelNotFoundError(f"{what} needs {package}: pip install '.[cosmos]'")


def _device(device: str | torch.device | None) -> torch.device:
    import torch

    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        asked = torch.device(device)
    except RuntimeError as error:
        raise ModelNotFoundError(f"device is {device!r}: {str(error).partition(chr(10))[0]}") from error
    if asked.type == "cuda" and (asked.index or 0) >= (gpus := torch.cuda.device_count()):
        raise ModelNotFoundError(
            f"the model is to run on {asked}, and torch {torch.__version__} sees {gpus} GPUs: {_A_GPU}"
        )
    return asked


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    import torch

    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    if name not in get_args(DType):
        raise ValueError(f"dtype is {name!r}; it must be one of {', '.join(get_args(DType))}")
    return cast("torch.dtype", getattr(torch, name))
