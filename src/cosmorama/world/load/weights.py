"""The tensors of one part of a checkpoint, and how a module gets them: all of them, and nothing else.

A tensor is either put into the module or is on a short list of what is known to have no place in it; a parameter of the
module is either in the files or the checkpoint is refused by its name. What a library would pass over with a line in a
log (scales of quantized weights, leftovers of a merge, names with a prefix) would be noise in every clip.

Weights in 8-bit floating point, with a scale per matrix or per row as NVIDIA's ModelOpt writes them, are brought to the
type that is computed in while they are read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from cosmorama.errors import ModelNotFoundError
from cosmorama.world.load.config import beyond, check_config, without_quantization
from cosmorama.world.load.files import stored_tensors
from cosmorama.world.load.read import FLOAT8, FLOATS, damaged, first_line, read_json, some

_TYPES = {"F64": torch.float32, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_SCALES = ("weight_scale", "scale_weight", "weight_quantizer._scale")
"""What stands in the place of `weight` in the name of the numbers that an 8-bit matrix is multiplied with."""
_OF_ACTIVATIONS = (
    *("input_scale", "scale_input", "input_quantizer._scale", "input_quantizer._amax"),
    *("output_scale", "output_quantizer._scale", "output_quantizer._amax", "weight_quantizer._amax"),
)
"""The same for what only multiplying in 8 bits needs, which is not done here."""
_MARKERS = ("scaled_fp8",)
"""Empty tensors that say of a file that it has scales."""
_UNUSED = {
    # Text is not predicted, sound is not made.
    "Cosmos3OmniTransformer": re.compile(r"lm_head\.|audio_"),
    # The files may hold the whole of a translation model, of which only the encoder is asked for.
    "T5EncoderModel": re.compile(r"decoder\.|lm_head\."),
    "UMT5EncoderModel": re.compile(r"decoder\.|lm_head\."),
    # Nothing is looked at, and no word is predicted.
    "Qwen2_5_VLTextModel": re.compile(r"(model\.)?visual\.|lm_head\."),
}
"""By the class of a module: names of tensors that its files may hold and that nothing here has a use for."""
_OTHER_KINDS = {
    "FP8 in blocks": r"\.weight_scale_inv$",
    "NVFP4": r"\.weight_scale_2$",
    "ComfyUI's own": r"\.comfy_quant$",
    "GPTQ, AWQ or Nunchaku": r"\.qweight$",
    "bitsandbytes": r"\.weight\.(absmax|quant_map|quant_state\.\w+)$|\.SCB$",
    "compressed-tensors": r"\.weight_packed$",
    "quanto or torchao": r"\.weight[.:]_\w+$",
}
"""Of quantized weights that are not read: what they are, by the names of what lies beside or in the place of them."""
_READ = ("modelopt FP8", "modelopt FP8_PER_CHANNEL_PER_TOKEN", "compressed-tensors float-quantized")
"""What configs call weights in FP8 whose scales are one per matrix or one per row."""
_INSTEAD = "which is not read: take the checkpoint in bfloat16, or in FP8 with a scale per matrix or row, as ModelOpt's"
Place = Callable[[str], torch.device | str]


class Weights:
    """The tensors of one part of a checkpoint, whichever files they are in and however they are held there.

    Attributes:
        folder: Of the part.
        config: Its `config.json`, but for what that says of how weights are stored.
        stored: Them and their companions as the headers have them.
        dtype: What most of its numbers are stored as; what the type of those in 8 bits becomes.
    """

    def __init__(self, folder: Path, variant: str | None = None) -> None:
        """Look into the headers of the files.

        Raises:
            ModelNotFoundError: files are missing or damaged, or hold weights in a form that is not read here.
        """
        self.folder = folder
        self.stored = stored_tensors(folder, variant)
        file = folder / "config.json"
        config = read_json(file) if file.is_file() else {}  # whether it has to be there is said elsewhere
        check_config(file, config, self.stored)
        self.config = without_quantization(config)
        self._scales = {
            f"{owner}weight": name
            for name in self.stored
            for suffix in _SCALES
            if (owner := name.removesuffix(suffix)) != name and f"{owner}weight" in self.stored
        }
        beside = {
            name
            for name in self.stored
            for suffix in _OF_ACTIVATIONS
            if (owner := name.removesuffix(suffix)) != name and f"{owner}weight" in self._scales
        }
        self._companions = {*self._scales.values(), *beside, *(name for name in _MARKERS if name in self.stored)}
        self._check_types(_quantized(config))
        plain: Counter[str] = Counter()
        for name in self:
            if (stored := self.stored[name]).dtype in FLOATS:
                plain[stored.dtype] += stored.count
        in_8_bits = any(stored.dtype in FLOAT8 for stored in self.stored.values())
        common = plain.most_common(1)[0][0] if plain else "BF16" if in_8_bits else "F32"
        self.dtype = _TYPES[common]

    @property
    def count(self) -> int:
        """How many numbers the weights are."""
        return sum(self.stored[name].count for name in self)

    def __iter__(self) -> Iterator[str]:
        """The names of the weights, without those of their scales."""
        return (name for name in self.stored if name not in self._companions)

    def shape(self, name: str) -> tuple[int, ...]:
        """The sides of a weight."""
        return self.stored[name].shape

    def nbytes(self, name: str, dtype: torch.dtype) -> int:
        """Bytes of memory that a weight takes where those with fractions become `dtype`."""
        stored = self.stored[name]
        return stored.count * (dtype.itemsize if stored.dtype in FLOATS | FLOAT8 else stored.bits // 8)

    def read(self, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[tuple[str, Tensor]]:
        """The weights of wanted names, file by file, on the CPU; those in 8 bits as `dtype`.

        Raises:
            ModelNotFoundError: a file cannot be read, or scales are missing.
        """
        names: dict[Path, list[str]] = {}
        for name in filter(wanted, self):
            names.setdefault(self.stored[name].file, []).append(name)
        for file, inside in names.items():
            try:
                with safe_open(file, framework="pt") as opened:
                    for name in inside:
                        tensor = opened.get_tensor(name)
                        yield name, tensor if tensor.dtype.itemsize > 1 else self._as_float(name, tensor)
            except (SafetensorError, OSError) as error:
                raise damaged(file, str(error)) from error

    def _refused(self, why: str) -> ModelNotFoundError:
        return ModelNotFoundError(f"{self.folder} cannot be loaded: {why}")

    def _as_float(self, name: str, tensor: Tensor) -> Tensor:
        if not tensor.dtype.is_floating_point:
            return tensor
        numbers = tensor.float()
        if name not in self._scales:
            # A plain copy of trained weights in 8 bits comes nowhere near the end of the type.
            if numbers.abs().max() >= torch.finfo(tensor.dtype).max:
                raise self._refused(
                    f"{name} is in 8 bits and fills their whole range, but the scale that belongs to it is missing"
                )
            return numbers.to(self.dtype)
        scale_name = self._scales[name]
        with safe_open(self.stored[scale_name].file, framework="pt") as opened:
            scale = opened.get_tensor(scale_name).float()
        if scale.numel() != 1 and scale.shape not in ((len(numbers),), (len(numbers), 1)):
            raise self._refused(f"{scale_name} has the shape {list(scale.shape)}, {_INSTEAD}")
        if not (scale.isfinite().all() and scale.min() >= 0 and scale.max() > 0):
            raise self._refused(f"{scale_name} must have numbers above 0")
        scaled: Tensor = numbers * scale.reshape(-1, *[1] * (numbers.ndim - 1))
        return scaled.to(self.dtype)

    def _check_types(self, quantized: str | None) -> None:
        if quantized not in (None, *_READ):
            raise ModelNotFoundError(
                f"{self.folder / 'config.json'} has a quantization_config of {quantized}, {_INSTEAD}"
            )
        for name in self.stored:
            for kind, pattern in _OTHER_KINDS.items():
                if re.search(pattern, name):
                    raise self._refused(f"its weights are quantized as {kind} by {some([name])}, {_INSTEAD}")
        for name, stored in self.stored.items():
            owner, _, last = name.rpartition(".")
            if last in ("weight", "bias") and stored.dtype not in FLOATS | FLOAT8:
                raise self._refused(f"{name} is stored as {stored.dtype}, which is not read as a weight")
            if quantized and stored.dtype in FLOAT8 and name not in self._scales:
                raise self._refused(f"{name} is in FP8, but has no weight_scale")
            if name in self._scales and (scale := self.stored[self._scales[name]]).dtype not in FLOATS:
                raise self._refused(f"{self._scales[name]} is stored as {scale.dtype}, which is not read as a scale")
            if name in self._scales and stored.dtype not in FLOAT8:
                raise self._refused(
                    f"{name} is stored as {stored.dtype}, but has "
                    f"{self._scales[name].removeprefix(owner + '.')} beside it"
                )
        if quantized and not self._scales:
            raise ModelNotFoundError(
                f"{self.folder / 'config.json'} has a quantization_config of {quantized}, but no weight has a scale"
            )


def known_unused(kind: str, name: str) -> bool:
    """Whether a tensor of this name is one that nothing here has a use for, by what a config says of its class."""
    return any(known in kind and pattern.match(name) for known, pattern in _UNUSED.items())


def unused(module: nn.Module | type, name: str) -> bool:
    """Whether a tensor of this name may be in a module's files without having a place in it."""
    kind = module if isinstance(module, type) else type(module)
    if known_unused(kind.__name__, name):
        return True
    return any(re.search(pattern, name) for pattern in getattr(kind, "_keys_to_ignore_on_load_unexpected", None) or ())


