"""Which files of a checkpoint folder are the model, and whether they are whole. Needs no torch.

A folder of a part (`transformer`, `vae`, ...) may hold more than the weights that are meant: copies in another
precision, an average (EMA) of the training, shards of an earlier save. One choice is made here, and everything that
asks about weights (types, bytes, downloads, loading) asks it: the index, if there is one, else the usual name, of the
chosen variant where the part has it.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from cosmorama.errors import ModelNotFoundError

DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model", "model"
"""How the two libraries name the weights of a part, before the ending."""
PIPELINE = "model_index.json"
MODULAR = "modular_model_index.json"
INDEXES = (PIPELINE, MODULAR)
"""What names a pipeline and its parts, in the order in which it is looked for; diffusers' modular one comes last."""
_COSMOS_PARTS = {"transformer", "vae", "text_encoder", "tokenizer", "text_tokenizer", "scheduler"}
"""What is read of a Cosmos checkpoint. Guardrails, sound and the eyes of the text encoder are left where they are."""
SMALL = (".json", ".txt", ".jinja", ".model")
"""Endings of configs and of what belongs to tokenizers. No code, and nothing that has to be unpickled."""
_READ_HERE = ("/config.json", "scheduler_config.json", "chat_template.json", ".index.json")
_LFS = b"version https://git-lfs.github.com/spec/"
_MAX_HEADER = 100_000_000
"""Bytes of a file's header: the format's own limit."""
_BITS = {
    kind: bits
    for bits, kinds in {
        64: ("F64", "I64", "U64"),
        32: ("F32", "I32", "U32"),
        16: ("F16", "BF16", "I16", "U16"),
        8: ("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL"),
        4: ("F4",),
    }.items()
    for kind in kinds
}
"""Of one number, by its type; a type that is not here is not looked into."""
FLOATS = {"F64", "F32", "F16", "BF16"}
FLOAT8 = {"F8_E4M3", "F8_E5M2"}


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor as its file has it.

    Attributes:
        file: Where it is.
        dtype: In the words of the format: `BF16`, `F8_E4M3`, ...
        shape: Its sides.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return prod(self.shape)

    @property
    def bits(self) -> int:
        """Of one of them."""
        return _BITS.get(self.dtype, 8)


@dataclass(frozen=True, slots=True)
class Chosen:
    """The names of the files that are the weights of one part.

    Attributes:
        index: Of the shards; None for a single file.
        single: The only file; None where an index says which they are.
    """

    index: str | None = None
    single: str | None = None


def choose(names: Collection[str], stems: Iterable[str], variant: str | None = None) -> Chosen | None:
    """Choose the weights among the names of a part's files.

    Args:
        names: Of the files in the folder.
        stems: How weights may be called, before the ending, the first first.
        variant: A variant to be taken where the part has it, for example `fp16` or `bf16`.

    Returns:
        None where there are none of the usual names.
    """
    for chosen in ([variant] if variant else []) + [None]:
        for stem in stems:
            dotted = f".{chosen}" if chosen else ""
            indexes = (f"{stem}.safetensors.index{dotted}.json", f"{stem}{dotted}.safetensors.index.json")
            index = next((name for name in indexes if name in names), None)
            if index is not None:
                return Chosen(index=index)
            if f"{stem}{dotted}.safetensors" in names:
                return Chosen(single=f"{stem}{dotted}.safetensors")
    return None


def variants(names: Iterable[str]) -> tuple[str, ...]:
    """The variants that the names of a part's files speak of, sorted."""
    found = (_VARIANT.fullmatch(name) for name in names)
    return tuple(sorted({match["single"] or match["sharded"] for match in found if match}))


_VARIANT = re.compile(
    r"(?:diffusion_pytorch_model|model)\.(?:(?P<single>[\w-]+?)(?:-\d+-of-\d+)?\.safetensors(?:\.index\.json)?"
    r"|safetensors\.index\.(?P<sharded>[\w-]+)\.json)"
)


