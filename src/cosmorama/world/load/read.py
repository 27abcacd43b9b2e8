"""What one file of a checkpoint holds, and whether it is whole. Needs no torch.

Only headers and small files are read here, and nothing in them is believed: what is cut off, a pointer in the place of
a file, or no JSON is refused in one sentence that names the file and what to do.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from cosmorama.errors import ModelNotFoundError

_READ_HERE = ("/config.json", "scheduler_config.json", "chat_template.json", ".index.json")
_LFS = b"version https://git-lfs.github.com/spec/"
_MAX_HEADER = 100_000_000
"""Bytes of a file's header: the format's own limit."""
_ZEROS = 2**16
"""Bytes of nothing at the end of a file, in which trained weights are not."""
_HOLES = 100
"""A file is not whole of which more than one byte in so many was never written."""
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


def check_written(file: Path) -> None:
    """Refuse a file of which a part was never written: a download into reserved space that was broken off.

    Raises:
        ModelNotFoundError: says how much of it is missing, at least.
    """
    with file.open("rb") as opened:
        size = opened.seek(0, os.SEEK_END)
        opened.seek(max(size - _ZEROS, 0))
        if size > 2 * _ZEROS and not any(opened.read()):
            raise damaged(file, f"its last {_ZEROS} bytes were never written")
        # Some file systems leave out zeros that were written; of trained weights that is next to nothing.
        if _HOLES * (missing := _in_holes(opened, size)) > size:
            raise damaged(file, f"{missing} of its {size} bytes were never written")


def _in_holes(opened: BinaryIO, size: int) -> int:
    """Bytes of a file that its file system holds nothing of; 0 where it cannot tell."""
    missing = place = 0
    with suppress(OSError):
        while (first := opened.seek(place, os.SEEK_HOLE)) < size:
            missing += size - first
            place = opened.seek(first, os.SEEK_DATA)  # fails where no more follows
            missing -= size - place
    return missing


def damaged(file: Path, why: str) -> ModelNotFoundError:
    """What is said of a file that has to be had again."""
    return ModelNotFoundError(f"{file} is damaged: {why}; download it again")


def some(names: Collection[str]) -> str:
    """The first three of some names, and how many more there are."""
    shown = ", ".join(sorted(names)[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


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
        if not shard.endswith(".safetensors"):
            raise ModelNotFoundError(f"{index} names {shard}, and only safetensors are read")
    return mapped
