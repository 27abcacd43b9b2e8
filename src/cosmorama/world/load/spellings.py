"""What the weights of a LoRA adapter are called by those who train them, and which layers they mean.

diffusers, PEFT, kohya's scripts, LyCORIS and NVIDIA's own code each write the same two matrices under names of their
own. Here a file becomes one `Addition` per layer, whatever wrote it, or is refused with the first names that are not
understood: an adapter of which a part is dropped is another adapter.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from cosmorama.errors import ModelNotFoundError
from cosmorama.world.load.files import instead_of
from cosmorama.world.load.layers import aliases_of
from cosmorama.world.load.read import read_header, read_json, some

_PREFIXES = re.compile(
    r"(base_model\.model|base_model|model\.diffusion_model|diffusion_model|transformer|module|model|net|pipe\.dit|dit)\."
)
_WRAPPERS = re.compile(r"\b_(orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module)\.")
"""What torch puts around a network that was compiled, shared out or recomputed while it was trained."""
_FLAT = re.compile(r"(lora_unet|lora_transformer|lora_te0|lycoris)_")
"""Before names whose dots were written as underscores."""
_ROLES = (
    (
        re.compile(r"\.lora_A(\.(?!bias$)[^.]+){0,2}$|[._]lora[._]down\.weight$|\.lora_linear_layer\.down\.weight$"),
        "down",
    ),
    (re.compile(r"\.lora_B(\.(?!bias$)[^.]+){0,2}$|[._]lora[._]up\.weight$|\.lora_linear_layer\.up\.weight$"), "up"),
    (re.compile(r"\.alpha$"), "alpha"),
    (re.compile(r"\.dora_scale$|\.lora_magnitude_vector(\.[^.]+)?(\.weight)?$"), "magnitude"),
)
_OTHER_KINDS = {
    "LoKr": r"\.lokr_",
    "LoHa": r"\.hada_",
    "OFT": r"\.b?oft_",
    "IA3": r"\.ia3_l",
    "VeRA": r"\.vera_lambda_|\bvera_[AB]$",
    "AdaLoRA": r"\.lora_E\b|\.ranknum\b",
    "GLoRA": r"\.[ab][12]\.weight$",
    "LoCon with a third matrix": r"\.lora_mid\.",
}
"""Adapters that are no two matrices for each layer, by what their weights are called."""
_CHANGE_THE_MODEL = ("pissa", "olora", "corda", "loftq", "lora_ga")
_MORE_THAN_MATRICES = (
    *("fan_in_fan_out", "layer_replication", "alora_invocation_tokens", "use_qalora", "use_bdlora", "kasa_config"),
    *("arrow_config", "monteclora_config", "target_parameters", "trainable_token_indices", "modules_to_save"),
    "lora_bias",
)
"""What PEFT's configs may ask for beside two matrices for each layer: another model, other places, other sums."""
Shapes = Mapping[str, tuple[int, int]]
Convert = Callable[[dict[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Addition:
    """What an adapter adds to one linear layer: `up @ down` to its matrix.

    Attributes:
        down: `[rank, columns]`.
        up: `[rows, rank]`, with the adapter's own scale (alpha over rank) in it.
        magnitude: `[rows]`, of each row of the sum, where the adapter sets it (DoRA).
    """

    down: Tensor
    up: Tensor
    magnitude: Tensor | None = None


def read_adapter(name: str, path: Path, layers: Shapes, convert: Convert | None = None) -> dict[str, Addition]:
    """Read an adapter for a network.

    Args:
        name: What requests call it.
        path: A safetensors file, or a folder with one, as PEFT and diffusers save them.
        layers: Rows and columns of the network's linear layers, by their names.
        convert: What a pipeline does to adapters of other spellings than those that are known here.

    Returns:
        By the names of the layers.

    Raises:
        ModelNotFoundError: the file is none, is damaged, or has weights that have no place in the network; names them.
    """
    file = file_of(name, path)

    def refused(why: str) -> ModelNotFoundError:
        return ModelNotFoundError(f"the adapter {name} ({file.name}){why}")

    weights = _tensors(name, file)
    config = _config(file, alphas=any(key.endswith(".alpha") for key in weights))
    found, paths, unknown = _sorted(weights, aliases_of(layers))
    # A conversion drops what it does not know, and magnitudes.
    if convert is not None and unknown and all(_role(key)[0] in ("down", "up", "alpha") for key in weights):
        try:
            converted = convert(dict(weights))
        except Exception:  # it knows other spellings, not this one  # noqa: BLE001
            converted = {}
        again, renamed, left = _sorted(converted, aliases_of(layers))
        if converted and not left:
            found, paths, unknown = again, renamed, left
            if pattern := next((key for key in ("alpha_pattern", "rank_pattern") if config.get(key)), None):
                raise refused(f": its {pattern} is in names of another code than diffusers': save it with diffusers")
    if unknown:
        for kind, pattern in _OTHER_KINDS.items():
            if any(re.search(pattern, key) for key in unknown):
                raise refused(f" is {kind} ({some(unknown)}): only LoRA and DoRA are applied")
        some_fit = f"{len(unknown)} of its {len(weights)} weights have no place in"
        raise refused(f": {some_fit if found else 'none of its weights fits'} this model: {some(unknown)}")
    additions = {
        layer: _addition(name, layer, parts, layers[layer], _own(config, (layer, *_spellings(paths[layer]))))
        for layer, parts in found.items()
    }
    if not additions:
        raise refused(" has no weights")
    if not any(each.magnitude is not None or (each.up.any() and each.down.any()) for each in additions.values()):
        raise refused(" adds nothing: its matrices or its alpha are zero, as before a training")
    plain = [layer for layer, addition in additions.items() if addition.magnitude is None]
    if plain and config.get("use_dora"):
        raise refused(f" says use_dora, but has no magnitude for {some(plain)}")
    if plain and len(plain) < len(additions):
        raise refused(f": some layers have a magnitude (DoRA), but not {some(plain)}")
    return additions


def file_of(name: str, path: Path) -> Path:
    """The file of an adapter: the path itself, or the one that the folder holds.

    Raises:
        ModelNotFoundError: there is none, or several.
    """
    if not path.exists():
        raise ModelNotFoundError(f"the adapter {name}: there is no {path}")
    usual = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
    named = [path / file for file in usual if (path / file).is_file()][:1]
    files = [path] if path.is_file() else named or sorted(path.glob("[!.]*.safetensors"))
    if len(files) != 1 or files[0].suffix != ".safetensors":
        there = "" if files else instead_of([file.name for file in path.iterdir()])
        raise ModelNotFoundError(
            f"the adapter {name} must be one .safetensors file, or a folder with one: {path}{there}"
        )
    return files[0]


def _tensors(name: str, file: Path) -> dict[str, Tensor]:
    read_header(file)  # refuses what is damaged by its name
    tensors = {}
    with safe_open(file, framework="pt") as opened:
        for key in opened.keys():  # noqa: SIM118 - not a mapping
            tensor = opened.get_tensor(key)
            if not tensor.dtype.is_floating_point and not key.endswith(".alpha"):
                raise ModelNotFoundError(f"the adapter {name} ({file.name}): {key} is stored as {tensor.dtype}")
            tensors[key] = tensor.float()
            if not bool(torch.isfinite(tensors[key]).all()):
                raise ModelNotFoundError(f"the adapter {name} ({file.name}): {key} holds numbers that are not finite")
    return tensors


def _config(file: Path, *, alphas: bool) -> dict[str, Any]:
    """What an adapter says of its scale: PEFT's file beside it, diffusers' words in its header, or kohya's there.

    Args:
        file: The adapter.
        alphas: Whether its weights say the scale, too, which then holds where kohya's scripts wrote both.
    """
    beside = file.with_name("adapter_config.json")
    if beside.is_file():
        config = {"lora_alpha": 8} | read_json(beside)  # PEFT's own, where nothing is said
        if str(config.get("peft_type") or "LORA").upper() != "LORA":
            raise ModelNotFoundError(f"{beside} is that of {config['peft_type']}: only LoRA and DoRA are applied")
        return _checked(beside, config)
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata() or {}
    said = metadata.get("lora_adapter_metadata")
    if said is None:
        return {} if alphas else _checked(file, _of_kohya(file, metadata))
    try:
        values = json.loads(said)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise ModelNotFoundError(f"{file}: the lora_adapter_metadata in its header cannot be read as a JSON object")
    return _checked(file, {key.removeprefix("transformer."): value for key, value in values.items()})


def _of_kohya(file: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Rank and alpha as kohya's scripts write them into the header; 0 and None mean an alpha as large as the rank."""
    found: dict[str, Any] = {}
    for key, name in (("ss_network_dim", "r"), ("ss_network_alpha", "lora_alpha")):
        value = metadata.get(key, "None")
        if value in ("None", "Dynamic"):  # of a file in which each layer has its own
            continue
        try:
            found[name] = int(number) if (number := float(value)).is_integer() else number
        except ValueError:
            raise ModelNotFoundError(f"{file}: {key} in its header is {value!r}; it must be a number") from None
    if not found.get("lora_alpha"):
        found.pop("lora_alpha", None)
    return found


def _checked(file: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Refuse what an adapter says of itself where that cannot be, or is not applied."""
    for usual, pattern in (("lora_alpha", "alpha_pattern"), ("r", "rank_pattern")):
        patterns = config.get(pattern) or {}
        numbers = {usual: config.get(usual), **(patterns if isinstance(patterns, dict) else {"": patterns})}
        for name, value in numbers.items():
            if value is not None and not _is_number(value):
                raise ModelNotFoundError(f"{file}: {name or pattern} is {value!r}; it must be a number")
            try:
                re.compile(name)
            except re.error as error:
                raise ModelNotFoundError(f"{file}: {name!r} in {pattern} is no regular expression: {error}") from None
    for name in ("use_rslora", "use_dora"):
        if not isinstance(config.get(name) or False, bool):
            raise ModelNotFoundError(f"{file}: {name} is {config[name]!r}; it must be true or false")
    if str(begun := config.get("init_lora_weights")).startswith(_CHANGE_THE_MODEL):
        raise ModelNotFoundError(
            f"{file}: init_lora_weights is {begun!r}, which changes the model too: save a plain LoRA"
        )
    for name in _MORE_THAN_MATRICES:
        if config.get(name):
            raise ModelNotFoundError(f"{file}: {name} is set; only plain matrices of [rows, columns] are applied")
    return config


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _role(key: str) -> tuple[str, str]:
    """What a weight is in its layer (empty: neither matrix, alpha nor magnitude), and the layer's name in the file."""
    return next(((role, key[: match.start()]) for pattern, role in _ROLES if (match := pattern.search(key))), ("", ""))


def _sorted(
    weights: Mapping[str, Tensor], aliases: Mapping[str, str]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, str], set[str]]:
    """The weights by layer and by what they are there; what the file calls each layer; names that have no place."""
    found: dict[str, dict[str, Tensor]] = {}
    paths: dict[str, str] = {}
    unknown = set()
    for key, tensor in weights.items():
        role, path = _role(key)
        layer = next((aliases[name] for name in _spellings(path) if name in aliases), None)
        if not role or layer is None or role in found.get(layer, {}):
            unknown.add(key)
        else:
            found.setdefault(layer, {})[role] = tensor
            paths[layer] = path
    return found, paths, unknown


def _spellings(path: str) -> Iterator[str]:
    """What a layer is called in a file, and the same without one prefix after the other."""
    path = _WRAPPERS.sub("", path).replace(".processor.", ".")  # as diffusers once wrote them
    yield path
    while match := _PREFIXES.match(path) or _FLAT.match(path):
        path = path[match.end() :]
        yield path


def _own(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """What a config says of one layer, which its patterns may call by any of these names."""
    found = dict(config)
    for usual, pattern in (("lora_alpha", "alpha_pattern"), ("r", "rank_pattern")):
        for key, value in (config.get(pattern) or {}).items():
            if any(re.match(rf"(.*\.)?({key})$", name) for name in names):  # as PEFT looks for them
                found[usual] = value
                break
    return found


def _addition(
    name: str, layer: str, parts: Mapping[str, Tensor], shape: tuple[int, int], config: Mapping[str, Any]
) -> Addition:
    for role, words in (("down", "lora_A (or lora_down)"), ("up", "lora_B (or lora_up)")):
        if role not in parts:
            raise ModelNotFoundError(f"the adapter {name} has no {words} for {layer}")
    down, up = (parts[role].reshape(parts[role].shape[:2]) if _is_matrix(parts[role]) else None for role in _PAIR)
    rows, columns = shape
    if down is None or up is None or down.shape[1] != columns or up.shape[0] != rows or down.shape[0] != up.shape[1]:
        given = f"{list(parts['up'].shape)} and {list(parts['down'].shape)}"
        raise ModelNotFoundError(
            f"the adapter {name} is for a model of another size: {layer} has {rows} rows and {columns} columns, the "
            f"adapter's matrices are {given}"
        )
    magnitude = parts.get("magnitude")
    if magnitude is not None:
        if magnitude.numel() != rows or magnitude.shape[0] != rows:
            raise ModelNotFoundError(
                f"the adapter {name}: the magnitudes of {layer} have the shape {list(magnitude.shape)}; one for each "
                f"of its {rows} rows is applied"
            )
        magnitude = magnitude.reshape(rows)
    said = config.get("r")
    if said is not None and said != len(down):
        raise ModelNotFoundError(f"the adapter {name} says that its rank is {said!r}; that of {layer} is {len(down)}")
    alpha = parts.get("alpha")
    if alpha is not None and alpha.numel() != 1:
        raise ModelNotFoundError(f"the adapter {name}: the alpha of {layer} is {alpha.numel()} numbers, not one")
    return Addition(down, up * _scale(len(down), alpha, config), magnitude)


_PAIR = ("down", "up")


def _is_matrix(tensor: Tensor) -> bool:
    return tensor.ndim >= 2 and tensor.numel() == tensor.shape[0] * tensor.shape[1]


def _scale(rank: int, alpha: Tensor | None, config: Mapping[str, Any]) -> float:
    """The adapter's own: alpha over rank, or over its square root; 1 where nothing is said."""
    if alpha is not None:
        return float(alpha.reshape(-1)[0]) / rank
    said = config.get("lora_alpha")
    if said is None:
        return 1.0
    return float(said) / (rank**0.5 if config.get("use_rslora") else rank)
