"""Weights that are not numbers, in any part of any family: no clip is made of them, and the error says where it showed.

What holds for a clip that is made well is in the tests of each family; the untouched models are sampled here once all
the same, so that a refusal of something else is not taken for this one.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cosmorama.engine.prepare import PreparedRequest
from cosmorama.engine.rollout import Rollout
from cosmorama.request import Action, Control, GenerationRequest
from cosmorama.resolve import resolve
from cosmorama.world.faults import NotFiniteError
from cosmorama.world.registry import load_world
from tests.tiny import save_tiny
from tests.world.checkpoints import PIPELINES, save_predict
from tests.world.cosmos.transfer_checkpoints import save_transfer
from tests.world.cosmos3.test_distilled import save_distilled
from tests.world.cosmos3_checkpoints import save_cosmos3
from tests.world.generic_checkpoints import save_ltx, save_wan

STEP, FRAMES = r"the latents after step 1 of \d+ \(the first", "the decoded frames"
BASES: dict[str, tuple[Callable[[Path], Any], dict[str, Any]]] = {
    **{
        kind: (lambda folder, kind=kind: save_predict(kind, folder), {"image": b"a picture"} if "video" in kind else {})
        for kind in PIPELINES
    },
    "predict2-text2image": (lambda folder: save_predict("predict2-text2image", folder), {"frames": 1}),
    "transfer2.5": (save_transfer, {"controls": (Control("edge", source=b"a clip"),), "task": "transfer"}),
    "cosmos3": (save_cosmos3, {"width": 256, "height": 256}),
    "cosmos3 distilled": (save_distilled, {"width": 256, "height": 256, "steps": None}),
    "wan": (save_wan, {}),
    "ltx": (save_ltx, {"frames": 9}),
    "microcosm": (save_tiny, {"width": 960, "height": 704}),
    "microcosm that drives": (
        lambda folder: save_tiny(folder, ((640, 352),), drives=True),
        {"width": 640, "height": 352, "frames": None, "action": Action(100, ((1.0, 0.0, 0.0),) * 2)},
    ),
}
POISONED: list[tuple[str, str, str]] = [
    *((base, "transformer", STEP) for base in BASES if base != "microcosm that drives"),
    *((base, "text_encoder", STEP) for base in ("predict1-text2world", "predict2.5", "wan", "ltx", "microcosm")),
    *((base, "vae", FRAMES) for base in ("predict1-text2world", "predict2.5", "cosmos3", "wan", "ltx", "microcosm")),
    ("predict2-video2world", "vae", STEP),
    ("transfer2.5", "controlnet", STEP),
    ("microcosm that drives", "drive", "step"),
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp("bases") / "model" for name in BASES}
    for name, (save, _) in BASES.items():
        save(folders[name])
    return folders


def clip_of(folder: Path, **changes: Any) -> np.ndarray:
    usual: dict[str, Any] = {"frames": 5, "steps": 2, "width": 64, "height": 64, "seed": 1, "prompt_upsampling": False}
    world: Any = load_world(str(folder), device="cpu")
    request = resolve(GenerationRequest(prompt="a red ball", **usual | changes), world.capabilities)
    shown = np.tile(np.arange(0, 250, 2, dtype=np.uint8)[: request.width], (9, request.height, 3, 1)).swapaxes(2, 3)
    controls = {control.kind: shown[:, :, : request.width] for control in request.controls}
    if controls:
        world.chunk_frames = len(shown)
    rollout = Rollout(world, PreparedRequest(request, "a red ball", shown[:1] if request.image else None, controls))
    while not rollout.done:
        rollout.advance()
    return np.concatenate(list(rollout.decode()))


@pytest.mark.parametrize("base", BASES)
def test_whole_ones_make_clips(base: str, bases: dict[str, Path]) -> None:
    clip = clip_of(bases[base], **BASES[base][1])
    assert clip.dtype == np.uint8
    assert clip.std() > 1


@pytest.mark.parametrize(("base", "part", "said"), POISONED)
def test_no_clip_is_made_of_what_is_no_number(
    base: str, part: str, said: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(bases[base], tmp_path / "model"))
    [file] = (folder / part).glob("*.safetensors")
    save_file({name: tensor * torch.nan for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    with pytest.raises(NotFiniteError, match=f"{said}.*COSMORAMA_DTYPE"):
        clip_of(folder, **BASES[base][1])
