"""Which files of a checkpoint folder are the model. Needs no torch.

A folder of a part (`transformer`, `vae`, ...) may hold more than the weights that are meant: copies in another
precision, an average (EMA) of the training, shards of an earlier save. One choice is made here, and everything that
asks about weights (types, bytes, downloads, loading) asks it: the index, if there is one, else the usual name, of the
chosen variant where the part has it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cosmorama.errors import ModelNotFoundError
from cosmorama.world.load.read import (
    Stored,
    check_small,
    check_written,
    read_header,
    read_json,
    shard_map,
    some,
)

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


def choose(names: Collection[str], stems: Iterable[str], variant: str | None = None) -> str | None:
    """Choose the weights among the names of a part's files.

    Args:
        names: Of the files in the folder.
        stems: How weights may be called, before the ending, the first first.
        variant: A variant to be taken where the part has it, for example `fp16` or `bf16`.

    Returns:
        The index of the shards, or else the only file; None where there are none of the usual names.
    """
    for chosen in ([variant] if variant else []) + [None]:
        for stem in stems:
            dotted = f".{chosen}" if chosen else ""
            indexes = (f"{stem}.safetensors.index{dotted}.json", f"{stem}{dotted}.safetensors.index.json")
            found = next((name for name in (*indexes, f"{stem}{dotted}.safetensors") if name in names), None)
            if found is not None:
                return found
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


def weight_files(folder: Path, variant: str | None = None) -> tuple[tuple[Path, ...], Mapping[str, Path]]:
    """The files that are the weights of a part, and which tensor is in which: as an index says, else nothing.

    Raises:
        ModelNotFoundError: there are none; says what there is instead. Or some of them are missing.
    """
    names = _names(folder)
    chosen = choose(names, _stems(folder), variant)
    if chosen is None:
        raise ModelNotFoundError(f"{folder} has no weights{_lost(folder) or instead_of(names)}")
    if chosen.endswith(".safetensors"):
        return (folder / chosen,), {}
    owners = {name: folder / shard for name, shard in shard_map(folder / chosen).items()}
    files = tuple(sorted(set(owners.values())))
    missing = [f"{folder.name}/{file.name}" for file in files if file.name not in names]
    if missing:
        raise ModelNotFoundError(
            f"{folder.parent} is not a complete checkpoint: missing {some(missing)}{_lost(folder)}"
        )
    return files, owners


def stored_tensors(folder: Path, variant: str | None = None) -> dict[str, Stored]:
    """Every tensor of a part, from the headers of its files alone.

    Raises:
        ModelNotFoundError: files are missing or damaged, or are not those that their index speaks of.
    """
    files, owners = weight_files(folder, variant)
    tensors: dict[str, Stored] = {}
    for file in files:
        for name, stored in read_header(file).items():
            if name in tensors:
                raise ModelNotFoundError(
                    f"{folder} cannot be loaded: {name} is in {tensors[name].file.name} and in {file.name}"
                )
            tensors[name] = stored
    if not tensors:
        raise ModelNotFoundError(f"{files[0]} holds no tensors: download it again")
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

    Raises:
        ModelNotFoundError: names the file, and says what is wrong with it and what to do.
    """
    for part in parts_of(folder):
        whole = has_weights(part, variant)
        for file in sorted(part.iterdir()):
            if file.name.startswith(".") or (whole and file.name != "config.json"):
                continue  # not read; an index is when its shards are asked for
            if file.suffix in SMALL and not file.is_file():
                raise ModelNotFoundError(
                    f"{file} is {'a link to a file that is not there' if file.is_symlink() else 'no file'}: download "
                    "the folder again"
                )
            if file.is_file() and file.suffix != ".safetensors":
                check_small(file)
        if whole:
            tensors = stored_tensors(part, variant).values()
            for file in {stored.file for stored in tensors}:
                check_written(file, [stored for stored in tensors if stored.file == file])


def check_variant(folder: Path, parts: Iterable[str], variant: str | None) -> None:
    """Refuse a variant of the weights that no part has.

    Raises:
        ModelNotFoundError: names those there are.
    """
    found = {name for part in parts for name in variants(_names(folder / part))}
    if variant is not None and variant not in found:
        there = f"only {' and '.join(sorted(found))}" if found else "no variant at all"
        raise ModelNotFoundError(f"{folder} has no weights of the variant {variant!r}: there is {there}")


def missing_of_part(folder: Path, part: str, variant: str | None) -> Iterator[str]:
    """What a part of a checkpoint lacks: its config, or all of its weights, with what is there instead."""
    names = _names(folder / part)
    if "config.json" not in names:
        yield f"{part}/config.json"
    if choose(names, _stems(folder / part), variant) is None:
        yield f"{part}/*.safetensors{_lost(folder / part) or instead_of(names)}"


def _lost(folder: Path) -> str:
    """The weights of a part that are links into a cache which has not got them, or not whole."""
    lost = sorted(file.name for file in folder.glob("[!.]*.safetensors") if file.is_symlink() and not file.exists())
    return f" ({some(lost)}: a link to a file that is not there; download it again)" if lost else ""


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
    try:  # hidden files are a system's own, as macOS puts a ._x beside every x on other disks
        return {file.name for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")}
    except OSError:
        return set()


def _stems(folder: Path) -> tuple[str, str]:
    file = folder / "config.json"
    return stems_of(read_json(file) if file.is_file() else {})
