"""A checkpoint folder in diffusers' layout: what must be in it, and how its parts become modules.

Weights are read from safetensors only: a pickle may run code when it is read. Each part gets all of its weights and
no others; which files they are is said in `files`, how they are read in `weights`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError

from cosmorama.errors import CosmoramaError, ModelNotFoundError
from cosmorama.world.kernels.attention import choose_attention
from cosmorama.world.kernels.cpu import use_onednn
from cosmorama.world.kernels.gpu import choose_compile
from cosmorama.world.load.files import check_variant, missing_of_part
from cosmorama.world.load.names import is_denoiser
from cosmorama.world.load.offload import place
from cosmorama.world.load.options import LoadOptions
from cosmorama.world.load.quantize import quantize_blocks
from cosmorama.world.load.read import check_small, first_line, read_json, some
from cosmorama.world.load.weights import Place, Weights, assign, bounded, check_names, unused

_AROUND = {"Qwen2_5_VLTextModel": ("Qwen2_5_VLConfig", re.compile(r"(model\.)?(language_model\.)?(model\.)?"))}
"""Networks that are read out of a larger one: its config, and what its files put before their names."""
_TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.json", "vocab.txt")


def check_parts(folder: Path, modules: tuple[str, ...], tokenizer: str, variant: str | None = None) -> None:
    """Look for every file that loading will need: configs, safetensors with all their shards, a tokenizer.

    Raises:
        ModelNotFoundError: naming everything that is missing.
    """
    missing = [file for part in modules for file in missing_of_part(folder, part, variant)]
    if not (folder / "scheduler" / "scheduler_config.json").is_file():
        missing.append("scheduler/scheduler_config.json")
    if not _has_vocabulary(folder / tokenizer):
        missing.append(f"{tokenizer}/{_TOKENIZER_FILES[0]}")
    if missing:
        raise ModelNotFoundError(f"{folder} is not a complete checkpoint: missing {', '.join(missing)}")
    check_variant(folder, modules, variant)


def load_module(kind: Any, folder: Path, options: LoadOptions) -> Any:
    """One part of a checkpoint, of a class of diffusers or transformers, ready to evaluate where options say.

    Raises:
        ModelNotFoundError: its weights do not fit its config, or cannot be held as the options say.
    """
    module = build(kind, folder, options.dtype, options.variant)
    choose_kernels(module, options, lambda name: options.device if options.offload == "none" else "cpu")
    if str(options.device) == "cpu":
        use_onednn(module)
    return place(module, options.device, options.offload)


def choose_kernels(module: Any, options: LoadOptions, place_of: Place) -> None:
    """Let a denoiser or a ControlNet run as the options say; other networks are left as they are."""
    if not is_denoiser(type(module).__name__):
        return
    if options.quantize != "none":
        quantize_blocks(module, place_of, options.quantize)
    choose_attention(module, options.attention)
    if torch.device(options.device).type != "cpu":
        choose_compile(module, options.compile)


def load_tokenizer(
    folder: Path,
    kind: Any = None,
    *,
    chat: Callable[[Any, str], str] | None = None,
    reader: Any = None,
    padded: bool = True,
) -> Any:
    """The tokenizer of a checkpoint.

    Args:
        folder: Of the tokenizer.
        kind: Its class; None: what its files say.
        chat: How a prompt is written as a chat with it, which needs a template for one; None: it is not.
        reader: The network of transformers that reads its tokens.
        padded: Whether prompts are filled up to the same number of tokens.

    Raises:
        ModelNotFoundError: a file is damaged, a package is missing, there is no template, or it has more tokens than
            its reader; says which.
    """
    from transformers import AutoTokenizer

    for file in sorted(file for file in folder.glob("[!.]*") if file.is_file()):
        check_small(file)
    _check_vocabulary_files(folder)
    with told_of(folder):
        # Code in the folder is never run; asked nothing, the library would ask whoever sits at the terminal.
        try:
            tokenizer = (kind or AutoTokenizer).from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except ValueError as error:
            if _has_vocabulary(folder):
                raise
            raise ModelNotFoundError(f"{folder} is not a complete checkpoint: missing {_TOKENIZER_FILES[0]}") from error
        tokenizer("a")
    if padded and tokenizer.pad_token is None:
        raise ModelNotFoundError(f"{folder} cannot be loaded: it has no pad_token, and prompts are filled up with it")
    if reader is not None:
        check_vocabulary(folder, tokenizer, reader.get_input_embeddings().num_embeddings)
    if chat and not tokenizer.chat_template:
        # Where a processor was saved, the template is in a file of its own that tokenizers do not look into.
        file = folder / "chat_template.json"
        template = read_json(file).get("chat_template") if file.is_file() else None
        if not isinstance(template, str):
            raise ModelNotFoundError(
                f"{folder} is not a complete checkpoint: missing chat_template.jinja, and there is none in "
                "tokenizer_config.json; download the folder again"
            )
        tokenizer.chat_template = template
    if chat:
        _try_template(folder, lambda prompt: chat(tokenizer, prompt))
    return tokenizer


def _has_vocabulary(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def _check_vocabulary_files(folder: Path) -> None:
    """Refuse a tokenizer whose words cannot be read: its library would list all that it looked for.

    Raises:
        ModelNotFoundError: names the file.
    """
    if (folder / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        with told_of(folder / "tokenizer.json"):
            Tokenizer.from_file(str(folder / "tokenizer.json"))
    elif (folder / "spiece.model").is_file():
        try:
            from sentencepiece import SentencePieceProcessor
        except ModuleNotFoundError as error:
            raise ModelNotFoundError(
                f"{folder / 'spiece.model'} needs sentencepiece: pip install sentencepiece"
            ) from error
        with told_of(folder / "spiece.model"):
            SentencePieceProcessor(model_file=str(folder / "spiece.model"))


def check_vocabulary(folder: Path, tokenizer: Any, known: int) -> None:
    """Refuse a tokenizer of more tokens than the network that reads them knows; one more would end a GPU's process.

    Raises:
        ModelNotFoundError: says how many there are.
    """
    if len(tokenizer) > known:
        raise ModelNotFoundError(
            f"{folder} cannot be loaded: it has {len(tokenizer)} tokens, and the network that reads them knows {known}"
        )


def _try_template(folder: Path, written: Callable[[str], str]) -> None:
    """Refuse a template with which every prompt would fail, or give the same clip."""
    prompt = "a red ball"
    try:
        chat = written(prompt)
    except Exception as error:  # whatever the template does
        raise ModelNotFoundError(f"{folder} cannot be loaded: its chat template fails: {first_line(error)}") from error
    if prompt not in chat:
        raise ModelNotFoundError(f"{folder} cannot be loaded: its chat template leaves the prompt out")


def build(kind: Any, folder: Path, dtype: torch.dtype | None = None, variant: str | None = None) -> Any:
    """Build one part of a checkpoint on the CPU, ready to evaluate, as `LoadOptions` say of dtype and variant.

    Raises:
        ModelNotFoundError: the folder is incomplete, damaged, of another class, or not in a form that is read; says
            which file or weight.
    """
    weights = Weights(folder, variant)
    with told_of(folder):
        made = _diffusers if _is_diffusers(kind) else _transformers
        module = made(kind, weights, dtype or weights.dtype)
    return module.eval().requires_grad_(False)


@contextmanager
def told_of(place: Path) -> Iterator[None]:
    """Whatever a library says of a checkpoint's files is told in one sentence that names them."""
    try:
        yield
    except (CosmoramaError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever: each library has its own, and all of them mean the same
        raise ModelNotFoundError(f"{place} cannot be loaded: {first_line(error)}") from error


def _is_diffusers(kind: Any) -> bool:
    from diffusers.models.modeling_utils import ModelMixin

    return issubclass(kind, ModelMixin)


def check_class(weights: Weights, kind: type) -> None:
    """Refuse a config of another class than `kind`, of diffusers, or with a member of another type than it takes.

    Raises:
        ModelNotFoundError: names both.
    """
    file = weights.folder / "config.json"
    name = weights.config.get("_class_name", kind.__name__)
    if name != kind.__name__:
        raise ModelNotFoundError(f"{file} is that of a {name}, not of a {kind.__name__}")
    if not kind.__name__.startswith("Cosmos"):  # others do not keep to the types that they write down
        return
    for name, taken in get_type_hints(kind.__init__).items():  # type: ignore[misc]
        if name in weights.config:
            try:
                TypeAdapter(taken).validate_python(weights.config[name])
            except ValidationError as error:
                value, said = weights.config[name], error.errors()[0]["msg"]
                raise ModelNotFoundError(f"{file}: {name} is {value!r}; {kind.__name__} says: {said}") from None


def _diffusers(kind: Any, weights: Weights, dtype: torch.dtype) -> Any:
    from accelerate import init_empty_weights

    check_class(weights, kind)
    with bounded(weights), init_empty_weights():  # but for what is computed and not stored
        module = kind.from_config(weights.config)
    assign(module, weights, dtype=dtype)
    return module


def _transformers(kind: Any, weights: Weights, dtype: torch.dtype) -> Any:
    import transformers

    around, before = _AROUND.get(kind.__name__, ("", re.compile("")))
    outer = getattr(transformers, around, kind.config_class)
    name = weights.config.get("model_type", outer.model_type)
    if name not in (outer.model_type, kind.config_class.model_type):
        raise ModelNotFoundError(
            f"{weights.folder / 'config.json'} is that of a model of type {name}, not {outer.model_type}"
        )
    read_as = outer if name == outer.model_type else kind.config_class

    def config() -> Any:
        made = read_as.from_dict(weights.config)
        return made.get_text_config() if around else made

    with bounded(weights), torch.device("meta"):
        kind(config())

    def used(name: str) -> bool:
        return not unused(kind, name)

    with _quiet():
        # Names of older versions are translated there, and weights shared between layers are told from missing ones.
        module, found = kind.from_pretrained(
            None,
            config=config(),
            state_dict={before.sub("", found, count=1): tensor for found, tensor in weights.read(used)},
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    missing = {str(name) for name in found.get("missing_keys", ())}
    extra = {str(name) for name in found.get("unexpected_keys", ()) if used(str(name))}
    other = {str(entry if isinstance(entry, str) else entry[0]) for entry in found.get("mismatched_keys", ())}
    if other:
        raise ModelNotFoundError(f"{weights.folder} cannot be loaded: config.json makes {some(other)} another shape")
    check_names(weights.folder, missing, extra, kind)
    for twin, first in module.get_expanded_tied_weights_keys().items():
        # Where they differ, one version of the library reads this one and another that one.
        if {twin, first}.issubset(weights) and not torch.equal(module.get_parameter(twin), module.get_parameter(first)):
            raise ModelNotFoundError(
                f"{weights.folder} cannot be loaded: {twin} must be the same as {first}, and its files have two of them"
            )
    return module


@contextmanager
def _quiet() -> Iterator[None]:
    """Let transformers keep to itself what is told in an error or is of no use, its progress bars too."""
    from transformers.utils import logging

    level, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