def assign(
    module: Any,
    weights: Weights,
    *,
    dtype: torch.dtype,
    place: Place = lambda name: "cpu",
) -> None:
    """Give a module of diffusers its weights.

    Args:
        module: With its parameters on the meta device.
        weights: Its tensors.
        dtype: What they become, but for those that the module's class keeps in float32.
        place: Where a weight goes, by its name.

    Raises:
        ModelNotFoundError: names what is missing, has no place, or has another shape.
    """
    expected = module.state_dict()
    found = set(weights)
    extra = {name for name in found - expected.keys() if not unused(module, name)}
    check_names(weights.folder, expected.keys() - found, extra, type(module))
    exact = set(getattr(module, "_keep_in_fp32_modules", None) or ())
    loaded: dict[str, Tensor] = {}
    for name, tensor in weights.read(lambda name: name in expected):
        if tensor.shape != expected[name].shape:
            raise ModelNotFoundError(
                f"{weights.folder} cannot be loaded: {name} has the shape {list(tensor.shape)}, and config.json makes "
                f"it {list(expected[name].shape)}"
            )
        if expected[name].is_floating_point() and not tensor.is_floating_point():
            raise ModelNotFoundError(
                f"{weights.folder} cannot be loaded: {name} is stored as {tensor.dtype}, which is not read as a weight"
            )
        kind = dtype if exact.isdisjoint(name.split(".")) else torch.float32
        loaded[name] = tensor.to(place(name), kind if tensor.is_floating_point() else tensor.dtype)
    module.load_state_dict(loaded, assign=True, strict=False)


