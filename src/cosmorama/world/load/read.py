"""What one file of a checkpoint holds, and whether it is whole. Needs no torch.

Only headers and small files are read here, and nothing in them is believed: what is cut off, a pointer in the place of
a file, or no JSON is refused in one sentence that names the file and what to do.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Collection, Iterator
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
_PAGE, _PAGES = 4096, 32
"""Bytes that are looked at in one place of a file, and in how many places."""
_ZEROS = 2**16
"""So many bytes of nothing in a row are not found among trained weights."""
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
        start: Where in the file it begins.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int

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
                first, last = entry["data_offsets"]
                shape = tuple(int(side) for side in entry["shape"])
                stored = Stored(file, str(entry["dtype"]), shape, 8 + length + int(first))
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


def check_written(file: Path, tensors: Collection[Stored]) -> None:
    """Refuse a file of which a part was never written: a download into reserved space that was broken off.

    Zeros alone prove nothing: what was never trained is zero, and some file systems leave out zeros that were written.
    Those fill tensors, or rows of them, from end to end; a download ends anywhere. A few pages are looked into, and all
    places of which the file system says that there is nothing.

    Raises:
        ModelNotFoundError: says which part of it is missing.
    """
    with file.open("rb") as opened:
        size = opened.seek(0, os.SEEK_END)
        pages = {size * number // _PAGES for number in range(_PAGES)} | {max(size - _PAGE, 0)}
        pages |= set(_holes(opened, size))
        missing = end = 0
        for page in sorted(pages):
            if page < end:
                continue
            start, end = _zeros_around(opened, page, size)
            if end - start < _ZEROS:
                continue
            missing += end - start
            if 2 * missing > size or _tears(start, end, tensors):
                raise damaged(file, f"its bytes {start} to {end} of {size} were never written")


def _holes(opened: BinaryIO, size: int) -> Iterator[int]:
    """Where a file has nothing by what its file system says; none where that cannot tell."""
    place = 0
    with suppress(OSError):
        while (place := opened.seek(place, os.SEEK_HOLE)) < size:
            yield place
            place = opened.seek(place, os.SEEK_DATA)  # fails where no more follows


def _zeros_around(opened: BinaryIO, page: int, size: int) -> tuple[int, int]:
    """The first and the last byte (exclusive) of the zeros that a page is in; both the same where it is not zero."""
    opened.seek(page)
    if any(opened.read(_PAGE)):
        return page, page
    start = end = page
    while start > 0:
        before = max(start - _ZEROS, 0)
        opened.seek(before)
        left = len(opened.read(start - before).rstrip(b"\0"))
        start = before + left
        if left:
            break
    opened.seek(end)
    while end < size:
        data = opened.read(_ZEROS)
        zeros = len(data) - len(data.lstrip(b"\0"))
        end += zeros
        if zeros < len(data):
            break
    return start, end


def _tears(start: int, end: int, tensors: Collection[Stored]) -> bool:
    """Whether zeros begin or end within a row of a tensor."""
    for tensor in tensors:
        size, row = max(tensor.bits // 8, 1), max(tensor.bits // 8, 1) * prod(tensor.shape[1:])
        # The first bytes of a number may be zero, the last one hardly.
        for edge in (-(-(start - tensor.start) // size) * size, (end - tensor.start) // size * size):
            if 0 < edge < tensor.count * size and edge % row:
                return True
    return False


def damaged(file: Path, why: str) -> ModelNotFoundError:
    """What is said of a file that has to be had again."""
    return ModelNotFoundError(f"{file} is damaged: {why}; download it again")


def some(names: Collection[str]) -> str:
    """The first three of some names, and how many more there are."""
    shown = ", ".join("".join(c if c.isprintable() else "?" for c in name)[:200] for name in sorted(names)[:3])
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
