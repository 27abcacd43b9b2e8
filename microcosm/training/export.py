"""Writes the weights folder that ships with the package: `python -m microcosm.training.export`."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from cosmorama.world.microcosm.autoencoder import CELL, FRAMES_PER_LATENT, OUTPUT_SCALE, VideoAutoencoder
from cosmorama.world.microcosm.drive_net import DriveNet
from cosmorama.world.microcosm.finder import Finder
from cosmorama.world.microcosm.mover import Mover
from cosmorama.world.microcosm.still_refiner import StillRefiner
from cosmorama.world.microcosm.stored import Stored
from cosmorama.world.microcosm.text_encoder import TextEncoder
from cosmorama.world.microcosm.transformer import CosmosTransformer
from microcosm.scenes.dataset import CLIP_FRAMES, SPLITS
from microcosm.scenes.simulate import SIZES
from microcosm.training.autoencoder import RUNS
from microcosm.training.decoder import TRAINED
from microcosm.training.gain import fold
from microcosm.training.loop import WEIGHTS
from microcosm.training.world import TIMESTEP_SCALE

VERSION = "0.12.0"
FLOW_SHIFT = 4.0
# (the API's guidance scale, weight of `cond - uncond`). At the API's default of 7: of 2, 3 and 4 the one at which the
# probe found most shapes in 64 stills (88, 91, 89 %; the scenes are in no split and not those of `evaluate`).
GUIDANCE_MAP = ((1.0, 1.0), (7.0, 3.0), (10.0, 4.5))
# Of what goes on from given frames: of those that were tried (docs/microcosm.md) the ones nearest to 24 real clips that
# are not those of `evaluate`.
GUIDANCE_MAP_ONWARD = ((1.0, 1.0), (7.0, 1.5), (10.0, 2.0))
FLOW_SHIFT_ONWARD = 16.0
NOISE_ONWARD = 0.15


def load_averaged(checkpoint: Path) -> tuple[Any, TextEncoder, dict[str, float]]:
    """The denoiser and text encoder of a checkpoint with their averaged weights, and the training progress."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=False)
    net: Any = CosmosTransformer.from_config(state["net_config"])
    text_encoder = TextEncoder.from_config(state["text_config"])
    net.load_state_dict(state["net"])
    text_encoder.load_state_dict(state["text_encoder"])
    _average([*net.parameters(), *text_encoder.parameters()], state)
    with torch.no_grad():
        fold(net.patch_embed.proj.weight, state["gain"])
    return net.eval(), text_encoder.eval(), state["progress"]


PARTS: dict[str, type[Stored]] = {
    "drive": DriveNet,
    "finder": Finder,
    "still_refiner": StillRefiner,
    "mover": Mover,
}
"""What may lie beside the denoiser; a drive needs its finder."""


def load_part(kind: type[Stored], checkpoint: Path) -> tuple[Any, dict[str, float]]:
    """One of `PARTS` with its averaged weights, and the training progress."""
    state = torch.load(checkpoint, weights_only=False)
    net: Any = kind.from_config(state["net_config"])
    net.load_state_dict(state["net"])
    _average(list(net.parameters()), state)
    return net.eval(), state["progress"]


@torch.no_grad()
def _average(parameters: Sequence[Tensor], state: dict[str, Any]) -> None:
    for parameter, average in zip(parameters, state["optimizer"]["averages"], strict=True):
        parameter.copy_(average)


def data_hash() -> str:
    """A fingerprint of the data's recipe: the splits' seeds and the code that turns them into frames."""
    scenes = Path(__file__).parents[1] / "scenes"
    recipe = [json.dumps({name: repr(split) for name, split in SPLITS.items()})]
    recipe += [(scenes / f"{name}.py").read_text() for name in ("simulate", "corridor", "dataset", "captions")]
    return hashlib.sha256("\n".join(recipe).encode()).hexdigest()[:16]


def description(progress: dict[str, float]) -> dict[str, Any]:
    """The contents of `world.json`."""
    return {
        "name": "microcosm",
        "version": VERSION,
        "prediction": "blend",
        "timestep_scale": TIMESTEP_SCALE,
        "flow_shift": FLOW_SHIFT,
        "flow_shift_onward": FLOW_SHIFT_ONWARD,
        "noise_onward": NOISE_ONWARD,
        "guidance_map": GUIDANCE_MAP,
        "guidance_map_onward": GUIDANCE_MAP_ONWARD,
        "still_first": True,
        "frames": {"multiple": FRAMES_PER_LATENT, "plus": 1, "max": CLIP_FRAMES},
        "fps": (12, 40),
        "native_fps": 24,
        "sizes": [(width * OUTPUT_SCALE, height * OUTPUT_SCALE) for width, height in SIZES],
        "spatial": {"output_scale": OUTPUT_SCALE, "cell_px": CELL},
        "conditioning_frames": (1, 1 + FRAMES_PER_LATENT),
        "data": {"hash": data_hash(), "first_seeds": {name: split.first_seed for name, split in SPLITS.items()}},
        "training": {**_done(progress), "million_tokens": round(progress["tokens"] / 1e6, 2)},
    }


def _done(progress: dict[str, float]) -> dict[str, float]:
    return {"steps": int(progress["steps"]), "hours": round(progress["seconds"] / 3600, 2)}


def _write(net: Stored, folder: Path) -> None:
    net.save_pretrained(folder, {name: tensor.half() for name, tensor in net.state_dict().items()})


def main(
    runs: Annotated[Path, typer.Option()] = RUNS,
    name: Annotated[str, typer.Option(help="Name of the checkpoint in RUNS.")] = "world",
    out: Annotated[Path, typer.Option()] = WEIGHTS,
    part: Annotated[list[str], typer.Option(help=f"Write only these of {', '.join(PARTS)}.")] = [],  # noqa: B006
) -> None:
    """Write float16 weights and replace the folder in one move; parts are put beside those that are there."""
    if part:
        values = json.loads((out / "world.json").read_text()) | {"version": VERSION}
        for one in part:
            net, progress = load_part(PARTS[one], runs / f"{one}.pt")
            shutil.rmtree(out / one, ignore_errors=True)
            _write(net, out / one)
            values[one] = _done(progress)
        (out / "world.json").write_text(json.dumps(values, indent=2) + "\n")
        return
    net, text_encoder, progress = load_averaged(runs / f"{name}.pt")
    new, old = out.with_name(f".{out.name}.new"), out.with_name(f".{out.name}.old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    trained = runs / TRAINED
    vae = VideoAutoencoder.from_pretrained(trained if trained.exists() else runs / "vae")
    _write(net, new / "transformer")
    _write(vae, new / "vae")
    _write(text_encoder, new / "text_encoder")
    index = {
        "_class_name": "MicrocosmPipeline",
        "transformer": ["cosmorama.world.microcosm.transformer", "CosmosTransformer"],
        "vae": ["cosmorama.world.microcosm.autoencoder", "VideoAutoencoder"],
        "text_encoder": ["cosmorama.world.microcosm.text_encoder", "TextEncoder"],
    }
    (new / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    (new / "world.json").write_text(json.dumps(description(progress), indent=2) + "\n")
    for kept in filter(Path.exists, (out / one for one in PARTS)):
        shutil.copytree(kept, new / kept.name)
    card = Path(__file__).parents[1] / "MODEL_CARD.md"
    if card.exists():
        shutil.copy(card, new / "MODEL_CARD.md")
    if out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {size / 1e6:.1f} MB, {progress}")


if __name__ == "__main__":
    typer.run(main)