class _Unfilled(TorchFunctionMode):
    """Leaves out how new weights begin: it takes time, and for tensors without memory torch would load its compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") == nn.init.__name__:
            return kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def bounded(weights: Weights) -> Iterator[None]:
    """Within, a module is built that has no more than four times the numbers of its files; they are not filled in.

    Until it is whole, T5's has its words three times.

    Raises:
        ModelNotFoundError: while it is built, as soon as it has more: its config is of another size; or it cannot be.
    """
    file, count, stored = weights.folder / "config.json", 0, weights.count

    def add(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count
        count += 0 if parameter is None else max(1, parameter.numel())
        if count > 4 * stored:
            raise ModelNotFoundError(
                f"{file} is that of a network of more than {4 * stored:,} numbers, and its weights are "
                f"{stored:,}: {beyond(weights.config, weights.stored)}"
            )

    hook = register_module_parameter_registration_hook(add)
    try:
        with _Unfilled():
            yield
    except ModelNotFoundError:
        raise
    except Exception as error:  # whatever a library says of numbers that do not go together
        told = f"{first_line(error)}; {beyond(weights.config, weights.stored)}"
        raise ModelNotFoundError(f"{file} makes no network: {told}") from error
    finally:
        hook.remove()


def check_names(folder: Path, missing: Collection[str], extra: Collection[str], kind: type) -> None:
    """Refuse a part whose files lack weights of its module, or have more than those.

    Raises:
        ModelNotFoundError: names what is missing, or what has no place.
    """
    more = f"{kind.__name__} has no place for {some(extra)}" if extra else ""
    if missing:
        beside = f", while {more}" if more else ""
        raise ModelNotFoundError(f"{folder} is not a complete checkpoint: no weights for {some(missing)}{beside}")
    if more:
        raise ModelNotFoundError(f"{folder} cannot be loaded: {more}")


def _quantized(config: Mapping[str, Any]) -> str | None:
    """What a part's config says its weights are quantized with, for example `modelopt FP8`."""
    asked = config.get("quantization_config") or config.get("compression_config")
    if not asked:
        return None
    if not isinstance(asked, dict):
        return str(asked)
    said, producer = asked.get("quantization"), asked.get("producer")  # as ModelOpt's own exports have it
    asked = asked | (said if isinstance(said, dict) else {})
    by = producer.get("name") if isinstance(producer, dict) else None
    method = str(asked.get("quant_method") or asked.get("quant_library") or by or "an unknown method")
    kind = next((str(asked[key]) for key in ("quant_algo", "quant_type", "format") if asked.get(key)), "")
    return f"{method} {kind.upper() if kind.lower() == 'fp8' else kind}".strip()