def stems_of(config: Mapping[str, Any]) -> tuple[str, str]:
    """What the weights of a part are called, by its `config.json`: the usual name of its library, then the other's."""
    return (DIFFUSERS, TRANSFORMERS) if "_class_name" in config else (TRANSFORMERS, DIFFUSERS)


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The files that are the weights of one part.

    Attributes:
        files: In order of their names.
        owners: Which tensor is in which of them, as their index says; empty for a single file.
    """

    files: tuple[Path, ...]
    owners: Mapping[str, Path]


def weight_files(folder: Path, variant: str | None = None) -> WeightFiles:
    """Find the weights of a part.

    Args:
        folder: Of the part.
        variant: As in `choose`.

    Raises:
        ModelNotFoundError: there are none; says what there is instead. Or some of them are missing.
    """
    names = _names(folder)
    chosen = choose(names, _stems(folder), variant)
    if chosen is None:
        raise ModelNotFoundError(f"{folder} has no weights{instead_of(names)}")
    if chosen.single is not None:
        return WeightFiles((folder / chosen.single,), {})
    owners = {name: folder / shard for name, shard in shard_map(folder / str(chosen.index)).items()}
    files = tuple(sorted(set(owners.values())))
    missing = [f"{folder.name}/{file.name}" for file in files if file.name not in names]
    if missing:
        raise ModelNotFoundError(f"{folder.parent} is not a complete checkpoint: missing {some(missing)}")
    return WeightFiles(files, owners)


def stored_tensors(folder: Path, variant: str | None = None) -> dict[str, Stored]:
    """Every tensor of a part, from the headers of its files alone.

    Raises:
        ModelNotFoundError: files are missing or damaged, or are not those that their index speaks of.
    """
    found = weight_files(folder, variant)
    tensors: dict[str, Stored] = {}
    for file in found.files:
        for name, stored in read_header(file).items():
            if name in tensors:
                raise ModelNotFoundError(
                    f"{folder} cannot be loaded: {name} is in {tensors[name].file.name} and in {file.name}"
                )
            tensors[name] = stored
    if not tensors:
        raise ModelNotFoundError(f"{found.files[0]} holds no tensors: download it again")
    owners = found.owners
    wrong = sorted(name for name, file in owners.items() if name not in tensors or tensors[name].file != file)
    if wrong:
        raise ModelNotFoundError(
            f"{folder} is not a complete checkpoint: {owners[wrong[0]].name} has no {wrong[0]}, which its index "
            "names; download the folder again"
        )
    if owners and (unknown := tensors.keys() - owners.keys()):
        raise ModelNotFoundError(
            f"{folder} cannot be loaded: its index says nothing of {some(unknown)}: the files are of different saves"
        )
    return tensors


def read_header(file: Path) -> dict[str, Stored]:
    """The tensors of one safetensors file, read from its header.

    Raises:
        ModelNotFoundError: says what is wrong with the file and what to do.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            start = opened.read(8)
            _check_pointer(file, start + opened.read(len(_LFS)))
            opened.seek(8)
            if len(start) < 8:
                raise damaged(file, f"it has {size} bytes")
            (length,) = struct.unpack("<Q", start)
            if length > _MAX_HEADER:
                raise damaged(file, "it is no safetensors file")
            if 8 + length > size:
                raise damaged(file, f"it is cut off: its header alone takes {8 + length} bytes, it has {size}")
            header = json.loads(opened.read(length))
        tensors, end = {}, 0
        for name, entry in header.items():
            if name != "__metadata__":
                stored = Stored(file, str(entry["dtype"]), tuple(int(side) for side in entry["shape"]))
                first, last = entry["data_offsets"]
                if stored.dtype in _BITS and (last - first) * 8 != stored.count * stored.bits:
                    raise damaged(file, f"{name} has not the bytes that its shape takes")
                tensors[name], end = stored, max(end, int(last))
    except OSError as error:
        raise ModelNotFoundError(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(file, "its header cannot be read") from error
    if size != 8 + length + end:
        whole = 8 + length + end
        raise damaged(
            file,
            f"it is cut off: {size} of {whole} bytes are there"
            if size < whole
            else f"{size - whole} bytes too many follow its tensors",
        )
    return tensors


def damaged(file: Path, why: str) -> ModelNotFoundError:
    """What is said of a file that has to be had again."""
    return ModelNotFoundError(f"{file} is damaged: {why}; download it again")


def some(names: Collection[str], most: int = 3) -> str:
    """The first of some names, and how many more there are."""
    shown = ", ".join(sorted(names)[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def first_line(error: BaseException) -> str:
    """The beginning of what an error says; its type where it says nothing or only a name."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    said = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])[:300]
    return said if " " in said else f"{type(error).__name__} {said}".strip()


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a checkpoint; a byte order mark before it is skipped.

    Raises:
        ModelNotFoundError: there is no such file, or it is something else.
    """
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        raise ModelNotFoundError(f"{file.parent} is not a complete checkpoint: missing {file.name}") from None
    except OSError as error:
        raise ModelNotFoundError(f"{file} cannot be read: {error.strerror or error}") from error
    values = _parsed(file, text)
    if not isinstance(values, dict):
        raise ModelNotFoundError(f"{file} cannot be read: it holds no JSON object")
    return values


def _parsed(file: Path, text: bytes) -> Any:
    _check_pointer(file, text)
    try:
        return json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ModelNotFoundError(f"{file} cannot be read as JSON: {error}; download it again") from None


def _check_pointer(file: Path, start: bytes) -> None:
    if start.startswith(_LFS):
        what = "weights" if file.suffix == ".safetensors" else "file"
        raise ModelNotFoundError(f"{file} is a Git LFS pointer, not the {what}: run git lfs pull there")


def is_distilled(modular: Mapping[str, Any]) -> bool:
    """Whether a modular index is that of a distilled Cosmos3."""
    named = str(modular.get("_class_name")) == "Cosmos3DistilledModularPipeline"
    return named or bool(modular.get("is_distilled")) or bool(modular.get("distilled_sigmas"))


def has_weights(folder: Path, variant: str | None = None) -> bool:
    """Whether a folder has weights of the usual names."""
    return choose(_names(folder), _stems(folder), variant) is not None


def parts_of(folder: Path) -> tuple[Path, ...]:
    """The folders of the parts that loading a checkpoint reads weights from."""
    names = [part.name for part in folder.iterdir() if part.is_dir()]
    return tuple(folder / part for part in parts_named(read_index(folder), names))


def read_index(folder: Path) -> dict[str, Any]:
    """What names the pipeline and the parts of a checkpoint; empty where nothing does."""
    index = next((folder / name for name in INDEXES if (folder / name).is_file()), None)
    return {} if index is None else read_json(index)


def is_cosmos(index: Mapping[str, Any]) -> bool:
    """Whether an index names a pipeline of the Cosmos family, which is sampled here."""
    return str(index.get("_class_name", "")).startswith("Cosmos")


def parts_named(index: Mapping[str, Any], names: Iterable[str]) -> tuple[str, ...]:
    """Which folders hold parts that are loaded, sorted.

    Args:
        index: The `model_index.json` of the checkpoint.
        names: Of the folders there are.
    """
    if is_cosmos(index):
        wanted = {*_COSMOS_PARTS, *(name for name in names if name.startswith("controlnet"))}
    else:
        parts = {name: entry for name, entry in index.items() if isinstance(entry, list) and not name.startswith("_")}
        wanted = {name for name, entry in parts.items() if any(entry)}
    return tuple(sorted(wanted.intersection(names)))


def check_whole(folder: Path, variant: str | None = None) -> None:
    """Look for damage in the files that loading a checkpoint will read; takes a moment, whatever their size.

    Args:
        folder: Of the checkpoint.
        variant: As in `choose`.

    Raises:
        ModelNotFoundError: names the file, and says what is wrong with it and what to do.
    """
    for part in parts_of(folder):
        for file in sorted(part.iterdir()):
            if file.suffix in SMALL and not file.is_file():
                raise ModelNotFoundError(
                    f"{file} is {'a link to a file that is not there' if file.is_symlink() else 'no file'}: download "
                    "the folder again"
                )
            if file.is_file() and file.suffix != ".safetensors":
                check_small(file)
        if has_weights(part, variant):
            stored_tensors(part, variant)


def check_small(file: Path) -> None:
    """Refuse a config or a file of a tokenizer that is damaged.

    Raises:
        ModelNotFoundError: names it, and says what to do.
    """
    if file.suffix != ".json":
        with file.open("rb") as opened:
            _check_pointer(file, opened.read(len(_LFS)))
        return
    text = file.read_bytes()
    _parsed(file, text)
    # What is read here skips the mark; what the libraries read does not.
    if text.startswith(b"\xef\xbb\xbf") and not str(file).endswith(_READ_HERE):
        raise ModelNotFoundError(f"{file} begins with a byte order mark, which its library refuses: save it without")


def variants_of(folder: Path) -> tuple[str, ...]:
    """The variants of a part's weights that its folder has, sorted."""
    return variants(_names(folder))


def missing_weights(folder: Path, variant: str | None = None) -> Iterator[str]:
    """Names of what a part lacks of its weights: shards that its index names, or all of them, with what is there."""
    names = _names(folder)
    chosen = choose(names, _stems(folder), variant)
    if chosen is None:
        yield f"*.safetensors{instead_of(names)}"
    elif chosen.index is not None:
        yield from sorted(set(shard_map(folder / chosen.index).values()) - names)


def shard_map(index: Path) -> dict[str, str]:
    """Which tensor is in which file, from an index.

    Raises:
        ModelNotFoundError: it is no index.
    """
    mapped = read_json(index).get("weight_map")
    if not isinstance(mapped, dict) or not mapped:
        raise damaged(index, "it has no weight_map")
    for shard in mapped.values():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise damaged(index, f"{shard!r} is no name of a file beside it")
    return mapped


def instead_of(names: Collection[str]) -> str:
    """What a folder without weights of the usual names has."""
    if found := variants(names):
        return f" (there is the variant {' and '.join(found)}: take it with --variant {found[0]})"
    if pickled := sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))):
        return f" (there is {pickled[0]}, but pickles are not read)"
    if quantized := sorted(name for name in names if name.endswith(".gguf")):
        return f" (there is {quantized[0]}, but GGUF is not read)"
    if shards := sorted(name for name in names if re.search(r"-\d+-of-\d+\.safetensors$", name)):
        stem = re.sub(r"-\d+-of-\d+\.safetensors$", "", shards[0])
        return f" (there are shards, but not {stem}.safetensors.index.json, which says what is in them)"
    if others := sorted(name for name in names if name.endswith(".safetensors")):
        return f" (there is {others[0]}, which is not the name of a part's weights)"
    return ""


def _names(folder: Path) -> set[str]:
    try:
        return {file.name for file in folder.iterdir() if file.is_file()}
    except OSError:
        return set()


def _stems(folder: Path) -> tuple[str, str]:
    return stems_of(_config(folder))


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    return read_json(file) if file.is_file() else {}
