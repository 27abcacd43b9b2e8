"""Files that were never written to their end, and those that only look so."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from cosmorama.errors import ModelNotFoundError
from cosmorama.world.load.read import check_written, read_header

WHOLE: dict[str, dict[str, Tensor]] = {
    "a layer that was not trained": {"b": torch.zeros(256, 515)},
    "several layers, and their biases": {
        "b": torch.zeros(256, 515),
        "b.bias": torch.zeros(257),
        "c": torch.zeros(9, 9),
    },
    "words that nobody uses": {"b": torch.cat([torch.randn(300, 515), torch.zeros(300, 515)])},
    "words before": {"b": torch.cat([torch.zeros(300, 515), torch.randn(300, 515)]).bfloat16()},
    "a kernel of zeros among others": {"b": torch.cat([torch.randn(9, 50, 3, 9, 9), torch.zeros(9, 50, 3, 9, 9)])},
    "round numbers beside zeros": {"a": torch.ones(300, 515), "b": torch.zeros(200, 515), "c": torch.ones(300, 515)},
    "a matrix in 8 bits": {"b": torch.zeros(700, 515).to(torch.float8_e4m3fn)},
}


def saved(folder: Path, more: dict[str, Tensor]) -> Path:
    torch.manual_seed(0)
    weights = {"a": torch.randn(400, 515), "a.bias": torch.randn(3), "z": torch.randn(400, 515)}
    save_file(weights | more, folder / "whole.safetensors")
    return folder / "whole.safetensors"


@pytest.mark.parametrize("case", WHOLE)
def test_zeros_that_were_written_are_no_damage_even_where_the_disk_leaves_them_out(case: str, tmp_path: Path) -> None:
    file = saved(tmp_path, WHOLE[case])
    check_written(file, read_header(file).values())
    sparse = tmp_path / "sparse.safetensors"  # as on ZFS, or copied by what leaves zeros out
    if shutil.which("cp") and subprocess.run(["cp", "--sparse=always", file, sparse], check=False).returncode == 0:
        check_written(sparse, read_header(sparse).values())


PLACES: list[tuple[float | None, float | None]] = [(0.5, 1), (0.3, 0.5), (0.03, 0.9), (0.9, 1), (None, 1), (0.1, None)]


@pytest.mark.parametrize(
    ("start", "end", "hole"),
    [*((*place, hole) for place in PLACES for hole in (True, False)), (0.4, 0.41, True)],
)
def test_a_part_that_was_never_written_is_refused_wherever_it_is(
    start: float | None, end: float | None, hole: bool, tmp_path: Path
) -> None:
    file = saved(tmp_path, {"b": torch.randn(5000, 515)})
    whole, tensors = file.read_bytes(), read_header(file)
    first = min(tensor.start for tensor in tensors.values())
    begin = first if start is None else int(len(whole) * start) + 3
    until = len(whole) - 40 if end is None else int(len(whole) * end)
    with file.open("wb") as opened:
        opened.write(whole[:begin])
        if hole:
            opened.seek(until)
        else:
            opened.write(bytes(until - begin))
        opened.write(whole[until:])
        opened.truncate(len(whole))
    with pytest.raises(ModelNotFoundError, match=r"damaged: its bytes \d+ to \d+ of \d+ were never written"):
        check_written(file, tensors.values())
